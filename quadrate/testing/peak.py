"""How much memory something takes at its peak, whatever allocates it. Linux only."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING

from quadrate.runtime import memory

if TYPE_CHECKING:
    from collections.abc import Callable

_PROCESS = Path("/proc/self")
_RESET_PEAK = "5"  # proc(5), clear_refs


def peak_growth_bytes(work: Callable[[], object]) -> int:
    """Return how far the process's resident memory rises above what it is now while `work` runs."""
    gc.collect()
    memory.give_back()
    (_PROCESS / "clear_refs").write_text(_RESET_PEAK, "ascii")
    before = _bytes("VmRSS")
    work()
    return _bytes("VmHWM") - before


def _bytes(name: str) -> int:
    """Return a number of kibibytes in /proc/self/status as bytes."""
    lines = (_PROCESS / "status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024
