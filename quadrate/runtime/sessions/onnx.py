"""ONNX Runtime on the CPU.

A model has two sessions: *narrow* runs use one thread each, and as many of them go on at once as there are cores, which gives 15 to 25 %
more than one run over all cores. A lone request goes to the *wide* session, which uses all cores for one run. The word table and whatever
else is used as it lies in the file is shared between them and with other processes; what ONNX Runtime packs for its kernels is not. So a
large model has one session over all cores for both, which costs 5 % of the throughput and saves the second packing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnxruntime

from quadrate.errors import ConfigError
from quadrate.runtime.packing import pack
from quadrate.runtime.sessions.session import rows
from quadrate.runtime.sessions.way import CPU

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from quadrate.runtime.graphs import Graph
    from quadrate.runtime.packing import Reading

TWO_SESSIONS_BYTES = 2**30
"""The most weights that are packed twice."""

# Slower than the operators they replace: three times for the first (ONNX Runtime 1.31, CPU).
_SLOW_FUSIONS = ["SkipLayerNormFusion", "EmbedLayerNormFusion"]


class OnnxSession:
    """A graph on ONNX Runtime.

    Args:
        graph: What runs.
        provider: Its execution provider; that it is really used is checked.
        threads: Cores of the model. With 1 there is no wide session.

    Raises ConfigError if the provider cannot run the graph.
    """

    def __init__(self, graph: Graph, provider: str = CPU, *, threads: int) -> None:
        self.provider = provider
        self._inputs = graph.inputs
        self._forms = graph.outputs
        is_large = graph.weight_bytes > TWO_SESSIONS_BYTES
        self._narrow = open_graph(graph, provider, cpu_options(threads if is_large else 1))
        self._wide = self._narrow if is_large or threads == 1 else open_graph(graph, provider, cpu_options(threads))

    def run(
        self, readings: Sequence[Reading], outputs: Sequence[str], *, wide: bool, is_long: bool = False
    ) -> Mapping[str, Sequence[NDArray[np.float32]]]:
        """See Session."""
        feeds, layout = pack(readings, self._inputs)
        session = self._wide if wide else self._narrow
        results = session.run(outputs, feeds)
        return {name: rows(result, self._forms[name], layout) for name, result in zip(outputs, results, strict=True)}

    def close(self) -> None:
        """See Session."""
        del self._narrow, self._wide


def cpu_options(threads: int) -> onnxruntime.SessionOptions:
    """Return the options of a session whose runs have so many threads each."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Lengths are free: a pattern kept for every shape that ever came would grow without end.
    options.enable_mem_pattern = False
    # Nor may an arena: see quadrate.runtime.memory.
    options.enable_cpu_mem_arena = False
    # A pool that spins takes the cores from the event loop and from narrow runs between two operators.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def open_graph(
    graph: Graph, provider: str, options: onnxruntime.SessionOptions, provider_options: Mapping[str, str] | None = None
) -> onnxruntime.InferenceSession:
    """Open a session over a graph. Raises ConfigError if the provider cannot run it, or another would be used."""
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.folder))
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in graph.computed.items()}
    if values:
        options.add_external_initializers(list(values), list(values.values()))
    providers: list[Any] = [(provider, dict(provider_options or {}))]
    try:
        session = onnxruntime.InferenceSession(graph.proto, options, providers=providers, disabled_optimizers=_SLOW_FUSIONS)
    except Exception as error:  # the library's exceptions share no base of their own
        raise ConfigError(f"{graph.folder}: {provider} cannot open the model: {error}") from error
    if session.get_providers()[0] != provider:
        raise ConfigError(
            f"{graph.folder}: {provider} was asked for, {session.get_providers()[0]} would be used; the worker does not start."
        )
    return session
