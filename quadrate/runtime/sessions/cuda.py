"""ONNX Runtime on a GPU: inputs and outputs bound to its memory, an arena with a limit, common lengths run before the first request."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from quadrate.runtime.packing import Reading, pack
from quadrate.runtime.sessions.onnx import open_graph
from quadrate.runtime.sessions.session import rows
from quadrate.runtime.sessions.way import CUDA

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from quadrate.runtime.graphs import Graph
    from quadrate.runtime.sessions.gpu import Gpu

WARM_TOKENS = (8, 32, 128, 512)
"""Lengths run at the start, alone and four together: kernels are loaded and chosen when a shape first comes, which takes up to a second."""


class CudaSession:
    """A graph on a GPU. Wide and narrow runs are the same there.

    Args:
        graph: What runs.
        gpu: Where.

    Raises ConfigError if the GPU cannot run the graph.
    """

    provider = CUDA

    def __init__(self, graph: Graph, gpu: Gpu) -> None:
        self._inputs = graph.inputs
        self._forms = graph.outputs
        self._ordinal = gpu.ordinal
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        self._session = open_graph(graph, CUDA, session_options(), provider_options(gpu))
        self._warm()

    def run(
        self, readings: Sequence[Reading], outputs: Sequence[str], *, wide: bool, is_long: bool = False
    ) -> Mapping[str, Sequence[NDArray[np.float32]]]:
        """See Session."""
        feeds, layout = pack(readings, self._inputs)
        results = run_bound(self._session, feeds, outputs, "cuda", self._ordinal)
        return {name: rows(result, self._forms[name], layout) for name, result in zip(outputs, results, strict=True)}

    def close(self) -> None:
        """See Session."""
        del self._session

    def _warm(self) -> None:
        for tokens in WARM_TOKENS:
            reading = Reading.of(np.zeros(tokens, np.int32))
            for texts in (1, 4):
                self.run([reading] * texts, list(self._forms), wide=False)


def session_options() -> onnxruntime.SessionOptions:
    """Return the options of a session on a GPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # lengths are free
    return options


def provider_options(gpu: Gpu) -> dict[str, str]:
    """Return the options of the CUDA provider."""
    options = {
        "device_id": str(gpu.ordinal),
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0",  # float32 is float32: TF32 has ten bits
    }
    if gpu.memory_bytes:
        options["gpu_mem_limit"] = str(gpu.memory_bytes)
    return options


def run_bound(
    session: onnxruntime.InferenceSession, feeds: Mapping[str, NDArray[np.generic]], outputs: Sequence[str], device: str, ordinal: int
) -> list[NDArray[np.float32]]:
    """Run with inputs and outputs in a device's memory, so that each crosses once; return the outputs."""
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, device, ordinal))
    for name in outputs:
        binding.bind_output(name, device, ordinal)
    session.run_with_iobinding(binding)
    found: list[NDArray[np.float32]] = binding.copy_outputs_to_cpu()
    return found
