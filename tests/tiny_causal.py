"""A tiny causal reranker with random weights, laid out as Qwen3-Reranker is, and the card that it needs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

from tests import vocabularies

if TYPE_CHECKING:
    from pathlib import Path

INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
CAUSAL_CARD: dict[str, Any] = {
    "activation": "sigmoid",
    "max_tokens": 220,
    "answers": {"yes": "yes", "no": "no"},
    "pair": {
        "prefix": '<|im_start|>system\nNote that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
        "query": "<Instruct>: {instruction}\n<Query>: {query}\n<Document>:",
        "document": " {document}",
        "suffix": "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "instruction": INSTRUCTION,
    },
}
_WIDTH, _INNER, _HEADS, _KEYS, _HEAD_WIDTH, _LAYERS = 32, 48, 4, 2, 8, 2


def write_tiny_causal(path: Path) -> Path:
    """Write the model's folder and return it."""
    tokenizer = vocabularies.qwen()
    vocabulary = tokenizer.get_vocab_size()
    config = {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": vocabulary,
        "hidden_size": _WIDTH,
        "intermediate_size": _INNER,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KEYS,
        "head_dim": _HEAD_WIDTH,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "use_sliding_window": False,
    }
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config), "utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 32768}), "utf-8")
    (path / "tokenizer.json").write_text(tokenizer.to_str(), "utf-8")
    save_file(_weights(vocabulary), path / "model.safetensors")
    return path


def _weights(vocabulary: int) -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, _WIDTH), "model.norm.weight": (_WIDTH,)}
    for layer in range(_LAYERS):
        name = f"model.layers.{layer}"
        shapes |= {
            f"{name}.input_layernorm.weight": (_WIDTH,),
            f"{name}.post_attention_layernorm.weight": (_WIDTH,),
            f"{name}.self_attn.q_proj.weight": (_HEADS * _HEAD_WIDTH, _WIDTH),
            f"{name}.self_attn.k_proj.weight": (_KEYS * _HEAD_WIDTH, _WIDTH),
            f"{name}.self_attn.v_proj.weight": (_KEYS * _HEAD_WIDTH, _WIDTH),
            f"{name}.self_attn.o_proj.weight": (_WIDTH, _HEADS * _HEAD_WIDTH),
            f"{name}.self_attn.q_norm.weight": (_HEAD_WIDTH,),
            f"{name}.self_attn.k_norm.weight": (_HEAD_WIDTH,),
            f"{name}.mlp.gate_proj.weight": (_INNER, _WIDTH),
            f"{name}.mlp.up_proj.weight": (_INNER, _WIDTH),
            f"{name}.mlp.down_proj.weight": (_WIDTH, _INNER),
        }
    random = np.random.default_rng(3)
    return {
        name: (1.0 if len(shape) == 1 else 0.0) + random.standard_normal(shape).astype(np.float32) * np.float32(0.2)
        for name, shape in shapes.items()
    }
