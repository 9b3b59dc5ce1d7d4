"""Which head a model has, and what it needs: found by what the card asks for and by the files that are there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quadrate.errors import ConfigError
from quadrate.runtime.folder import tokens
from quadrate.runtime.jsonfile import JsonFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from quadrate.config.models import ModelCard
    from quadrate.runtime.folder.facts import Activation, Head
    from quadrate.runtime.folder.modules import Modules

_SCORING_HEADS: Mapping[str, Head] = {
    "cosine": "pooled",
    "late_interaction": "token_vectors",
    "cross_encoder": "classification",
    "causal": "yes_no",
}
_BGE_M3 = ("sparse_linear.pt", "colbert_linear.pt")
_OUTPUTS: Mapping[Head, tuple[str, ...]] = {"pooled": ("dense",), "bge_m3": ("dense", "sparse", "multi_vector"), "splade": ("sparse",)}
_ACTIVATIONS: Mapping[str, Activation] = {
    "torch.nn.modules.linear.Identity": "none",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.functional.sigmoid": "sigmoid",
}


def head_of(path: Path, card: ModelCard, modules: Modules) -> Head:
    """Return what is made of the token states. Raises ConfigError where the files say something else than the card asks for."""
    asked = _SCORING_HEADS.get(card.scoring or "")
    if modules.folder("LogitScore") is not None and asked != "yes_no":
        raise ConfigError(f"{path}: its LogitScore module makes it a causal reranker; set task rerank and scoring causal in its card.")
    if asked is not None:
        return asked
    _refuse_classifier(path, card, modules)
    if card.pooling == "splade" or (card.pooling is None and modules.folder("SpladePooling") is not None):
        return "splade"
    there = [name for name in _BGE_M3 if (path / name).is_file()]
    if len(there) == 1:
        raise ConfigError(f"{path}: has {there[0]} and not the other of {' and '.join(_BGE_M3)}; fetch the model again.")
    return "bge_m3" if there else "pooled"


def _refuse_classifier(path: Path, card: ModelCard, modules: Modules) -> None:
    """Refuse a classifier as an embedding model, unless modules.json or the card makes it one: its vectors were trained for nothing."""
    if card.pooling is not None or modules.folder("Pooling") is not None or modules.folder("SpladePooling") is not None:
        return
    config = JsonFile(path / "config.json")
    named = config.data.get("architectures")
    name = str(named[0]) if isinstance(named, list) and named else ""
    if name.endswith("ForSequenceClassification"):
        raise ConfigError(
            f"{config.path}: architectures names {name!r}, a classifier, such as a cross-encoder: it reads a query together with a "
            "document and has no vectors. Set task rerank and scoring cross_encoder in its card."
        )


def check_outputs(path: Path, card: ModelCard, head: Head) -> None:
    """Raise ConfigError if the files do not give what the card promises."""
    given = _OUTPUTS.get(head, ())
    for output in card.outputs:
        if output not in given:
            raise ConfigError(f"{path}: its files give {', '.join(given)} and not {output}, which the card names; fetch the model again.")


def labels_of(path: Path) -> int:
    """Return how many scores a classifier gives. Raises ConfigError for more than one: which of them orders documents is not said."""
    config = JsonFile(path / "config.json")
    names = config.data.get("id2label")
    count = len(names) if isinstance(names, dict) else config.integer("num_labels", 2)
    if count != 1:
        raise ConfigError(f"{config.path}: the classifier has {count} labels; a reranker has one score.")
    return 1


def activation_of(path: Path, card: ModelCard) -> Activation:
    """Return what makes the relevance of a raw score: as the card says, or as CrossEncoder finds it.

    That is in config_sentence_transformers.json, in config.json, and without either the sigmoid.
    """
    if card.activation is not None:
        return card.activation
    config = JsonFile(path / "config.json").data
    nested = config.get("sentence_transformers")
    found: Any = JsonFile(path / "config_sentence_transformers.json", required=False).data.get("activation_fn")
    found = found or (nested.get("activation_fn") if isinstance(nested, dict) else None)
    found = found or config.get("sbert_ce_default_activation_function")
    if found is None:
        return "sigmoid"
    if not isinstance(found, str) or found not in _ACTIVATIONS:
        raise ConfigError(
            f"{path}: its activation is {found!r}; this version serves {', '.join(_ACTIVATIONS)}. Set activation in its card."
        )
    return _ACTIVATIONS[found]


def answers_of(path: Path, card: ModelCard, modules: Modules, vocabulary_size: int) -> tuple[int, int]:
    """Return the ids of yes and no: of the card's words, or of the LogitScore module.

    Raises ConfigError if there are none, or if one is no row of the vocabulary.
    """
    found = _answers(path, card, modules)
    if found[0] == found[1] or not all(0 <= token < vocabulary_size for token in found):
        raise ConfigError(
            f"{path}: the two words that are compared have the ids {found}; they must differ, and be below {vocabulary_size}."
        )
    return found


def _answers(path: Path, card: ModelCard, modules: Modules) -> tuple[int, int]:
    if card.answers is not None:
        return tokens.word_id(path, card.answers.yes), tokens.word_id(path, card.answers.no)
    folder = modules.folder("LogitScore")
    if folder is None:
        raise ConfigError(f"{path}: scoring causal needs the two words that are compared; give `answers` in the model's card.")
    config = JsonFile(path / folder / "config.json")
    config.refuse_unless("module_input_name", "causal_logits")
    return config.integer("true_token_id"), config.integer("false_token_id")
