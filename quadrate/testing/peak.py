"""How much memory something takes at its peak, whatever allocates it. Linux only."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING

from quadrate.runtime import memory

if TYPE_CHECKING:
    from collections.abc import Callable

_PROC = Path("/proc")
_RESET_PEAK = "5"  # proc(5), clear_refs


class Peak:
    """How far a process's resident memory rises above what it is now.

    Args:
        pid: The process, of the same user. None: this one.
    """

    def __init__(self, pid: int | None = None) -> None:
        self._process = _PROC / ("self" if pid is None else str(pid))
        (self._process / "clear_refs").write_text(_RESET_PEAK, "ascii")
        self._before = self._bytes("VmRSS")

    def growth_bytes(self) -> int:
        """Return how far it has risen since."""
        return self._bytes("VmHWM") - self._before

    def _bytes(self, name: str) -> int:
        """Return a number of kibibytes in the process's status as bytes."""
        lines = (self._process / "status").read_text("ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def peak_growth_bytes(work: Callable[[], object]) -> int:
    """Return how far this process's resident memory rises above what it is now while `work` runs."""
    gc.collect()
    memory.give_back()
    peak = Peak()
    work()
    return peak.growth_bytes()
