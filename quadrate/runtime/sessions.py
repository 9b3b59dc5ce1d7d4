"""ONNX Runtime sessions over a graph, and the null session for measuring everything else.

A model has two: *narrow* runs use one thread each, and as many of them go on at once as there are cores, which on a CPU gives 15 to 25 %
more than one run over all cores. A lone request goes to the *wide* session, which uses all cores for one run. The word table and whatever
else is used as it lies in the file is shared between them and with other processes; what ONNX Runtime packs for its kernels is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import onnxruntime

from quadrate.errors import ConfigError
from quadrate.runtime.packing import Layout, pack

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from quadrate.config.worker import Device
    from quadrate.runtime.graphs import Form, Graph
    from quadrate.runtime.packing import Reading

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
NULL = "NullExecutionProvider"

# Slower than the operators they replace: three times for the first (ONNX Runtime 1.31, CPU).
_SLOW_FUSIONS = ["SkipLayerNormFusion", "EmbedLayerNormFusion"]


class Session(Protocol):
    """What the scheduler runs batches on. `run` may be called from several threads at once."""

    provider: str

    def run(self, readings: Sequence[Reading], outputs: Sequence[str], *, wide: bool) -> Mapping[str, Sequence[NDArray[np.float32]]]:
        """Return for each output one array for each text, in order. Any exception means that the session is broken."""

    def close(self) -> None:
        """Let go of everything; called when no run is under way, and none follows."""


def provider_for(device: Device) -> str:
    """Return the execution provider for a device. Raises ConfigError if it is not to be had: nothing falls back in silence."""
    available = onnxruntime.get_available_providers()
    if device == "cpu" or (device == "auto" and CUDA not in available):
        return CPU
    if CUDA not in available:
        raise ConfigError(
            f"device gpu is asked for, and this ONNX Runtime {onnxruntime.__version__} has only {', '.join(available)}. "
            "Install onnxruntime-gpu, or set the device to cpu or auto."
        )
    return CUDA


class OnnxSession:
    """A graph on ONNX Runtime.

    Args:
        graph: What runs.
        provider: Its execution provider; that it is really used is checked.
        threads: Cores for a lone run. With 1 there is no wide session.

    Raises ConfigError if the provider cannot run the graph.
    """

    def __init__(self, graph: Graph, provider: str, *, threads: int) -> None:
        self.provider = provider
        self._inputs = graph.inputs
        self._forms = graph.outputs
        self._narrow = _open(graph, provider, threads=1)
        self._wide = _open(graph, provider, threads=threads) if threads > 1 and provider == CPU else self._narrow

    def run(self, readings: Sequence[Reading], outputs: Sequence[str], *, wide: bool) -> Mapping[str, Sequence[NDArray[np.float32]]]:
        """See Session."""
        feeds, layout = pack(readings, self._inputs)
        session = self._wide if wide else self._narrow
        results = session.run(outputs, feeds)
        return {name: rows(result, self._forms[name], layout) for name, result in zip(outputs, results, strict=True)}

    def close(self) -> None:
        """See Session."""
        del self._narrow, self._wide


def rows(result: NDArray[np.float32], form: Form, layout: Layout) -> Sequence[NDArray[np.float32]]:
    """Return an output as one array for each text: `[width]`, or `[tokens, width]` where it has a row for each token."""
    return list(result) if form.per == "text" else np.split(result, layout.bounds[1:-1])


class NullSession:
    """Answers at once with values that depend on the text's length alone. For measuring what is around a model, never for serving.

    Args:
        forms: The graph's outputs.
    """

    provider = NULL

    def __init__(self, forms: Mapping[str, Form]) -> None:
        self._forms = forms

    def run(
        self,
        readings: Sequence[Reading],
        outputs: Sequence[str],
        *,
        wide: bool,  # noqa: ARG002 - as every session
    ) -> Mapping[str, Sequence[NDArray[np.float32]]]:
        """See Session."""
        return {name: [self._rows(name, len(reading)) for reading in readings] for name in outputs}

    def close(self) -> None:
        """See Session."""

    def _rows(self, output: str, tokens: int) -> NDArray[np.float32]:
        form = self._forms[output]
        shape = (form.width,) if form.per == "text" else (tokens, form.width)
        return np.full(shape, form.width**-0.5, np.float32)


def _open(graph: Graph, provider: str, *, threads: int) -> onnxruntime.InferenceSession:
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
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.folder))
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in graph.computed.items()}
    if values:
        options.add_external_initializers(list(values), list(values.values()))
    try:
        session = onnxruntime.InferenceSession(graph.proto, options, providers=[provider], disabled_optimizers=_SLOW_FUSIONS)
    except Exception as error:  # the library's exceptions share no base of their own
        raise ConfigError(f"{graph.folder}: {provider} cannot open the model: {error}") from error
    if session.get_providers()[0] != provider:
        raise ConfigError(
            f"{graph.folder}: {provider} was asked for, {session.get_providers()[0]} would be used; the worker does not start."
        )
    return session
