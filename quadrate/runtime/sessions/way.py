"""How a class of precision is given on a device: decided before anything is loaded, and refused where it cannot be given.

| class | CPU | GPU |
|---|---|---|
| `exact` | ONNX Runtime, float32 | ONNX Runtime, float32 without TF32 |
| `fast` | OpenVINO, the same graph in bfloat16; needs the extra `openvino` and a processor with AVX512_BF16 or AMX | float16 |
| `small` | ONNX Runtime, 8-bit products with a scale for each token; needs a processor with VNNI | not given |
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, get_args

import onnxruntime

from quadrate.config.worker import Precision
from quadrate.errors import ConfigError
from quadrate.runtime import processor
from quadrate.runtime.sessions import gpu as gpus
from quadrate.runtime.sessions.gpu import Gpu

if TYPE_CHECKING:
    from quadrate.config.worker import Device
    from quadrate.runtime.graphs.builder import Arithmetic, Kernels

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
OPENVINO = "OpenVINO"

_KERNELS: dict[str, Kernels] = {CPU: "onnxruntime", OPENVINO: "openvino"}
_INT8 = frozenset(("avx512_vnni", "avx_vnni"))


@dataclass(frozen=True, slots=True)
class Way:
    """What runs a graph.

    Attributes:
        precision: The class of precision.
        provider: What answers name as their provider.
        arithmetic: How the graph's products are written.
        gpu: The card, with CUDA.
    """

    precision: Precision
    provider: str
    arithmetic: Arithmetic
    gpu: Gpu = field(default_factory=Gpu)

    @property
    def kernels(self) -> Kernels:
        """Whose kernels the graph's attention is written for."""
        return _KERNELS.get(self.provider, "none")


def choose(device: Device, precision: Precision, *, gpu_memory_bytes: int = 0) -> Way:
    """Return how a worker gives a class of precision on a device.

    Args:
        device: `auto`, `cpu`, `gpu`, or `gpu:` and a number or UUID.
        precision: The class.
        gpu_memory_bytes: The most that a GPU session takes; 0 for no limit.

    Raises ConfigError if the device is not to be had or cannot give the class: nothing falls back in silence.
    """
    if _is_on_gpu(device):
        return _on_gpu(Gpu(gpus.ordinal(device), gpu_memory_bytes), precision)
    if precision == "fast":
        _check_bfloat16()
        return Way(precision, OPENVINO, "float32")
    if precision == "small":
        _check_int8()
        return Way(precision, CPU, "int8")
    return Way(precision, CPU, "float32")


def given(device: Device = "auto") -> dict[Precision, str]:
    """Return for each class of precision what would run it on a device, or the reason why nothing can."""
    return {precision: _provider_or_reason(device, precision) for precision in get_args(Precision)}


def _provider_or_reason(device: Device, precision: Precision) -> str:
    try:
        return choose(device, precision).provider
    except ConfigError as reason:
        return f"no: {reason}"


def _is_on_gpu(device: Device) -> bool:
    available = onnxruntime.get_available_providers()
    if device == "auto":
        return CUDA in available and gpus.count() > 0
    if device == "cpu":
        return False
    if CUDA not in available:
        raise ConfigError(
            f"device {device} is asked for, and this ONNX Runtime {onnxruntime.__version__} has only {', '.join(available)}. "
            "Install quadrate[gpu] in place of quadrate[cpu], or set the device to cpu or auto."
        )
    return True


def _on_gpu(gpu: Gpu, precision: Precision) -> Way:
    if precision == "small":
        raise ConfigError("precision small is not given on a GPU; set the precision to fast, or the device to cpu.")
    return Way(precision, CUDA, "float16" if precision == "fast" else "float32", gpu)


def _check_bfloat16() -> None:
    if importlib.util.find_spec("openvino") is None:
        raise ConfigError(
            "precision fast on a CPU needs OpenVINO, which is not installed: `make install-openvino` in a checkout, or "
            "pip install 'quadrate[openvino]'. Without it: small or exact."
        )
    if "BF16" not in _openvino_capabilities():
        raise ConfigError(
            "precision fast on a CPU needs bfloat16 instructions (AVX512_BF16 or AMX), which this processor does not have. "
            "Set the precision to small or exact."
        )


def _check_int8() -> None:
    if not _INT8 & processor.instructions():
        raise ConfigError(
            "precision small needs 8-bit dot products (AVX512_VNNI or AVX_VNNI), which this processor does not have. "
            "Set the precision to exact."
        )


@cache
def _openvino_capabilities() -> frozenset[str]:
    import openvino  # noqa: PLC0415 - an extra, and slow to import

    return frozenset(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
