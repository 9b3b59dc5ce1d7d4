"""Card and files together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from quadrate.errors import ConfigError
from quadrate.runtime.encoders import FAMILIES
from quadrate.runtime.encoders.foreign import Foreign
from quadrate.runtime.folder import heads, tokens
from quadrate.runtime.folder.facts import Facts
from quadrate.runtime.folder.modules import Modules
from quadrate.runtime.folder.prompts import instruction_template, prompts
from quadrate.runtime.graphs.after_pooling import LayerNorm
from quadrate.runtime.jsonfile import JsonFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from quadrate.config.models import ModelCard
    from quadrate.pairs import PairLayout
    from quadrate.runtime.encoders import Encoder
    from quadrate.runtime.folder.facts import Activation, Head, Pooling

_CLASSES: Mapping[str, str] = {
    "bert": "Bert",
    "modernbert": "ModernBert",
    "mt5": "MT5",
    "nomic_bert": "NomicBert",
    "qwen3": "Qwen3",
    "roberta": "Roberta",
    "t5": "T5",
    "xlm-roberta": "XLMRoberta",
}
_HEADS = ("Model", "EncoderModel", "ForMaskedLM", "ForPreTraining", "ForSequenceClassification", "ForConditionalGeneration", "ForCausalLM")
"""What the classes of a family are called behind its name. Others read or compute something that our graphs do not."""
_OWN_CODE = ("nomic_bert",)
"""Families that were published with code of their own, which our graph stands for."""


def read(path: Path, card: ModelCard) -> Facts:
    """Return the facts of the model in `path`, the card's values before the files'.

    Raises:
        ConfigError: A file is missing or damaged, or says something that this version cannot serve right.
    """
    architecture, encoder = _encoder(path, card)
    modules = Modules(path)
    tokens.check_texts(path, card)
    head = heads.head_of(path, card, modules)
    heads.check_outputs(path, card, head)
    texts, default = prompts(path, card)
    scoring = _scoring(path, card, modules, head)
    if scoring.pair is not None and default and card.pair is None:
        raise ConfigError(f"{path}: its default prompt {default!r} stands before pairs; write the whole template as `pair` in its card.")
    return Facts(
        path=path,
        architecture=architecture,
        encoder=encoder,
        max_tokens=tokens.max_tokens(path, card, encoder),
        pooling=_pooling(card, modules, head),
        normalize=modules.normalizes if card.normalize is None else card.normalize,
        head=head,
        prompts=texts,
        default_prompt_name=default,
        labels=heads.labels_of(path) if head == "classification" else 1,
        answers=heads.answers_of(path, card, modules, encoder.vocabulary_size) if head == "yes_no" else None,
        saturations=modules.saturations if head == "splade" and modules else 1,
        after_pooling=(*modules.after_pooling, *([LayerNorm("")] if card.layer_norm else [])),
        pair=scoring.pair,
        has_pair_types=scoring.has_types,
        activation=scoring.activation,
        graph=card.graph or "",
        instruction_template=instruction_template(card, texts) if card.task == "embed" else "",
    )


@dataclass(frozen=True, slots=True)
class _Scoring:
    pair: PairLayout | None = None
    has_types: bool = False
    activation: Activation = "none"


def _scoring(path: Path, card: ModelCard, modules: Modules, head: Head) -> _Scoring:
    if head not in ("classification", "yes_no"):
        return _Scoring()
    if modules and head == "classification" and modules.folder("Pooling") is not None:
        raise ConfigError(f"{path}: its modules.json makes it an embedding model; scoring cross_encoder needs a classifier.")
    layout, has_types = tokens.pair_of(path, card)
    return _Scoring(layout, has_types, heads.activation_of(path, card))


def _encoder(path: Path, card: ModelCard) -> tuple[str, Encoder]:
    config = JsonFile(path / "config.json")
    family = str(config.data.get("model_type"))
    if card.graph is not None:
        return family, Foreign.read(config)
    if family not in FAMILIES:
        raise ConfigError(f"{config.path}: model_type is {family!r}; this version serves {', '.join(FAMILIES)}.")
    if card.architecture not in (None, family):
        raise ConfigError(
            f"{config.path}: model_type is {family!r}, and the model's card says {card.architecture!r}; one of them is wrong."
        )
    _refuse_other_code(config, family)
    if config.data.get("quantization_config"):
        raise ConfigError(f"{config.path}: the weights are quantised (quantization_config); use the checkpoint that they were made from.")
    if (path / "adapter_config.json").is_file():
        raise ConfigError(f"{path}: adapter_config.json says that these weights change another model's; merge the two (merge_and_unload).")
    return family, FAMILIES[family].read(config)


def _refuse_other_code(config: JsonFile, family: str) -> None:
    """Refuse a model whose class is not one that our graph stands for, whatever its model_type calls it."""
    if config.data.get("auto_map") and family not in _OWN_CODE:
        raise ConfigError(f"{config.path}: auto_map says that the model needs code of its own; this version runs none.")
    named = config.data.get("architectures") or []
    if not isinstance(named, list):
        raise ConfigError(f"{config.path}: architectures is {named!r}, not a list; fetch the model again.")
    served = [_CLASSES[family] + head for head in _HEADS] if family in _CLASSES else named
    for name in named[:1]:
        if name not in served:
            raise ConfigError(f"{config.path}: architectures names {name!r}; this version serves {', '.join(served)}.")


def _pooling(card: ModelCard, modules: Modules, head: Head) -> Pooling:
    if head in ("classification", "yes_no"):
        return "last" if head == "yes_no" else "cls"
    if head == "splade":
        return "splade"
    if head == "token_vectors" or (card.task == "rerank" and not modules and card.pooling is None):
        return card.pooling or "mean"
    return card.pooling or modules.pooling
