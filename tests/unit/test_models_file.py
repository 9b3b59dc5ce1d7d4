"""`models.yaml`: what a card may say."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from quadrate.config import yamlfile
from quadrate.config.models import ModelsFile, digest
from quadrate.config.shipped import shipped
from quadrate.errors import ConfigError

CARD: dict[str, Any] = {"served_name": "stars/tiny", "task": "embed", "source": {"type": "folder", "path": "/models/tiny"}}
RERANKER = CARD | {"served_name": "stars/judge", "task": "rerank", "scoring": "cosine"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def read(**models: dict[str, Any]) -> ModelsFile:
    """Read a file with these cards."""
    return yamlfile.parse(yaml.safe_dump({"models": models}), ModelsFile, name="models.yaml")


def test_the_shipped_catalogue_holds_the_quick_start() -> None:
    """The model and its stand-in for reranking are the same verified files; the card says that it is a stand-in and for what."""
    models = yamlfile.load(shipped("configs") / "models.yaml", ModelsFile).models
    minilm, reranker = models["minilm"], models["minilm-rerank"]
    assert minilm.files == reranker.files
    assert minilm.revision == reranker.revision == digest(minilm.files)
    assert (minilm.task, reranker.task) == ("embed", "rerank")
    assert "stand-in" in reranker.description
    assert "rerank-base" in reranker.description
    assert {minilm.license, reranker.license} == {"Apache-2.0"}


def test_the_shipped_catalogue_says_what_each_models_own_card_demands() -> None:
    """Every model of the catalogue is described by alias, with its licence; what is known by the hub alone is left empty."""
    models = yamlfile.load(shipped("configs") / "models.yaml", ModelsFile).models
    known = {alias: (card.architecture, card.pooling or card.scoring, card.activation or card.normalize) for alias, card in models.items()}
    assert known == {
        "minilm": (None, None, None),
        "minilm-rerank": (None, "late_interaction", None),
        "bge-m3": ("xlm-roberta", "cls", True),
        "multilingual-e5-large": ("xlm-roberta", "mean", True),
        "frida": ("t5", "cls", True),
        "qwen3-embedding-0.6b": ("qwen3", "last", True),
        "gte-modernbert-base": ("modernbert", "cls", True),
        "nomic-embed-text-v1.5": ("nomic_bert", "mean", True),
        "bge-small-en-v1.5": ("bert", "cls", True),
        "bge-base-en-v1.5": ("bert", "cls", True),
        "bge-large-en-v1.5": ("bert", "cls", True),
        "splade": ("bert", "splade", None),
        "rerank-base": ("bert", "cross_encoder", "none"),
        "bge-reranker-v2-m3": ("xlm-roberta", "cross_encoder", "sigmoid"),
        "gte-reranker-modernbert-base": ("modernbert", "cross_encoder", "sigmoid"),
        "qwen3-reranker-0.6b": ("qwen3", "causal", "sigmoid"),
    }
    assert all(card.license and card.description for card in models.values())
    assert {card.revision for card in models.values() if card.source.type == "hub"} == {None}


def test_a_hub_models_revision_is_its_commit() -> None:
    """The commit is what answers name, whatever files the card lists."""
    card = CARD | {"source": {"type": "hub", "repository": "stars/tiny", "revision": COMMIT}}
    assert read(tiny=card).models["tiny"].revision == COMMIT


def test_the_digest_is_the_contents() -> None:
    """The order of the files does not change it; a name or a hash does."""
    files = {"a": "0" * 64, "b": "1" * 64}
    assert digest(files) == digest(dict(reversed(files.items())))
    assert digest(files) != digest({"a": "1" * 64, "b": "0" * 64})
    assert digest(files).startswith("sha256:")
    assert len(digest(files)) == len("sha256:") + 12


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pool": "mean"}, "unknown key"),
        ({"task": "summarise"}, "Input should be 'embed' or 'rerank'"),
        ({"scoring": "cosine"}, "scoring must be set for task rerank"),
        ({"task": "rerank"}, "scoring must be set for task rerank"),
        ({"files": {"../config.json": "0" * 64}}, "must be a plain path inside the model's folder"),
        ({"files": {"/etc/passwd": "0" * 64}}, "must be a plain path inside the model's folder"),
        ({"files": {"model.pkl": "0" * 64}}, "may run code when it is opened"),
        ({"files": {"config.json": "short"}}, "should match pattern"),
        ({"source": {"type": "hub", "repository": "stars/tiny", "revision": "main"}}, "should match pattern"),
        ({"source": {"type": "folder", "path": "models/tiny"}}, "must be absolute or begin with ~"),
        ({"source": {"type": "attic"}}, "'wheel', 'hub', 'folder'"),
        ({"default_prompt_name": "query"}, "default_prompt_name 'query' is not among the prompts: []"),
        ({"matryoshka_dimensions": [128, 0]}, "matryoshka_dimensions must be positive, not [128, 0]"),
        ({"matryoshka_dimensions_from": 0}, "greater than or equal to 1"),
        ({"matryoshka_dimensions": [128], "matryoshka_dimensions_from": 32}, "keep one of the two"),
        ({"task": "rerank", "scoring": "causal"}, "scoring causal needs `pair`"),
        ({"task": "rerank", "scoring": "cosine", "activation": "sigmoid"}, "are for rerankers with scoring cross_encoder or causal"),
        ({"task": "rerank", "scoring": "cosine", "outputs": ["dense"]}, "are for task embed"),
        ({"task": "rerank", "scoring": "cosine", "matryoshka_dimensions": [128]}, "a reranker gives no vectors"),
        ({"pair": {}}, "are for rerankers with scoring cross_encoder or causal"),
        ({"instruction": "Instruct: "}, "instruction must hold {instruction}"),
        ({"outputs": ["vectors"]}, "Input should be 'dense', 'sparse' or 'multi_vector'"),
        ({"graph": "../model.onnx"}, "must be a plain path inside the model's folder"),
        ({"max_tokens": 2}, "greater than or equal to 8"),
    ],
)
def test_a_wrong_card_is_refused_with_what_is_allowed(changes: dict[str, Any], said: str) -> None:
    """Each mistake is named with its file, its line and the way out."""
    with pytest.raises(ConfigError) as caught:
        read(tiny=CARD | changes)
    assert str(caught.value).startswith("models.yaml:")
    assert said in str(caught.value)


def test_one_name_means_one_model() -> None:
    """Within a task a served name belongs to one alias, and no served name is another model's alias."""
    with pytest.raises(ConfigError, match=r":\d+: models.*served_name: other has the served name 'stars/tiny' for task embed already"):
        read(tiny=CARD, other=CARD)
    with pytest.raises(ConfigError, match=r"served_name: the served name 'judge' is the alias of another model"):
        read(tiny=CARD | {"served_name": "judge"}, judge=RERANKER)
    assert set(read(tiny=CARD, judge=RERANKER | {"served_name": "stars/tiny"}).models) == {"tiny", "judge"}


@pytest.mark.parametrize("alias", ["", "a/b", "with space", "-dash", "x" * 65])
def test_an_alias_is_a_plain_name(alias: str) -> None:
    """Aliases stand in paths, metrics and health names."""
    with pytest.raises(ConfigError):
        read(**{alias: CARD})
