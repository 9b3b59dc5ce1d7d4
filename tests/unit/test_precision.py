"""Classes of precision: what a device can give, what is refused, and what each kind of arithmetic does to a product."""

from __future__ import annotations

import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from quadrate.config.models import FolderSource, ModelCard
from quadrate.config.worker import EmbedSettings, RerankSettings, load_worker_settings
from quadrate.errors import ConfigError
from quadrate.runtime import engine, folder
from quadrate.runtime.encoders.qwen3 import Qwen3
from quadrate.runtime.graphs import Form, build, layers
from quadrate.runtime.graphs.builder import Builder
from quadrate.runtime.jsonfile import JsonFile
from quadrate.runtime.packing import Reading, pack
from quadrate.runtime.sessions import CPU, CUDA, OPENVINO, OnnxSession, choose, cuda, gpu, open_session, way
from quadrate.runtime.sessions.gpu import Gpu
from quadrate.runtime.sessions.onnx import cpu_options, open_graph
from quadrate.runtime.weights import Weights
from quadrate.testing.model_folder import tiny_config, write_tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from quadrate.runtime.graphs import Arithmetic, Graph
    from quadrate.runtime.graphs.builder import Kernels

RANDOM = np.random.default_rng(3)
VNNI = frozenset(("avx512_vnni",))


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it look as if there were two GPUs."""
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(gpu, "count", lambda: 2)


def test_the_device_asked_for_is_the_device_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is not there is refused with the way out; `auto` takes what there is, and needs runtime and driver both."""
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CPU])
    assert choose("auto", "exact").provider == choose("cpu", "exact").provider == CPU
    with pytest.raises(ConfigError, match=r"quadrate\[gpu\]"):
        choose("gpu", "exact")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(gpu, "count", lambda: 0)
    assert choose("auto", "exact").provider == CPU
    with pytest.raises(ConfigError, match="CUDA shows 0"):
        choose("gpu", "exact")


@pytest.mark.usefixtures("gpus")
def test_a_gpu_is_found_by_number_or_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number is that GPU; a UUID is the only GPU that CUDA then shows, which is how it takes a MIG slice."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert choose("auto", "exact") == choose("gpu", "exact") == way.Way("exact", CUDA, "float32", Gpu(0))
    assert choose("gpu:1", "fast", gpu_memory_bytes=7) == way.Way("fast", CUDA, "float16", Gpu(1, 7))
    with pytest.raises(ConfigError, match="CUDA shows 2"):
        choose("gpu:2", "exact")
    name = "MIG-3e4a9c1e-8a55-5cf1-9d65-2f3c9f1d4f6b"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert choose(f"gpu:{name}", "exact").gpu.ordinal == 0
    assert os.environ["CUDA_VISIBLE_DEVICES"] == name
    with pytest.raises(ConfigError, match="not given on a GPU"):
        choose("gpu", "small")


def test_a_class_that_a_processor_cannot_give_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without OpenVINO or the instructions, `fast` and `small` are refused, and the message says what can be had."""
    monkeypatch.setattr(way.processor, "instructions", lambda: frozenset(("avx2",)))
    with pytest.raises(ConfigError, match=r"VNNI.*Set the precision to exact"):
        choose("cpu", "small")
    monkeypatch.setattr(way.processor, "instructions", lambda: VNNI)
    assert choose("cpu", "small") == way.Way("small", CPU, "int8")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"quadrate\[openvino\].*small or exact"):
        choose("cpu", "fast")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
    monkeypatch.setattr(way, "_openvino_capabilities", lambda: frozenset(("FP32", "INT8")))
    with pytest.raises(ConfigError, match="AVX512_BF16 or AMX"):
        choose("cpu", "fast")
    monkeypatch.setattr(way, "_openvino_capabilities", lambda: frozenset(("FP32", "BF16")))
    assert choose("cpu", "fast") == way.Way("fast", OPENVINO, "float32")


@pytest.mark.parametrize(
    ("environment", "precision"),
    [
        ({}, "exact"),
        ({"EMBED_PRECISION": "fast"}, "fast"),
        ({"EMBED_MIXED_PRECISION": "true"}, "fast"),
        ({"EMBED_MIXED_PRECISION": "true", "EMBED_PRECISION": "fast", "EMBED_QUANTIZATION": "none"}, "fast"),
        ({"EMBED_QUANTIZATION": "int8"}, "small"),
        ({"EMBED_QUANTIZATION": "int8", "EMBED_PRECISION": "small", "EMBED_MIXED_PRECISION": "false"}, "small"),
    ],
)
def test_three_settings_say_one_precision(monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str], precision: str) -> None:
    """Mixed precision asks for `fast`, quantization for `small`, beside the precision itself."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert load_worker_settings(EmbedSettings).precision == precision
    assert load_worker_settings(RerankSettings).precision == "exact"


@pytest.mark.parametrize(
    "environment",
    [
        {"EMBED_PRECISION": "exact", "EMBED_MIXED_PRECISION": "true"},
        {"EMBED_PRECISION": "fast", "EMBED_QUANTIZATION": "int8"},
        {"EMBED_MIXED_PRECISION": "true", "EMBED_QUANTIZATION": "int8"},
    ],
)
def test_settings_that_contradict_each_other_are_refused(monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    """Settings that contradict each other are refused, with both names of what they ask for."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="set precision alone") as told:
        load_worker_settings(EmbedSettings)
    assert all(f"{name} " in str(told.value) for name in environment), "whoever reads it has to find what to take away"


@pytest.mark.parametrize("value", ["off", "false", "False", "0", "none", ""])
def test_quantization_is_switched_off_in_words_of_an_earlier_deployment(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """What meant no quantization elsewhere means none here."""
    monkeypatch.setenv("EMBED_QUANTIZATION", value)
    settings = load_worker_settings(EmbedSettings)
    assert (settings.quantization, settings.precision) == ("none", "exact")


@pytest.mark.parametrize("device", ["gpu:x", "gpu:-1", "gpu:", "cuda", "gpu:MIG-", "GPU"])
def test_a_device_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """A device that cannot be is refused by the variable's name."""
    monkeypatch.setenv("EMBED_DEVICE", device)
    with pytest.raises(ConfigError, match="EMBED_DEVICE: it must be auto"):
        load_worker_settings(EmbedSettings)


def product(
    tmp_path: Path, arithmetic: Arithmetic, weight: NDArray[np.float32], bias: NDArray[np.float32] | None, *, headroom_bits: int = 0
) -> Graph:
    """Return a graph of one product over `shares`, which stands for any rows of float32."""
    to = Builder(Weights(write_tiny_model(tmp_path)), arithmetic)
    rows = to.input("shares", np.float32, ["n", weight.shape[1]])
    made = layers.linear(to, rows, weight, bias, scale=0.5, headroom_bits=headroom_bits)
    return to.finish({"unit": (made, Form("text", len(weight)))})


def run_product(graph: Graph, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run such a graph."""
    found: NDArray[np.float32] = open_graph(graph, CPU, cpu_options(1)).run(["unit"], {"shares": rows})[0]
    return found


def rows_with_outliers(count: int, width: int) -> NDArray[np.float32]:
    """Return rows of very different sizes, each with one value far from the others, as encoders have them."""
    rows = RANDOM.standard_normal((count, width)).astype(np.float32) * np.float32(10.0) ** RANDOM.integers(-3, 3, (count, 1)).astype(
        np.float32
    )
    rows[np.arange(count), RANDOM.integers(0, width, count)] *= 15
    rows[0] = 0
    return rows


@pytest.mark.parametrize(("arithmetic", "error"), [("int8", 0.05), ("float16", 2e-3), ("float32", 1e-5)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_product_is_right_in_every_arithmetic(tmp_path: Path, arithmetic: Arithmetic, error: float, *, with_bias: bool) -> None:
    """A product is that of float64, as closely as its arithmetic allows, for rows of any size, zeros among them."""
    weight = RANDOM.standard_normal((96, 128)).astype(np.float32)
    weight[5] = 0
    bias = RANDOM.standard_normal(96).astype(np.float32) if with_bias else None
    rows = rows_with_outliers(20, 128)
    found = run_product(product(tmp_path, arithmetic, weight, bias), rows)
    plain = 0.5 * rows.astype(np.float64) @ weight.T.astype(np.float64)
    expected = plain + (0 if bias is None else bias)
    size = np.linalg.norm(plain, axis=1) + np.linalg.norm(bias if bias is not None else np.ones(1))
    assert (np.linalg.norm(found - expected, axis=1) / size).max() < error


def test_an_8_bit_product_of_a_row_does_not_depend_on_the_others(tmp_path: Path) -> None:
    """An 8-bit product of a row is the same to the last bit alone and among rows a thousand times as large."""
    graph = product(tmp_path, "int8", RANDOM.standard_normal((96, 128)).astype(np.float32), None)
    rows = rows_with_outliers(20, 128)
    together = run_product(graph, rows)
    for place in range(len(rows)):
        assert run_product(graph, rows[place : place + 1]).tobytes() == together[place : place + 1].tobytes()


def test_few_outputs_stay_in_float32(tmp_path: Path) -> None:
    """Products with few outputs, such as scores, are not worth 8 bits and stay as they are."""
    weight, rows = RANDOM.standard_normal((3, 128)).astype(np.float32), rows_with_outliers(4, 128)
    found = run_product(product(tmp_path, "int8", weight, None), rows)
    np.testing.assert_allclose(found, 0.5 * rows @ weight.T, rtol=1e-4, atol=1e-3)


def test_headroom_keeps_half_precision_from_overflowing(tmp_path: Path) -> None:
    """Rows and products beyond what float16 holds are infinite without headroom and right with it."""
    # ONNX's own evaluator: on a CPU, ONNX Runtime computes float16 in float32, which does not overflow.
    weight = np.abs(RANDOM.standard_normal((48, 128))).astype(np.float32)
    feeds = {"shares": np.full((2, 128), 70_000, np.float32)}
    with np.errstate(over="ignore"):
        plain = ReferenceEvaluator(product(tmp_path, "float16", weight, None).proto).run(None, feeds)[0]
    assert np.isinf(plain).all()
    found = ReferenceEvaluator(product(tmp_path, "float16", weight, None, headroom_bits=8).proto).run(None, feeds)[0]
    np.testing.assert_allclose(found, 0.5 * feeds["shares"] @ weight.T, rtol=2e-2)


def tiny_graph(tmp_path: Path, arithmetic: Arithmetic, kernels: Kernels = "onnxruntime") -> Graph:
    """Return the graph of a small encoder, wide enough that its products are written in 8 bits."""
    config = tiny_config(hidden_size=128, intermediate_size=256)
    path = write_tiny_model(tmp_path, config=config)
    card = ModelCard(served_name="tiny", task="embed", source=FolderSource(type="folder", path=path))
    return build(folder.read(path, card), Weights(path), arithmetic, kernels)


def tiny_readings(count: int) -> list[Reading]:
    """Return texts of random ids."""
    return [
        Reading.of(RANDOM.integers(0, tiny_config()["vocab_size"], length).astype(np.int32)) for length in RANDOM.integers(1, 40, count)
    ]


@pytest.mark.parametrize(("arithmetic", "cosine"), [("float16", 0.9999), ("int8", 0.98)])
def test_an_encoder_in_less_precision_is_near(tmp_path: Path, arithmetic: Arithmetic, cosine: float) -> None:
    """An encoder of random weights, which are harder on 8 bits than trained ones, stays near what float32 gives."""
    texts = tiny_readings(20)
    exact = OnnxSession(tiny_graph(tmp_path, "float32"), threads=1).run(texts, ["unit"], wide=False)["unit"]
    found = OnnxSession(tiny_graph(tmp_path, arithmetic), threads=1).run(texts, ["unit"], wide=False)["unit"]
    assert min(float(one @ other) for one, other in zip(exact, found, strict=True)) > cosine


def test_openvino_gives_what_onnx_runtime_gives(tmp_path: Path) -> None:
    """Through OpenVINO the same graph gives the same vectors, in bfloat16; any number of texts, alone and over all cores."""
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    graph, texts = tiny_graph(tmp_path, "float32"), tiny_readings(9)
    exact = OnnxSession(graph, threads=1).run(texts, ["unit", "pooled"], wide=False)
    session = open_session(tiny_graph(tmp_path, "float32", "openvino"), way.Way("fast", OPENVINO, "float32"), threads=2)
    for wide in (False, True):
        found = session.run(texts, ["unit", "pooled"], wide=wide)
        assert min(float(one @ other) for one, other in zip(exact["unit"], found["unit"], strict=True)) > 0.999
        assert [row.shape for row in found["pooled"]] == [row.shape for row in exact["pooled"]]
    session.close()


@pytest.mark.parametrize("wide_bytes", [2**28, 0])
def test_short_texts_do_not_wait_for_long_ones_in_openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wide_bytes: int) -> None:
    """While runs of long texts hold all that they may, runs of short ones are answered, be the model small or of middling size."""
    openvino = pytest.importorskip("quadrate.runtime.sessions.openvino", reason="the extra openvino is not installed")
    monkeypatch.setattr(openvino, "LONG_TOKENS", 20)
    monkeypatch.setattr(openvino, "WIDE_MODEL_BYTES", wide_bytes)
    session = openvino.OpenVinoSession(tiny_graph(tmp_path, "float32", "openvino"), threads=2)
    short, long, very_long = [Reading.of(np.full(length, 5, np.int32)) for length in (7, 15, 30)]
    with ThreadPoolExecutor(3) as threads, ExitStack() as taken:
        for request in [session._long._free.get() for _ in range(2)]:
            taken.callback(session._long._free.put, request)
        assert len(session.run([short], ["unit"], wide=True)["unit"]) == 1
        for _ in range(1 if wide_bytes else 2):
            taken.enter_context(session._room)
        asked = Asked(session._model, 3)
        monkeypatch.setattr(session, "_model", asked)
        waiting = [threads.submit(session.run, [text], ["unit"], wide=False, is_long=True) for text in (long, long, very_long)]
        asked.all.wait(30)
        assert len(session.run([short], ["unit"], wide=False)["unit"]) == 1
        assert len(session.run([short], ["unit"], wide=True)["unit"]) == 1
        assert not any(future.done() for future in waiting)
        taken.close()
        assert [len(future.result(30)["unit"]) for future in waiting] == [1, 1, 1]
    session.close()


class Asked:
    """A function that says when it was called so many times."""

    def __init__(self, function: Callable[..., Any], times: int) -> None:
        self._function = function
        self._left = threading.Semaphore(times - 1)
        self.all = threading.Event()

    def __call__(self, *arguments: object, **named: object) -> Any:
        """Call it."""
        if not self._left.acquire(blocking=False):
            self.all.set()
        return self._function(*arguments, **named)


def test_the_largest_models_are_packed_once_in_openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights beyond the limits are packed once, and then very long texts leave a thread to short ones."""
    openvino = pytest.importorskip("quadrate.runtime.sessions.openvino", reason="the extra openvino is not installed")
    for limit in ("LONG_TOKENS", "WIDE_MODEL_BYTES", "LONG_MODEL_BYTES"):
        monkeypatch.setattr(openvino, limit, 0)
    session = openvino.OpenVinoSession(tiny_graph(tmp_path, "float32", "openvino"), threads=2)
    assert session._narrow is session._long
    assert session._wide is None
    assert [session._room.acquire(blocking=False) for _ in range(2)] == [True, False]
    session.close()


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority of their own on Linux alone")
def test_openvinos_threads_yield_as_the_scheduler_wants(tmp_path: Path) -> None:
    """OpenVINO's own threads run short texts at the niceness of short ones; long texts, and runs over all cores, at that of long ones."""
    openvino = pytest.importorskip("quadrate.runtime.sessions.openvino", reason="the extra openvino is not installed")
    ours, lowest = set(run_nanoseconds()), os.getpriority(os.PRIO_PROCESS, 0)
    session = openvino.OpenVinoSession(tiny_graph(tmp_path, "float32", "openvino"), threads=2)
    for wide, is_long, niceness in ((False, False, 5), (False, True, 10), (True, False, 10)):
        before = run_nanoseconds()
        for _ in range(50):
            session.run([Reading.of(np.full(30, 5, np.int32))], ["unit"], wide=wide, is_long=is_long)
        taken = {thread: total - before.get(thread, 0) for thread, total in run_nanoseconds().items() if thread not in ours}
        assert os.getpriority(os.PRIO_PROCESS, max(taken, key=taken.__getitem__)) == max(niceness, lowest)
    session.close()


def run_nanoseconds() -> dict[int, int]:
    """Return how long each thread of this process has run, by the kernel's number of it."""
    found = {}
    for thread in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended
            found[int(thread.name)] = int((thread / "schedstat").read_text().split()[0])
    return found


def test_causal_models_read_less_through_openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A causal model reads at most 8,192 tokens through OpenVINO, as card and log tell; other ways read the whole length."""
    said: list[dict[str, object]] = []
    monkeypatch.setattr(engine.log, "warn", lambda _, **metadata: said.append(metadata))
    path = write_tiny_model(tmp_path)
    card = ModelCard(served_name="tiny", task="embed", source=FolderSource(type="folder", path=path))
    found = replace(folder.read(path, card), max_tokens=32_768)
    fast, exact = way.Way("fast", OPENVINO, "float32"), way.Way("exact", CPU, "float32")
    assert engine.limited(found, fast).max_tokens == 32_768
    config = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 9}
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "qwen3", "max_position_embeddings": 32_768, "head_dim": 16}))
    causal = replace(found, encoder=Qwen3.read(JsonFile(tmp_path / "config.json")))
    assert engine.limited(causal, exact).max_tokens == 32_768
    assert engine.limited(causal, fast).max_tokens == 8192
    assert [(entry["max_tokens"], entry["model_max_tokens"]) for entry in said] == [(8192, 32_768)]


def test_bound_runs_give_what_plain_ones_give(tmp_path: Path) -> None:
    """Bound inputs and outputs, as runs on a GPU have them, give what a plain run gives."""
    graph, texts = tiny_graph(tmp_path, "float16"), tiny_readings(3)
    session = open_graph(graph, CPU, cuda.session_options())
    feeds, _ = pack(texts, graph.inputs)
    bound = cuda.run_bound(session, feeds, ["unit"], "cpu", 0)
    np.testing.assert_array_equal(bound[0], session.run(["unit"], feeds)[0])


def test_a_gpu_session_is_bounded_and_exact() -> None:
    """The GPU's arena grows by what is asked and has a limit if one is set; float32 is not shortened to TF32."""
    options = cuda.provider_options(Gpu(1, 2**30))
    assert options == {"device_id": "1", "arena_extend_strategy": "kSameAsRequested", "use_tf32": "0", "gpu_mem_limit": str(2**30)}
    assert "gpu_mem_limit" not in cuda.provider_options(Gpu())
