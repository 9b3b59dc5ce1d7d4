"""What the kernel says of this machine's processor: its name, and the instructions that it has."""

from __future__ import annotations

import contextlib
import platform
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def name() -> str:
    """Return the product's name."""
    return _fields().get("model name") or platform.processor() or platform.machine()


def instructions() -> frozenset[str]:
    """Return the instructions by the kernel's names, such as avx512_vnni; empty where it does not tell. ARM's are its features."""
    return frozenset((_fields().get("flags") or _fields().get("Features") or "").split())


@cache
def _fields() -> dict[str, str]:
    """Return what stands in /proc/cpuinfo; of several cores that of the last."""
    with contextlib.suppress(OSError):
        pairs = (line.partition(":") for line in _CPUINFO.read_text("utf-8").splitlines())
        return {key.strip(): value.strip() for key, colon, value in pairs if colon}
    return {}
