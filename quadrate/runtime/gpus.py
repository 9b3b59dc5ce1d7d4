"""The NVIDIA GPUs of this machine and how they are joined, as NVML tells (https://docs.nvidia.com/deploy/nvml-api/).

A machine without a driver has none: that is an answer, not an error. What a driver does not tell of a GPU, for example NVLink on a card
without it, is left out.
"""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

MIB = 2**20
_MOST_LINKS = 36
"""NVLinks that a GPU is asked for; NVML has no more (NVML_NVLINK_MAX_LINKS)."""
_SWITCH = "switch"


@dataclass(frozen=True, slots=True)
class MigSlice:
    """A slice of a GPU: what `EMBED_DEVICE=gpu:<uuid>` names."""

    uuid: str
    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Attributes:
        index: Its number, as NVML and `gpu:<index>` count.
        uuid: Its name for good.
        name: The product.
        memory_bytes: All of its memory.
        used_bytes: Of that, what is taken.
        pcie: How it is joined to the host, for example "PCIe 5 x16"; with "(of …)" if it runs below what it could. Empty if not told.
        mig: Its slices; empty where MIG is off.
        is_mig: Whether MIG is on: then only slices can be used.
        links: By index of another GPU, how the way there goes, for example "NV18" for 18 NVLinks, or "PHB" (see WAYS).
    """

    index: int
    uuid: str
    name: str
    memory_bytes: int
    used_bytes: int
    pcie: str
    is_mig: bool
    mig: Sequence[MigSlice]
    links: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Gpus:
    """All GPUs of the machine, or why there are none."""

    driver: str
    gpus: Sequence[Gpu]
    reason: str = ""


WAYS: Mapping[str, str] = {
    "NV#": "so many NVLinks",
    "PIX": "one PCIe switch",
    "PXB": "several PCIe switches",
    "PHB": "the processor's PCIe root",
    "NODE": "several roots of one memory node",
    "SYS": "the way between processors",
}
"""What stands in the matrix of ways, from the shortest to the longest; the words of `nvidia-smi topo`."""


def find(nvml: Any = None) -> Gpus:
    """Return the machine's GPUs. `nvml` is the module that asks the driver, pynvml unless another is given."""
    try:
        asked = nvml or importlib.import_module("pynvml")
    except ImportError:
        return Gpus("", (), "nvidia-ml-py is not installed, so GPUs cannot be looked for.")
    try:
        with _session(asked):
            return _found(asked)
    except asked.NVMLError as error:
        return Gpus("", (), f"no NVIDIA driver answers ({error}).")


@contextmanager
def _session(nvml: Any) -> Iterator[None]:
    nvml.nvmlInit()
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def _found(nvml: Any) -> Gpus:
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    gpus = [_gpu(nvml, index, handles) for index in range(len(handles))]
    return Gpus(_text(nvml.nvmlSystemGetDriverVersion()), gpus, "" if gpus else "the driver knows of no GPU.")


def _gpu(nvml: Any, index: int, handles: Sequence[Any]) -> Gpu:
    handle = handles[index]
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    is_mig = _told(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle)[0], 0) == nvml.NVML_DEVICE_MIG_ENABLE
    return Gpu(
        index=index,
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        name=_text(nvml.nvmlDeviceGetName(handle)),
        memory_bytes=int(memory.total),
        used_bytes=int(memory.used),
        pcie=_pcie(nvml, handle),
        is_mig=is_mig,
        mig=tuple(_slices(nvml, handle)) if is_mig else (),
        links=_links(nvml, index, handles),
    )


def _slices(nvml: Any, handle: Any) -> Iterator[MigSlice]:
    for place in range(_told(nvml, lambda: nvml.nvmlDeviceGetMaxMigDeviceCount(handle), 0)):
        found = _told(nvml, partial(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, place), None)
        if found is not None:
            name, memory = _text(nvml.nvmlDeviceGetName(found)), nvml.nvmlDeviceGetMemoryInfo(found)
            yield MigSlice(_text(nvml.nvmlDeviceGetUUID(found)), name, int(memory.total))


def _pcie(nvml: Any, handle: Any) -> str:
    now = _told(nvml, lambda: (nvml.nvmlDeviceGetCurrPcieLinkGeneration(handle), nvml.nvmlDeviceGetCurrPcieLinkWidth(handle)), None)
    most = _told(nvml, lambda: (nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle), nvml.nvmlDeviceGetMaxPcieLinkWidth(handle)), now)
    if now is None:
        return ""
    shown = f"PCIe {now[0]} x{now[1]}"
    return shown if now == most else f"{shown} (of {most[0]} x{most[1]}; idle GPUs save power so)"


def _links(nvml: Any, index: int, handles: Sequence[Any]) -> dict[int, str]:
    joined = _nvlinks(nvml, handles[index])
    found = {}
    for other, handle in enumerate(handles):
        if other != index:
            through_switches = min(joined.count(_SWITCH), _nvlinks(nvml, handle).count(_SWITCH))
            count = joined.count(_address(nvml, handle)) + through_switches
            way = f"NV{count}" if count else _way(nvml, handles[index], handle)
            if way:
                found[other] = way
    return found


def _nvlinks(nvml: Any, handle: Any) -> list[str]:
    """Return what is at the far end of each NVLink that is up: a PCI address, or _SWITCH, which joins all GPUs of the machine."""
    ends = (_told(nvml, partial(_far_end, nvml, handle, link), "") for link in range(_MOST_LINKS))
    return [end for end in ends if end]


def _far_end(nvml: Any, handle: Any, link: int) -> str:
    if nvml.nvmlDeviceGetNvLinkState(handle, link) != nvml.NVML_FEATURE_ENABLED:
        return ""
    if nvml.nvmlDeviceGetNvLinkRemoteDeviceType(handle, link) == nvml.NVML_NVLINK_DEVICE_TYPE_SWITCH:
        return _SWITCH
    return _text(nvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link).busId).lower()


def _way(nvml: Any, one: Any, other: Any) -> str:
    names = {
        nvml.NVML_TOPOLOGY_INTERNAL: "PIX",
        nvml.NVML_TOPOLOGY_SINGLE: "PIX",
        nvml.NVML_TOPOLOGY_MULTIPLE: "PXB",
        nvml.NVML_TOPOLOGY_HOSTBRIDGE: "PHB",
        nvml.NVML_TOPOLOGY_NODE: "NODE",
        nvml.NVML_TOPOLOGY_SYSTEM: "SYS",
    }
    return names.get(_told(nvml, lambda: nvml.nvmlDeviceGetTopologyCommonAncestor(one, other), None), "")


def _address(nvml: Any, handle: Any) -> str:
    return _text(nvml.nvmlDeviceGetPciInfo(handle).busId).lower()


def _told(nvml: Any, ask: Callable[[], Any], otherwise: Any) -> Any:
    """Return what the driver says, or `otherwise` where it does not: not every GPU and driver knows everything."""
    try:
        return ask()
    except nvml.NVMLError:
        return otherwise


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
