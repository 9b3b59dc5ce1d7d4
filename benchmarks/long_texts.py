"""Measure what texts of thousands of tokens cost: time and memory of a lone run, by length, at the sizes of a model, with few layers.

    python benchmarks/long_texts.py bge-m3 512 1024 2048 4096 8192
    python benchmarks/long_texts.py qwen3-0.6b 2048 8192 32768 --precision fast
    python benchmarks/long_texts.py bge-m3 2048 8192 --mesh

The weights are random and the vocabulary is small; time and memory do not depend on either. A length is run in a process of its own,
so that its peak is its own. Memory is what the run adds at its peak to what the loaded model takes. Every layer works on all tokens.

With --mesh a whole mesh is started as a user does (`quadrate up`), and the texts are sent to it over REST, on all cores, while
another caller sends short questions to another model of the same worker: what they wait for, and by how much the worker grows.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from mesh import Mesh, embed_over_rest

from quadrate.runtime import memory
from quadrate.runtime.encoders import FAMILIES
from quadrate.runtime.folder import Facts
from quadrate.runtime.graphs import build
from quadrate.runtime.jsonfile import JsonFile
from quadrate.runtime.packing import Reading
from quadrate.runtime.sessions import choose, open_session
from quadrate.runtime.weights import Weights
from quadrate.testing.peak import Peak, peak_growth_bytes
from quadrate.testing.tokenizers import letter_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import psutil

    from quadrate.runtime.encoders import Encoder

VOCABULARY = 1_000
SPECIAL = 2
"""Tokens that the tokenizer puts around a text."""
QUESTIONS_SECONDS = 10.0
"""How long short questions are sent alone, to compare."""
LOAD_SECONDS = 60.0
PATIENCE_SECONDS = 3_600
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
    parser.add_argument("--mesh", action="store_true", help="send the texts to a whole mesh")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        print(json.dumps(measure(arguments.folder, arguments.lengths[0], arguments.precision)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), {**MODELS[arguments.model], "num_hidden_layers": arguments.layers})
        if arguments.mesh:
            through_the_mesh(Path(folder), arguments.lengths, arguments.precision)
            return
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


def through_the_mesh(folder: Path, lengths: Sequence[int], precision: str) -> None:
    """Serve the folder by a mesh of one worker, send it a text of each length and print a table."""
    with Mesh(
        *("--model", f"long={folder}", "--precision", precision),
        ROUTER_REQUEST_TIMEOUT_SECONDS=f"{PATIENCE_SECONDS}",
        EDGE_REQUEST_TIMEOUT_SECONDS=f"{PATIENCE_SECONDS + 5}",
    ) as mesh:
        worker = mesh.processes()["embed_worker"]
        wait_for_the_model(mesh.port)
        with questions(mesh.port) as waits:
            time.sleep(QUESTIONS_SECONDS)
        print(f"Short questions without long texts: {told(waits)}.\n")
        print("| tokens | seconds | seconds of one core | MiB the worker grows by | short questions meanwhile |\n|---|---|---|---|---|")
        for length in lengths:
            print(mesh_row(mesh.port, worker, length), flush=True)


def wait_for_the_model(port: int) -> None:
    """Return when the model answers. Raises SystemExit if it never does."""
    end = time.monotonic() + LOAD_SECONDS
    while embed_over_rest(port, {"model": "long", "input": "hello"}) != http.HTTPStatus.OK:
        if time.monotonic() > end:
            raise SystemExit("the model was not loaded: `quadrate logs embed_worker` says why")
        time.sleep(0.1)


def mesh_row(port: int, worker: psutil.Process, length: int) -> str:
    """Send a text and return a line of the table."""
    before, peak = sum(worker.cpu_times()[:2]), Peak(worker.pid)
    with questions(port) as waits:
        seconds = embed(port, length)
    cores = sum(worker.cpu_times()[:2]) - before
    return f"| {length:,} | {seconds:.1f} | {cores:.1f} | {peak.growth_bytes() / 2**20:,.0f} | {told(waits)} |"


def embed(port: int, length: int) -> float:
    """Have a text of so many tokens embedded over REST; return the seconds. Raises SystemExit if it was not read as a whole."""
    text = " ".join(["hello", "world"] * (length // 2))[: 6 * (length - SPECIAL) - 1]
    connection, start = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS), time.perf_counter()
    with contextlib.closing(connection):
        connection.request("POST", "/v1/embeddings", json.dumps({"model": "long", "input": text}), {"content-type": "application/json"})
        answer = json.loads(connection.getresponse().read())
    if answer.get("usage", {}).get("prompt_tokens") != length:
        raise SystemExit(f"a text of {length} tokens was answered by {json.dumps(answer)[:500]}")
    return time.perf_counter() - start


@contextlib.contextmanager
def questions(port: int) -> Iterator[list[float]]:
    """Send short questions, one after another with pauses, for the length of a `with` block; gives the seconds that they took."""
    waits: list[float] = []
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.wait(0.1):
            start = time.perf_counter()
            status = embed_over_rest(port, {"model": "minilm", "input": f"Where are {len(waits)} stars born?"})
            waits.append(time.perf_counter() - start if status == http.HTTPStatus.OK else math.inf)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield waits
    finally:
        is_over.set()
        thread.join()


def told(waits: Sequence[float]) -> str:
    """Return the median and the longest of some waits."""
    return f"median {statistics.median(waits) * 1e3:.0f} ms, longest {max(waits) * 1e3:.0f} ms" if waits else "none"


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
    """Write a model's folder: random weights, and the files that say how it is served."""
    from safetensors.numpy import save_file  # noqa: PLC0415 - of the test environment

    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [{"idx": place, "path": path, "type": f"sentence_transformers.models.{kind}"} for place, (path, kind) in enumerate(kinds)]
    (folder / "1_Pooling").mkdir()
    for name, value in {
        "config.json": config,
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": config["hidden_size"], "pooling_mode": "mean"},
        "tokenizer_config.json": {},
    }.items():
        (folder / name).write_text(json.dumps(value), "utf-8")
    (folder / "tokenizer.json").write_bytes(letter_tokenizer())
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
