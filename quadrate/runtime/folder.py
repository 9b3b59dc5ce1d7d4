"""What a model folder says of itself, and what its card in `configs/models.yaml` adds or overrules.

The folder is laid out as on the hub: `config.json` (the architecture), `modules.json` and `1_Pooling/config.json` (how token states become
a vector), `sentence_bert_config.json` (the limit on tokens), `config_sentence_transformers.json` (prompts), `tokenizer.json`,
`tokenizer_config.json`, and safetensors weights. What cannot be served as its card demands is refused here, with the reason.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from quadrate.errors import ConfigError
from quadrate.runtime.encoders import FAMILIES
from quadrate.runtime.jsonfile import JsonFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from quadrate.config.models import ModelCard
    from quadrate.pairs import PairLayout
    from quadrate.runtime.encoders import Encoder

Pooling = Literal["mean", "cls", "last"]
Head = Literal["pooled", "token_vectors", "bge_m3", "splade", "classification", "yes_no"]
"""What is made of the token states; `quadrate.runtime.graphs.heads` writes each."""
Activation = Literal["none", "sigmoid"]
"""What makes the relevance of a reranker's raw score."""

_POOLING_FLAGS: dict[str, str] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
_MODULES = ("Transformer", "Pooling", "Normalize")
_NO_LIMIT = 10**6
"""Tokenizers without a limit of their own write a huge number."""


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer after the pooling (sentence-transformers' Dense).

    Attributes:
        folder: Where it lies; its weights are `<folder>/linear.weight`, `[outputs, inputs]`, and `<folder>/linear.bias`.
        inputs: The width it takes.
        outputs: The width it gives.
        bias: Whether it has a bias.
        activation: What follows.
    """

    folder: str
    inputs: int
    outputs: int
    bias: bool
    activation: Literal["none", "tanh", "gelu", "relu", "silu"]


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that is needed to serve a model right."""

    path: Path
    architecture: str
    encoder: Encoder
    max_tokens: int
    """The most tokens that are read of one input, special tokens included."""
    pooling: Pooling
    normalize: bool
    head: Head
    prompts: Mapping[str, str]
    default_prompt_name: str
    """Empty: no prompt unless a request names one."""
    labels: int = 1
    """Scores that a classification head gives."""
    answers: tuple[int, int] | None = None
    """The ids of the two tokens, yes and no, whose logits a causal reranker compares."""
    saturations: int = 1
    """How often SPLADE takes log(1 + x) of a token's positive logits."""
    dense: tuple[Dense, ...] = ()
    """The linear layers after the pooling, in order."""
    pair: PairLayout | None = None
    """How a query and a document are read as one; None for models that read texts alone."""
    activation: Activation = "none"
    """What makes the relevance of a reranker's raw score."""
    instruction_template: str = ""
    """The prompt of a query for which a request gives an instruction, with `{instruction}` in its place. Empty: the model takes none."""


def read(path: Path, card: ModelCard) -> Facts:
    """Return the facts of the model in `path`, the card's values before the files'.

    Raises:
        ConfigError: A file is missing or damaged, or says something that this version cannot serve right.
    """
    if card.scoring == "cross_encoder":
        raise ConfigError(f"{path}: scoring cross_encoder is not served by this version; minilm-rerank is.")
    architecture, encoder = _encoder(path)
    pooling, normalize = _pooling(path, card)
    prompts, default = _prompts(path, card)
    head: Head = "token_vectors" if card.scoring == "late_interaction" else "pooled"
    return Facts(path, architecture, encoder, _max_tokens(path, card, encoder), pooling, normalize, head, prompts, default)


def _json(path: Path, name: str) -> dict[str, Any]:
    return JsonFile(path / name, required=False).data


def _encoder(path: Path) -> tuple[str, Encoder]:
    config = JsonFile(path / "config.json")
    kind = str(config.data.get("model_type"))
    if kind not in FAMILIES:
        raise ConfigError(f"{config.path}: model_type is {kind!r}; this version serves {', '.join(FAMILIES)}.")
    return kind, FAMILIES[kind].read(config)


def _pooling(path: Path, card: ModelCard) -> tuple[Pooling, bool]:
    modules = _modules(path)
    found = card.pooling or ("mean" if card.task == "rerank" and not modules else _pooling_of(path, modules))
    if found not in get_args(Pooling):
        raise ConfigError(f"{path}: pooling is {found!r}; this version serves {', '.join(get_args(Pooling))}.")
    normalize = card.normalize if card.normalize is not None else "Normalize" in modules
    return cast("Pooling", found), normalize


def _prompts(path: Path, card: ModelCard) -> tuple[dict[str, str], str]:
    """Return the prompts by name, and the name of the one that is used unless a request names another; empty for none."""
    name = "config_sentence_transformers.json"
    said = _json(path, name)
    found = card.prompts or said.get("prompts") or {}
    if not isinstance(found, dict) or not all(isinstance(text, str | None) for text in found.values()):
        raise ConfigError(f"{path / name}: prompts is no object of name to text; fetch the model again, or give prompts in its card.")
    prompts = {key: text for key, text in found.items() if text}
    default = str(card.default_prompt_name or said.get("default_prompt_name") or "")
    return prompts, default if default in prompts else ""


def _modules(path: Path) -> dict[str, str]:
    """Return the folder of each sentence-transformers module by its kind; raises ConfigError for a kind that is not served."""
    file = path / "modules.json"
    if not file.is_file():
        return {}
    try:
        entries = json.loads(file.read_bytes())
        found = {str(entry["type"]).rpartition(".")[2]: str(entry["path"]) for entry in entries}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: cannot be read; fetch the model again.") from error
    for kind in found:
        if kind not in _MODULES:
            raise ConfigError(f"{file}: has a module {kind!r}; this version serves {', '.join(_MODULES)}.")
    return found


def _pooling_of(path: Path, modules: Mapping[str, str]) -> str:
    if "Pooling" not in modules:
        raise ConfigError(f"{path}: no modules.json that names a pooling; set `pooling` and `normalize` in the model's card.")
    name = f"{modules['Pooling']}/config.json"
    config = _json(path, name)
    if isinstance(config.get("pooling_mode"), str):
        return str(config["pooling_mode"])
    on = sorted(key for key, value in config.items() if key.startswith("pooling_mode_") and value is True)
    if len(on) != 1 or on[0] not in _POOLING_FLAGS:
        raise ConfigError(f"{path / name}: asks for {on or 'no pooling'}; this version serves one of {sorted(_POOLING_FLAGS)}.")
    if config.get("include_prompt") is False:
        raise ConfigError(f"{path / name}: include_prompt is false; this version pools over prompts, too.")
    return _POOLING_FLAGS[on[0]]


def _max_tokens(path: Path, card: ModelCard, encoder: Encoder) -> int:
    """Return the limit, found where sentence-transformers finds it, never above what the model has positions for."""
    said = _json(path, "sentence_bert_config.json")
    if said.get("do_lower_case") and '"lowercase":true' not in (path / "tokenizer.json").read_text("utf-8").replace(" ", ""):
        raise ConfigError(f"{path}/sentence_bert_config.json: do_lower_case is set and the tokenizer does not do it; this version cannot.")
    if card.max_tokens is not None:
        if card.max_tokens > encoder.max_positions:
            raise ConfigError(f"{path}: max_tokens is {card.max_tokens}; the model has positions for {encoder.max_positions} tokens.")
        return card.max_tokens
    limits = [said.get("max_seq_length"), _json(path, "tokenizer_config.json").get("model_max_length")]
    given = next((int(limit) for limit in limits if isinstance(limit, int | float) and 0 < limit < _NO_LIMIT), encoder.max_positions)
    return min(given, encoder.max_positions)
