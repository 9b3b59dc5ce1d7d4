"""Sessions: what a graph runs on. Which one a worker has is decided once, by device and class of precision, and never falls back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quadrate.runtime.sessions.null import NULL, NullSession
from quadrate.runtime.sessions.onnx import OnnxSession
from quadrate.runtime.sessions.session import AGREEMENT, LOWEST_COSINE, Session
from quadrate.runtime.sessions.way import CPU, CUDA, OPENVINO, Way, choose, given

if TYPE_CHECKING:
    from quadrate.runtime.graphs import Graph

__all__ = [
    "AGREEMENT",
    "CPU",
    "CUDA",
    "LOWEST_COSINE",
    "NULL",
    "OPENVINO",
    "NullSession",
    "OnnxSession",
    "Session",
    "Way",
    "choose",
    "given",
    "open_session",
]


def open_session(graph: Graph, way: Way, *, threads: int) -> Session:
    """Open the session that `way` says over a graph that was written in the way's arithmetic.

    Args:
        graph: What runs.
        way: From `choose`.
        threads: Cores of the model, on a CPU: so many runs at once.

    Raises ConfigError if the provider cannot run the graph.
    """
    if way.provider == OPENVINO:
        from quadrate.runtime.sessions.openvino import OpenVinoSession  # noqa: PLC0415 - an extra, and slow to import

        return OpenVinoSession(graph, threads=threads)
    if way.provider == CUDA:
        from quadrate.runtime.sessions.cuda import CudaSession  # noqa: PLC0415 - only where there is a GPU

        return CudaSession(graph, way.gpu)
    return OnnxSession(graph, CPU, threads=threads)
