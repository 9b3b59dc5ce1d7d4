"""A model's fingerprint: another one for whatever could change an answer, the same for whatever could not."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import pytest

from quadrate.config.models import FolderSource, ModelCard
from quadrate.pairs import PairLayout
from quadrate.runtime import folder
from quadrate.runtime.fingerprint import DIGITS, fingerprint
from quadrate.runtime.folder import Facts
from quadrate.runtime.graphs.after_pooling import LayerNorm
from quadrate.testing.model_folder import write_tiny_cross_encoder, write_tiny_model
from tests.tiny_causal import write_tiny_causal

if TYPE_CHECKING:
    from pathlib import Path

OTHER: dict[str, Any] = {
    "architecture": "roberta",
    "max_tokens": 9,
    "pooling": "last",
    "normalize": False,
    "head": "bge_m3",
    "prompts": {"query": "other: "},
    "default_prompt_name": "query",
    "labels": 2,
    "answers": (1, 2),
    "saturations": 2,
    "after_pooling": (LayerNorm(""),),
    "pair": PairLayout(suffix_ids=(3,)),
    "has_pair_types": True,
    "activation": "sigmoid",
    "graph": "onnx/model.onnx",
    "instruction_template": "{instruction}: ",
}
"""Another value of each fact."""
EDITS: dict[str, Any] = {
    "pooling": "cls",
    "layer_norm": True,
    "normalize": False,
    "max_tokens": 16,
    "prompts": {"query": "q: "},
    "instruction": "{instruction}: ",
    "truncation": "right",
    "files": {"config.json": "0" * 64},
}
"""Another value of each part of an embedding model's card that could change an answer."""
WORDS: dict[str, Any] = {
    "served_name": "other",
    "description": "It has another description.",
    "license": "MIT",
    "golden": "golden/other.json",
    "matryoshka_dimensions": (16,),
    "matryoshka_dimensions_from": 16,
    "outputs": ("dense",),
    "architecture": "bert",
}
"""What changes no answer, or only which requests are refused."""
OF_RERANKERS = {"activation", "pair", "answers", "scoring", "task", "default_prompt_name", "graph", "source"}
"""What other tests here, or the facts, change."""


def card(path: Path, **changes: Any) -> ModelCard:
    """Return the card of a model in a folder."""
    return ModelCard(**{"served_name": "tiny", "task": "embed", "source": FolderSource(type="folder", path=path), **changes})


def of(path: Path, revision: str = "r", **changes: Any) -> str:
    """Return the fingerprint of the model in a folder by a card."""
    made = card(path, **changes)
    return fingerprint(made, folder.read(path, made), revision)


@pytest.fixture
def facts(tmp_path: Path) -> Facts:
    """The facts of a tiny model."""
    path = write_tiny_model(tmp_path / "tiny")
    return folder.read(path, card(path))


def test_every_fact_counts_but_where_the_files_lie(facts: Facts, tmp_path: Path) -> None:
    """A fact that is added later has to be added here, so that somebody thinks of it."""
    assert set(OTHER) | {"path", "encoder"} == {field.name for field in fields(Facts)}
    made = card(facts.path)
    others = [replace(facts, **{name: value}) for name, value in OTHER.items()]
    others.append(replace(facts, encoder=replace(facts.encoder, heads=1)))
    found = [fingerprint(made, each, "r") for each in (facts, *others)]
    assert len(set(found)) == len(found)
    assert {len(each) for each in found} == {DIGITS}
    assert fingerprint(made, replace(facts, path=tmp_path), "r") == found[0]


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_that_could_change_an_answer_is_another_model(tmp_path: Path, name: str) -> None:
    """Though the revision stays."""
    path = write_tiny_model(tmp_path / "tiny")
    assert of(path, **{name: EDITS[name]}) != of(path)


@pytest.mark.parametrize("name", WORDS)
def test_an_edit_that_changes_no_answer_is_the_same_model(tmp_path: Path, name: str) -> None:
    """What was kept of it stays good."""
    path = write_tiny_model(tmp_path / "tiny")
    assert of(path, **{name: WORDS[name]}) == of(path)


def test_every_part_of_a_card_was_thought_of() -> None:
    """Each either changes the fingerprint or is known to change no answer."""
    assert {*EDITS, *WORDS, *OF_RERANKERS} == set(ModelCard.model_fields)


def test_what_the_files_say_already_changes_nothing(tmp_path: Path) -> None:
    """A card that repeats it is the same, and so is another folder with the same files; other files are another model."""
    path = write_tiny_model(tmp_path / "tiny")
    assert of(path, pooling="mean", normalize=True) == of(path) == of(write_tiny_model(tmp_path / "again"))
    assert of(path, "other revision") != of(path)
    assert of(path, prompts={"a": "1", "b": "2"}) == of(path, prompts={"b": "2", "a": "1"})


def test_rerankers_differ_by_scoring_activation_template_and_words(tmp_path: Path) -> None:
    """None of them is in the ids of a request."""
    cross, causal = write_tiny_cross_encoder(tmp_path / "cross"), write_tiny_causal(tmp_path / "causal")
    scoring = {"task": "rerank", "scoring": "cross_encoder"}
    pair = {"prefix": "hello", "query": "query : {query}", "document": " {document}", "suffix": "mat"}
    found = [
        of(cross, **scoring),
        of(cross, **scoring, activation="none"),
        of(cross, task="rerank", scoring="late_interaction"),
        of(cross, task="rerank", scoring="cosine"),
        *(
            of(causal, task="rerank", scoring="causal", pair={**pair, **change}, answers={"yes": yes, "no": no})
            for yes, no, change in (("yes", "no", {}), ("yes", "no", {"suffix": "cat"}), ("no", "yes", {}))
        ),
    ]
    assert len(set(found)) == len(found)


def test_a_fingerprint_is_the_same_in_every_process(facts: Facts) -> None:
    """Nothing of it is an address of memory."""
    assert " at 0x" not in repr(facts)
