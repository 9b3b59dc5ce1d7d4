"""What the engine is compared with, each as its users run it: texts in, vectors of length one out, in this process.

- *sentence-transformers*, batch 32, all cores: fp32, bf16, and its ONNX and OpenVINO backends where optimum is installed.
- *as fastembed* calls ONNX Runtime: batches of 256 in order of arrival, padded to the longest, one run at a time over all cores.
- *as infinity* calls it: sorted by length, batches of 32, padded, one run at a time over all cores.
- *loop*: what only an offline job can do, everything sorted by length beforehand, as many one-thread runs at once as cores, the slow
  fusions off, the best token budget of a sweep. Over our packed graph, and over transformers' own padded export.
"""

from __future__ import annotations

import importlib.util
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from quadrate.config.worker import usable_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from quadrate.runtime.engine import Model
    from quadrate.runtime.packing import Reading

    Array = NDArray[np.float32]
    Encode = Callable[[Sequence[str]], Array]
    Read = Callable[[Sequence[str]], list[Reading]]

BUDGETS = (128, 192, 256, 384, 512, 1024)
SLOW_FUSIONS = ["SkipLayerNormFusion", "EmbedLayerNormFusion"]
BACKENDS = {"onnx": "optimum.onnxruntime", "openvino": "optimum.intel"}
"""The package that each backend of sentence-transformers needs."""


@dataclass(frozen=True, slots=True)
class Loop:
    """A runtime over hand-sorted batches, one one-thread run for each core at once."""

    run: Callable[[list[Reading]], Array]

    def vectors(self, readings: Sequence[Reading], budget: int) -> Array:
        """Return the vectors of all texts, in their order."""
        batches = sorted_batches(readings, budget)
        with ThreadPoolExecutor(usable_cores()) as threads:
            made = np.concatenate(list(threads.map(lambda places: self.run([readings[place] for place in places]), batches)))
        found = np.empty_like(made)
        found[np.concatenate(batches)] = made
        return found

    def best(self, readings: Sequence[Reading]) -> int:
        """Return the budget that was fastest, each tried twice."""
        return min(BUDGETS, key=lambda budget: min(self._seconds(readings, budget) for _ in range(2)))

    def _seconds(self, readings: Sequence[Reading], budget: int) -> float:
        started = time.perf_counter()
        self.vectors(readings, budget)
        return time.perf_counter() - started


def sorted_batches(readings: Sequence[Reading], budget: int) -> list[list[int]]:
    """Cut texts, sorted by length, into runs of at most `budget` tokens; return their places."""
    batches: list[list[int]] = [[]]
    tokens = 0
    for place in sorted(range(len(readings)), key=lambda place: len(readings[place])):
        if batches[-1] and tokens + len(readings[place]) > budget:
            batches.append([])
            tokens = 0
        batches[-1].append(place)
        tokens += len(readings[place])
    return batches


def packed_loop(model: Model) -> Loop:
    """Return the loop over our own graph."""
    return Loop(lambda readings: np.stack(model.session.run(readings, ["unit"], wide=False)["unit"]))


def padded_loop(model: Model, folder: Path) -> Loop:
    """Return the loop over transformers' own export; needs torch."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = _session(exported(model.facts.path, folder), options, disabled_optimizers=SLOW_FUSIONS)
    return Loop(lambda readings: _padded(session, readings))


def as_fastembed(model: Model, folder: Path, read: Read) -> Encode:
    """Return an encoder that calls ONNX Runtime as fastembed 0.7 does by itself (`TextEmbedding.embed`); needs torch for the export."""
    session = _session(exported(model.facts.path, folder), onnxruntime.SessionOptions())
    return lambda texts: np.concatenate([_padded(session, read(texts[start : start + 256])) for start in range(0, len(texts), 256)])


def as_infinity(model: Model, folder: Path, read: Read) -> Encode:
    """Return an encoder that calls ONNX Runtime as infinity 0.0.78 does with its `optimum` engine; needs torch for the export."""
    session = _session(exported(model.facts.path, folder), onnxruntime.SessionOptions())

    def encode(texts: Sequence[str]) -> Array:
        readings = read(texts)
        order = sorted(range(len(texts)), key=lambda place: len(readings[place]))
        found: list[Any] = [None] * len(texts)
        for start in range(0, len(order), 32):
            places = order[start : start + 32]
            for place, vector in zip(places, _padded(session, [readings[place] for place in places]), strict=True):
                found[place] = vector
        return np.stack(found)

    return encode


def sentence_transformers(model: Model, kind: str) -> Encode:
    """Return sentence-transformers itself.

    Args:
        model: Whose folder it reads.
        kind: `fp32`, `bf16`, `onnx` or `openvino`.

    Raises ImportError where it, or the package of its backend, is not installed.
    """
    import sentence_transformers as library  # noqa: PLC0415 - only where the parity extra is

    if kind in BACKENDS and importlib.util.find_spec(BACKENDS[kind].partition(".")[0]) is None:
        raise ImportError(f"the backend {kind} needs {BACKENDS[kind]}")
    more: dict[str, Any] = {"backend": kind} if kind in BACKENDS else {}
    if kind == "bf16":
        more = {"model_kwargs": {"dtype": "bfloat16"}}
    loaded = library.SentenceTransformer(str(model.facts.path), device="cpu", **more)
    return lambda texts: np.asarray(loaded.encode(list(texts), batch_size=32, normalize_embeddings=True), np.float32)


def _session(path: Path, options: onnxruntime.SessionOptions, **more: Any) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"], **more)


def _padded(session: onnxruntime.InferenceSession, readings: Sequence[Reading]) -> Array:
    ids = np.zeros((len(readings), max(map(len, readings))), np.int64)
    mask = np.zeros_like(ids)
    for place, reading in enumerate(readings):
        ids[place, : len(reading)] = reading.ids
        mask[place, : len(reading)] = 1
    found: Array = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
    return found


@cache
def exported(path: Path, folder: Path) -> Path:
    """Write transformers' own graph, with mean pooling and length one behind it, into `folder`; return the file. Needs torch."""
    import torch  # noqa: PLC0415 - only where the parity extra is
    import transformers  # noqa: PLC0415

    class Pooled(torch.nn.Module):  # type: ignore[misc]  # torch may not be there for the type checker
        def __init__(self) -> None:
            super().__init__()
            self.body = transformers.AutoModel.from_pretrained(path, attn_implementation="eager").eval()

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            states = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            kept = attention_mask.unsqueeze(-1).to(states.dtype)
            return torch.nn.functional.normalize((states * kept).sum(1) / kept.sum(1), dim=1)

    names, target = ["input_ids", "attention_mask"], folder / "padded.onnx"
    axes = {name: {0: "texts", 1: "tokens"} for name in names}
    example = tuple(torch.ones(2, 7, dtype=torch.long) for _ in names)
    torch.onnx.export(Pooled(), example, str(target), input_names=names, dynamic_axes=axes, opset_version=17, dynamo=False)
    return target
