"""Measure what texts of thousands of tokens cost: time and memory of a lone run, by length, at the sizes of a model, with few layers.

    python benchmarks/long_texts.py bge-m3 512 1024 2048 4096 8192
    python benchmarks/long_texts.py qwen3-0.6b 2048 8192 32768 --precision fast

The weights are random and the vocabulary is small; time and memory do not depend on either. A length is run in a process of its own,
so that its peak is its own. Memory is what the run adds at its peak to what the loaded model takes. Every layer works on all tokens.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quadrate.runtime import memory
from quadrate.runtime.encoders import FAMILIES
from quadrate.runtime.folder import Facts
from quadrate.runtime.graphs import build
from quadrate.runtime.jsonfile import JsonFile
from quadrate.runtime.packing import Reading
from quadrate.runtime.sessions import choose, open_session
from quadrate.runtime.weights import Weights
from quadrate.testing.peak import peak_growth_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quadrate.runtime.encoders import Encoder

VOCABULARY = 1_000
BGE_M3 = {
    "model_type": "xlm-roberta",
    "hidden_size": 1_024,
    "num_attention_heads": 16,
    "intermediate_size": 4_096,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 8_194,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "layer_norm_eps": 1e-5,
}
QWEN3 = {
    "model_type": "qwen3",
    "hidden_size": 1_024,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3_072,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32_768,
    "rope_theta": 1e6,
}
MODELS: dict[str, dict[str, Any]] = {"bge-m3": BGE_M3, "qwen3-0.6b": QWEN3}


def main() -> None:
    """Run each length in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("lengths", nargs="+", type=int, help="tokens")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--precision", choices=("exact", "fast", "small"), default="exact")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        print(json.dumps(measure(arguments.folder, arguments.lengths[0], arguments.precision)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), {**MODELS[arguments.model], "num_hidden_layers": arguments.layers})
        print("| tokens | seconds of one core | microseconds a token | MiB the run adds |\n|---|---|---|---|")
        for length in arguments.lengths:
            print(row(length, in_a_process(arguments, folder, length)), flush=True)


def in_a_process(arguments: argparse.Namespace, folder: str, length: int) -> dict[str, float]:
    """Measure one length in a new process."""
    command = [sys.executable, __file__, arguments.model, str(length), "--precision", arguments.precision, "--folder", folder]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def row(length: int, found: Mapping[str, float]) -> str:
    """Return a line of the table."""
    return f"| {length:,} | {found['seconds']:.2f} | {found['seconds'] / length * 1e6:,.0f} | {found['mebibytes']:,.0f} |"


def measure(folder: Path, length: int, precision: Any) -> dict[str, float]:
    """Run a text once after a short one, which warms kernels up; return the seconds of one core and the mebibytes it adds."""
    memory.settle()
    way = choose("cpu", precision)
    config = JsonFile(folder / "config.json")
    encoder = FAMILIES[config.data["model_type"]].read(config)
    graph = build(facts(folder, encoder), Weights(folder), way.arithmetic, way.kernels)
    session = open_session(graph, way, threads=1)
    random = np.random.default_rng(0)
    session.run([Reading.of(random.integers(5, VOCABULARY, 16).astype(np.int32))], ["unit"], wide=False)
    text = Reading.of(random.integers(5, VOCABULARY, length).astype(np.int32))
    start = time.process_time()
    grown = peak_growth_bytes(lambda: session.run([text], ["unit"], wide=False))
    return {"seconds": time.process_time() - start, "mebibytes": grown / 2**20}


def facts(folder: Path, encoder: Encoder) -> Facts:
    """Return the facts of an embedding model in a folder that pools all tokens: so the last layer works on all, too."""
    return Facts(
        path=folder,
        architecture="random",
        encoder=encoder,
        max_tokens=encoder.max_positions,
        pooling="mean",
        normalize=True,
        head="pooled",
        prompts={},
        default_prompt_name="",
    )


def write(folder: Path, config: Mapping[str, Any]) -> None:
    """Write a model's folder: config.json and random weights."""
    from safetensors.numpy import save_file  # noqa: PLC0415 - of the test environment

    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    random = np.random.default_rng(0)
    shapes = qwen3(config) if config["model_type"] == "qwen3" else bert(config)
    save_file({name: random.standard_normal(shape, np.float32) * 0.02 for name, shape in shapes.items()}, folder / "model.safetensors")


def bert(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the tensors of BERT and its kin."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    norms: dict[str, int] = {"embeddings.LayerNorm": width}
    products: dict[str, tuple[int, int]] = {}
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}"
        norms |= {f"{name}.attention.output.LayerNorm": width, f"{name}.output.LayerNorm": width}
        products |= {f"{name}.attention.{part}": (width, width) for part in ("self.query", "self.key", "self.value", "output.dense")}
        products |= {f"{name}.intermediate.dense": (inner, width), f"{name}.output.dense": (width, inner)}
    tables = {"word": config["vocab_size"], "position": config["max_position_embeddings"], "token_type": config["type_vocab_size"]}
    return {
        **{f"embeddings.{name}_embeddings.weight": (rows, width) for name, rows in tables.items()},
        **{f"{name}.{part}": (size,) for name, size in norms.items() for part in ("weight", "bias")},
        **{f"{name}.weight": shape for name, shape in products.items()},
        **{f"{name}.bias": shape[:1] for name, shape in products.items()},
    }


def qwen3(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the tensors of Qwen3."""
    width, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    asking, shared = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    layer = {
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
        "self_attn.q_norm": (head,),
        "self_attn.k_norm": (head,),
        "self_attn.q_proj": (asking, width),
        "self_attn.k_proj": (shared, width),
        "self_attn.v_proj": (shared, width),
        "self_attn.o_proj": (width, asking),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    ends = {"embed_tokens.weight": (config["vocab_size"], width), "norm.weight": (width,)}
    layers = range(config["num_hidden_layers"])
    return {**ends, **{f"layers.{number}.{name}.weight": shape for number in layers for name, shape in layer.items()}}


if __name__ == "__main__":
    main()
