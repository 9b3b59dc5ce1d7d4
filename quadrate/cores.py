"""The cores that this process shares with others: how many it may use, and which threads wait for which."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
from pathlib import Path

_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Return how many cores this process may use: those it may run on, but no more than its container's quota, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = _CGROUP_QUOTA.read_text().split()
        if quota != "max":
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def give_way(niceness: int) -> None:
    """Give this thread a lower priority, and those that it starts from now on, on Linux: elsewhere a process has one for all."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


def interrupt_nobody() -> None:
    """Let this thread, and those that it starts from now on, begin when a core is free or its turn has come, on Linux.

    Else each wake-up interrupts whoever runs. It has the same share of the cores either way. A policy that an operator gave it, it keeps.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            if os.sched_getscheduler(0) == os.SCHED_OTHER:
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
