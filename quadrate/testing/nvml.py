"""A stand-in for pynvml, for machines without a GPU: the functions that `quadrate.runtime.gpus` asks, over described GPUs."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class NVMLError(Exception):
    """What the driver refuses; pynvml's errors are named so."""


@dataclass(slots=True)
class FakeGpu:
    """One GPU, or one slice of one.

    Attributes:
        pcie: Generation and width now, and at most; None if the driver does not tell.
        mig: Its slices; None where MIG is off.
        nvlinks: For each NVLink that is up, the PCI address at its far end, or "switch".
        ways: By index of another GPU, the level of their common ancestor.
    """

    uuid: str
    name: str = "NVIDIA H200"
    bus: str = "00000000:18:00.0"
    memory_bytes: int = 140 * 2**30
    used_bytes: int = 2**30
    pcie: tuple[int, int, int, int] | None = (5, 16, 5, 16)
    mig: Sequence[FakeGpu] | None = None
    nvlinks: Sequence[str] = ()
    ways: Mapping[str, int] = field(default_factory=dict)


class FakeNvml:
    """The functions and constants of pynvml. `opened` counts sessions that were not closed."""

    NVMLError = NVMLError
    NVML_DEVICE_MIG_ENABLE = 1
    NVML_FEATURE_ENABLED = 1
    NVML_NVLINK_DEVICE_TYPE_SWITCH = 2
    NVML_TOPOLOGY_INTERNAL, NVML_TOPOLOGY_SINGLE, NVML_TOPOLOGY_MULTIPLE = 0, 10, 20
    NVML_TOPOLOGY_HOSTBRIDGE, NVML_TOPOLOGY_NODE, NVML_TOPOLOGY_SYSTEM = 30, 40, 50

    def __init__(self, gpus: Sequence[FakeGpu] = (), *, driver: str | None = "580.95.05") -> None:
        self._gpus = gpus
        self._driver = driver
        self.opened = 0

    def nvmlInit(self) -> None:  # noqa: N802 - pynvml's names
        """Open a session; refused without a driver."""
        if self._driver is None:
            raise NVMLError("Driver Not Loaded")
        self.opened += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        """Close it."""
        self.opened -= 1

    def __getattr__(self, name: str) -> Any:
        """Return any other function of pynvml that is known here."""
        if name not in _ANSWERS:
            raise AttributeError(name)
        return lambda *arguments: _ANSWERS[name](self, *arguments)


def _count(fake: Any) -> int:
    return len(fake._gpus)  # noqa: SLF001 - one module


def _slice(_: Any, gpu: FakeGpu, place: int) -> FakeGpu:
    if gpu.mig is None or place >= len(gpu.mig):
        raise NVMLError("Not Found")
    return gpu.mig[place]


def _mig_mode(_: Any, gpu: FakeGpu) -> list[int]:
    if gpu.pcie is None:
        raise NVMLError("Not Supported")
    return [int(gpu.mig is not None)] * 2


def _pcie(place: int) -> Any:
    def answer(_: Any, gpu: FakeGpu) -> int:
        if gpu.pcie is None:
            raise NVMLError("Not Supported")
        return gpu.pcie[place]

    return answer


def _link_state(_: Any, gpu: FakeGpu, link: int) -> int:
    if not gpu.nvlinks:
        raise NVMLError("Not Supported")
    return int(link < len(gpu.nvlinks))


_ANSWERS: Mapping[str, Any] = {
    "nvmlSystemGetDriverVersion": lambda fake: fake._driver,  # noqa: SLF001
    "nvmlDeviceGetCount": _count,
    "nvmlDeviceGetHandleByIndex": lambda fake, index: fake._gpus[index],  # noqa: SLF001
    "nvmlDeviceGetUUID": lambda _, gpu: gpu.uuid,
    "nvmlDeviceGetName": lambda _, gpu: gpu.name,
    "nvmlDeviceGetMemoryInfo": lambda _, gpu: SimpleNamespace(total=gpu.memory_bytes, used=gpu.used_bytes),
    "nvmlDeviceGetPciInfo": lambda _, gpu: SimpleNamespace(busId=gpu.bus),
    "nvmlDeviceGetMigMode": _mig_mode,
    "nvmlDeviceGetMaxMigDeviceCount": lambda _, gpu: 7,  # noqa: ARG005
    "nvmlDeviceGetMigDeviceHandleByIndex": _slice,
    "nvmlDeviceGetCurrPcieLinkGeneration": _pcie(0),
    "nvmlDeviceGetCurrPcieLinkWidth": _pcie(1),
    "nvmlDeviceGetMaxPcieLinkGeneration": _pcie(2),
    "nvmlDeviceGetMaxPcieLinkWidth": _pcie(3),
    "nvmlDeviceGetNvLinkState": _link_state,
    "nvmlDeviceGetNvLinkRemoteDeviceType": lambda _, gpu, link: 2 if gpu.nvlinks[link] == "switch" else 0,
    "nvmlDeviceGetNvLinkRemotePciInfo": lambda _, gpu, link: SimpleNamespace(busId=gpu.nvlinks[link].encode()),
    "nvmlDeviceGetTopologyCommonAncestor": lambda _, one, other: one.ways[other.uuid],
}
