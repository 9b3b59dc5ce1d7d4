"""OpenVINO on the CPU, in bfloat16: the same graph, whose products and everything between them have 8 bits of mantissa, sums 24."""

from __future__ import annotations

import contextlib
import math
import mmap
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import openvino

from quadrate.cores import give_way
from quadrate.errors import ConfigError
from quadrate.runtime.jobs import LONG, NICENESS, SHORT
from quadrate.runtime.packing import Reading, Steps, pack
from quadrate.runtime.sessions.session import rows
from quadrate.runtime.sessions.way import OPENVINO

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from quadrate.runtime.graphs import Graph

STEPS = Steps(tokens=8, places=4)
"""Kernels are made for each shape, which costs a run 5 %; so shapes are rounded."""
KERNELS = 256
"""So many kernels are kept. With OpenVINO's own 5,000, free lengths fill a gigabyte within minutes."""
KEPT_TOKENS = 2048
"""What a run of more needs is given back behind it."""
LONG_TOKENS = 1024
"""A run of more goes where lone requests go: over all cores, if the model is small."""
WARM_TOKENS = 8
LONG_MODEL_BYTES = 2**30
"""The most weights that are packed once more for long texts."""
WIDE_MODEL_BYTES = 2**28
"""The most weights that are packed once more for a run over all cores."""


class OpenVinoSession:
    """A graph on OpenVINO.

    OpenVINO runs on threads of its own, no more than there are cores, whatever the priority of the thread that calls. So long texts have a
    compiled model of their own, whose threads yield to those of short texts. A run over all cores yields like them, also that of a lone
    short text, since very long texts share its model. The largest models are compiled once: there a short text may wait for the end of one
    run of a long one.

    Args:
        graph: What runs, written in float32.
        threads: Cores of the model: so many runs at once, each on one. A lone run has all of them if the model is small.

    Raises ConfigError if OpenVINO cannot run the graph.
    """

    provider = OPENVINO

    def __init__(self, graph: Graph, *, threads: int) -> None:
        self._inputs = graph.inputs
        self._forms = graph.outputs
        self._weights = _Weights(graph)
        try:
            core = openvino.Core()
            model = _read(core, graph.proto, self._weights.arrays)
            requests = partial(_Requests, core, model, threads=threads)
            has_long, has_wide = graph.weight_bytes <= LONG_MODEL_BYTES, graph.weight_bytes <= WIDE_MODEL_BYTES and threads > 1
            # Those that yield first: the first one starts the threads that help others to compile, and helpers must keep nobody waiting.
            self._wide = requests(streams=1, niceness=NICENESS[LONG]) if has_wide else None
            long = requests(streams=threads, niceness=NICENESS[LONG]) if has_long else None
            self._narrow = requests(streams=threads, niceness=NICENESS[SHORT])
            self._long = long or self._narrow
        except RuntimeError as error:
            raise ConfigError(f"{graph.folder}: OpenVINO cannot open the model: {error}") from error
        # Very long texts run one at a time over all cores, or each on one; where short ones have no other model, they are left a thread.
        self._room = threading.Semaphore(1 if has_wide else threads if has_long else max(1, threads - 1))
        self._warm()

    def run(
        self, readings: Sequence[Reading], outputs: Sequence[str], *, wide: bool, is_long: bool = False
    ) -> Mapping[str, Sequence[NDArray[np.float32]]]:
        """See Session."""
        feeds, layout = pack(readings, self._inputs, STEPS)
        with self._model(layout.tokens, wide=wide, is_long=is_long) as model:
            results = model.run(feeds, outputs)
        return {name: rows(result, self._forms[name], layout) for name, result in zip(outputs, results, strict=True)}

    @contextlib.contextmanager
    def _model(self, tokens: int, *, wide: bool, is_long: bool) -> Iterator[_Requests]:
        """Give the model that a run of so many tokens goes to: a very long one waits for its turn, a lone one does not."""
        own, is_very_long = self._long if is_long else self._narrow, tokens > LONG_TOKENS
        needs_room = is_very_long or (wide and self._wide is not None)
        if not (needs_room and self._room.acquire(blocking=is_very_long)):
            yield own
            return
        try:
            yield self._wide or own
        finally:
            self._room.release()

    def _warm(self) -> None:
        """Run each model once, so that weights are packed before the first request, and let go of the pages that only packing touched."""
        for wide, is_long in ((False, False), (False, True), (True, False)):
            self.run([Reading.of(np.zeros(WARM_TOKENS, np.int32))], list(self._forms), wide=wide, is_long=is_long)
        self._weights.release()

    def close(self) -> None:
        """See Session."""
        del self._narrow, self._wide, self._long, self._weights


class _Requests:
    """A compiled model and its requests, one for each run that may go on at once; each keeps what its runs need."""

    def __init__(self, core: Any, model: Any, *, streams: int, threads: int, niceness: int) -> None:
        self._model = _compile(core, model, streams=streams, threads=threads, niceness=niceness)
        self._is_swollen = False
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(streams):
            self._free.put(self._model.create_infer_request())

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> list[NDArray[np.float32]]:
        request = self._free.get()
        try:
            request.infer(dict(feeds), share_inputs=True)
            return [np.array(request.get_tensor(name).data) for name in outputs]
        finally:
            self._free.put(request)
            self._is_swollen |= len(feeds["ids"]) > KEPT_TOKENS
            if self._is_swollen:
                self._shrink()

    def _shrink(self) -> None:
        """Give back what a long run needed, if nothing runs at this moment; else after the next run."""
        with contextlib.suppress(RuntimeError):
            self._model.release_memory()
            self._is_swollen = False


class _Weights:
    """The large weights of a graph by name; those in a file are mapped, and share its pages with all who read it."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._maps: dict[str, mmap.mmap] = {}
        constants = onnx.load_from_string(graph.proto).graph.initializer
        self.arrays = {constant.name: self._array(constant) for constant in constants if constant.external_data}

    def release(self) -> None:
        """Let go of the pages read so far; they come back from the file when they are touched again."""
        for mapping in self._maps.values():
            mapping.madvise(mmap.MADV_DONTNEED)

    def _array(self, constant: onnx.TensorProto) -> NDArray[Any]:
        if constant.name in self._graph.computed:
            return self._graph.computed[constant.name]
        place = {entry.key: entry.value for entry in constant.external_data}
        dtype = onnx.helper.tensor_dtype_to_np_dtype(constant.data_type)
        flat = np.frombuffer(self._map(place["location"]), dtype, math.prod(constant.dims), int(place["offset"]))
        return flat.reshape(constant.dims)

    def _map(self, name: str) -> mmap.mmap:
        if name not in self._maps:
            with (self._graph.folder / name).open("rb") as file:
                # Copy on write: OpenVINO takes only arrays that could be written to. Nothing writes, so the pages stay those of the file.
                self._maps[name] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[name]


def _read(core: Any, proto: bytes, weights: Mapping[str, NDArray[Any]]) -> Any:
    """Read the graph with its large weights as inputs, then put the arrays in their place: its own reader would copy them."""
    graph = onnx.load_from_string(proto)
    small = [tensor for tensor in graph.graph.initializer if tensor.name not in weights]
    large = [tensor for tensor in graph.graph.initializer if tensor.name in weights]
    graph.graph.input.extend(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in large)
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(small)
    model = core.read_model(graph.SerializeToString())
    for parameter in model.get_parameters():
        name = parameter.get_friendly_name()
        if name in weights:
            constant = openvino.op.Constant(weights[name], shared_memory=True)
            parameter.output(0).replace(constant.output(0))
            model.remove_parameter(parameter)
    return model


def _compile(core: Any, model: Any, *, streams: int, threads: int, niceness: int) -> Any:
    options = {
        "INFERENCE_PRECISION_HINT": "bf16",
        "NUM_STREAMS": str(streams),
        "INFERENCE_NUM_THREADS": str(threads),
        # Pinned threads of two workers would sit on the same cores.
        "ENABLE_CPU_PINNING": False,
        "CPU_RUNTIME_CACHE_CAPACITY": str(KERNELS),
    }
    # The threads of a model have the niceness of the one that compiles it.
    with ThreadPoolExecutor(1, initializer=give_way, initargs=(niceness,)) as thread:
        return thread.submit(core.compile_model, model, "CPU", options).result()
