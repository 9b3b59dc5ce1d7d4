"""How many cores a process uses, and which of its threads wait for which."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from quadrate.cores import give_way, interrupt_nobody, usable_cores

if TYPE_CHECKING:
    from pathlib import Path

linux = pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority and a policy of their own on Linux alone")


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", 8), ("150000 100000", 2), ("1000 100000", 1), ("9900000 100000", 8), ("", 8)]
)
def test_a_containers_quota_bounds_the_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, expected: int) -> None:
    """A container's quota bounds the cores, rounded up; without one those count that the process may run on."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    monkeypatch.setattr("quadrate.cores._CGROUP_QUOTA", file)
    assert usable_cores() == expected


@linux
def test_a_thread_gives_way_and_so_do_those_it_starts() -> None:
    """A thread that gives way has the niceness given, and so have those that it starts; the thread that started it does not."""
    ours = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    with ThreadPoolExecutor(1, initializer=give_way, initargs=(ours + 3,)) as threads:
        assert threads.submit(_of_thread_started_here).result() == ours + 3
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == ours


@linux
def test_a_thread_that_interrupts_nobody_starts_threads_like_itself() -> None:
    """A thread that interrupts nobody is scheduled as a batch, and so are those that it starts; the thread that started it is not."""
    ours = os.sched_getscheduler(0)
    with ThreadPoolExecutor(1, initializer=interrupt_nobody) as threads:
        assert threads.submit(_policy_of_thread_started_here).result() == (os.SCHED_BATCH if ours == os.SCHED_OTHER else ours)
    assert os.sched_getscheduler(0) == ours


@linux
def test_a_policy_that_was_given_is_kept() -> None:
    """A thread with a policy of an operator's keeps it."""
    with ThreadPoolExecutor(1) as threads:
        threads.submit(os.sched_setscheduler, 0, os.SCHED_IDLE, os.sched_param(0)).result()
        threads.submit(interrupt_nobody).result()
        assert threads.submit(os.sched_getscheduler, 0).result() == os.SCHED_IDLE


def _of_thread_started_here() -> int:
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())).result()


def _policy_of_thread_started_here() -> int:
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(os.sched_getscheduler, 0).result()
