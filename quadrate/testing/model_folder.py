"""A tiny encoder with random weights, laid out as the hub lays models out, so that tests of the runtime need no download and no torch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from quadrate.testing.tokenizers import letter_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

WIDTH = 32
_POOLINGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")


def tiny_config(**changes: Any) -> dict[str, Any]:
    """Return a config.json: 2 layers of 4 heads, 32 wide, 64 positions."""
    config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": Tokenizer.from_buffer(letter_tokenizer()).get_vocab_size(),
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
    }
    return {**config, **changes}


def tiny_weights(config: Mapping[str, Any], *, prefix: str = "", seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Return random weights of BERT's names and shapes, large enough that attention is far from uniform."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], width),
        **_norm("embeddings.LayerNorm", width),
    }
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}"
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= _dense(f"{name}.{part}", width, width)
        shapes |= _norm(f"{name}.attention.output.LayerNorm", width)
        shapes |= _dense(f"{name}.intermediate.dense", inner, width)
        shapes |= _dense(f"{name}.output.dense", width, inner)
        shapes |= _norm(f"{name}.output.LayerNorm", width)
    return tiny_tensors({prefix + name: shape for name, shape in shapes.items()}, seed=seed)


def tiny_tensors(shapes: Mapping[str, tuple[int, ...]], *, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Return random tensors of these names and shapes, such as a head beside `tiny_weights`."""
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape).astype(np.float32) * np.float32(0.5) for name, shape in shapes.items()}


def write_tiny_model(
    path: Path,
    *,
    pooling: str = "mean",
    normalize: bool = True,
    weights: Mapping[str, NDArray[Any]] | None = None,
    prompts: Mapping[str, str] | None = None,
    max_tokens: int = 48,
    **changes: Any,
) -> Path:
    """Write a model's folder and return it; `changes` go into its config.json."""
    # Imported here: only workers have it.
    from safetensors.numpy import save_file  # noqa: PLC0415

    config = tiny_config(**changes)
    modules = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    kinds = [
        {"idx": place, "path": f"{place}_{kind}" if place else "", "type": f"sentence_transformers.models.{kind}"}
        for place, kind in enumerate(modules)
    ]
    flags = {f"pooling_mode_{name}": name.split("_")[0] == pooling for name in _POOLINGS}
    (path / "1_Pooling").mkdir(parents=True, exist_ok=True)
    for name, value in {
        "config.json": config,
        "modules.json": kinds,
        "1_Pooling/config.json": {"word_embedding_dimension": WIDTH, **flags, "pooling_mode_mean_sqrt_len_tokens": False},
        "sentence_bert_config.json": {"max_seq_length": max_tokens, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": dict(prompts or {}), "default_prompt_name": None},
        "tokenizer_config.json": {"model_max_length": 64},
    }.items():
        (path / name).write_text(json.dumps(value), "utf-8")
    (path / "tokenizer.json").write_bytes(letter_tokenizer())
    save_file(dict(weights if weights is not None else tiny_weights(config)), path / "model.safetensors")
    return path


def write_tiny_cross_encoder(path: Path, *, activation: str | None = None, max_tokens: int = 48) -> Path:
    """Write the folder of a classifier with one label and return it; `activation` goes into its config.json."""
    config = tiny_config()
    width = config["hidden_size"]
    random = np.random.default_rng(1)
    head = {**_dense("bert.pooler.dense", width, width), **_dense("classifier", 1, width)}
    weights = {
        **tiny_weights(config, prefix="bert."),
        **{name: random.standard_normal(shape).astype(np.float32) * np.float32(0.5) for name, shape in head.items()},
    }
    changes: dict[str, Any] = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    if activation is not None:
        changes["sentence_transformers"] = {"activation_fn": activation}
    write_tiny_model(path, weights=weights, **changes)
    for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (path / name).unlink()  # files of embedding models
    (path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": max_tokens}), "utf-8")
    return path


def _dense(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
