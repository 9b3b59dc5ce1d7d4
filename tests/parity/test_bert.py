"""BERT, RoBERTa and XLM-R against transformers: states, each pooling, classification of pairs."""

# ruff: noqa: PLC0415 - torch and transformers are imported by the tests that need them, so that collecting needs neither

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.parity import folders

if TYPE_CHECKING:
    from pathlib import Path

    from quadrate.runtime.packing import Reading

pytestmark = pytest.mark.parity

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": folders.VOCABULARY,
    "num_labels": 1,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {"max_position_embeddings": folders.MAX_TOKENS, "type_vocab_size": 2},
    "roberta": {"max_position_embeddings": folders.MAX_TOKENS + 2, "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5},
    "xlm-roberta": {"max_position_embeddings": folders.MAX_TOKENS + 2, "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5},
}


def make(family: str, kind: str, **changes: Any) -> Any:
    """Return a random model of a family: `AutoModel`, `AutoModelForSequenceClassification`."""
    import transformers

    config = transformers.AutoConfig.for_model(family, **{**SIZES, **CONFIGS[family], **changes})
    return folders.shake(getattr(transformers, kind).from_config(config))


@pytest.mark.parametrize("family", CONFIGS)
def test_pooled_vectors_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    """Mean, first and last token's vectors are those of transformers' last hidden states, for texts of every length."""
    model = make(family, "AutoModel")
    path = folders.save(model, tmp_path)
    texts, states = folders.readings(), folders.states(model)
    assert folders.is_far_from_uniform(model, texts[-1])
    poolings = {"mean": lambda text: states(text).mean(0), "cls": lambda text: states(text)[0], "last": lambda text: states(text)[-1]}
    for pooling, expected in poolings.items():
        folders.compare(folders.session(path, pooling=pooling), "pooled", texts, expected)


@pytest.mark.parametrize("family", CONFIGS)
def test_token_vectors_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    """Token vectors are transformers' last hidden states, brought to length one."""
    model = make(family, "AutoModel")
    states = folders.states(model)
    opened = folders.session(folders.save(model, tmp_path), head="token_vectors")
    folders.compare(opened, "multi_vector", folders.readings(), lambda text: folders.unit(states(text)))


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("bert", {}),
        ("bert", {"type_vocab_size": 1, "hidden_act": "relu"}),
        ("roberta", {}),
        ("xlm-roberta", {"hidden_act": "gelu_new", "num_hidden_layers": 1}),
    ],
)
def test_scores_of_pairs_are_those_of_transformers(tmp_path: Path, family: str, labels: int, changes: dict[str, Any]) -> None:
    """Scores of pairs are transformers' logits; BERT's second text has the second token type."""
    model = make(family, "AutoModelForSequenceClassification", num_labels=labels, **changes)
    typed = family == "bert" and not changes
    more = {"token_type_ids": folders.types} if typed else {}
    opened = folders.session(folders.save(model, tmp_path), head="classification", labels=labels)
    folders.compare(opened, "score", folders.readings(pairs=True), folders.logits(model, **more))


def test_the_token_type_of_the_second_text_matters(tmp_path: Path) -> None:
    """Where the second text begins changes a BERT pair's score: the test above would see it if types were dropped."""
    model = make("bert", "AutoModelForSequenceClassification")
    ask = folders.logits(model, token_type_ids=folders.types)
    pair: Reading = folders.readings((64,), pairs=True)[0]
    assert abs(ask(pair) - ask(type(pair).of(pair.ids))).max() > 1e-2


@pytest.mark.parametrize("family", CONFIGS)
def test_a_padding_token_that_a_text_spells_out_has_no_position(tmp_path: Path, family: str) -> None:
    """A text may hold the padding token itself, where someone wrote "<pad>": RoBERTa does not count it, BERT does."""
    model = make(family, "AutoModel")
    states = folders.states(model)
    texts = folders.readings((12, 40, 7))
    for text, places in zip(texts, ([3], [0, 1, 39], [6]), strict=True):
        text.ids[places] = model.config.pad_token_id
    opened = folders.session(folders.save(model, tmp_path))
    folders.compare(opened, "pooled", texts, lambda text: states(text).mean(0))


@pytest.mark.parametrize("family", CONFIGS)
def test_a_checkpoint_with_a_head_serves_its_encoder(tmp_path: Path, family: str) -> None:
    """The encoder inside a checkpoint with a head, whose names have the family's prefix, gives the same states."""
    model = make(family, "AutoModelForSequenceClassification")
    states = folders.states(model.base_model)
    opened = folders.session(folders.save(model, tmp_path))
    folders.compare(opened, "pooled", folders.readings((1, 40, 512)), lambda text: states(text).mean(0))
