"""A child process that cannot outlive its parent, whatever happens to the parent."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_PR_SET_PDEATHSIG = 1
_GUARD = 'read -r _ || kill -KILL "$0" 2>/dev/null'
"""Waits for a line, which says that the child has ended, or for the pipe to close, which happens when the parent is gone."""


class Child:
    """A running process. Make one with `Child.start`."""

    def __init__(self, process: asyncio.subprocess.Process, guard: int | None) -> None:
        self._process = process
        self._guard = guard

    @classmethod
    async def start(
        cls, command: Sequence[str], environment: dict[str, str], log: Path, *, by_kernel: bool = sys.platform == "linux"
    ) -> Self:
        """Start `command` in a session of its own, with its output appended to `log`.

        The session keeps a terminal's Ctrl-C from it: the parent decides when it stops. When the parent dies, even by SIGKILL, the
        child is killed: by the kernel on Linux, elsewhere by a guard that holds one end of a pipe, whose other end dies with us.

        Raises:
            OSError: The program is not there or cannot be run.
        """
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *command,
                env={**os.environ, **environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_die_with_parent() if by_kernel else None,
            )
        return cls(process, None if by_kernel else await _guard(process.pid))

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def wait(self) -> int:
        """Return the exit code once it has ended; minus the number of the signal that killed it."""
        code = await self._process.wait()
        if self._guard is not None:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._guard, b"\n")
            os.close(self._guard)
            self._guard = None
        return code

    async def stop(self, *, within_seconds: float) -> None:
        """Ask it to end by SIGTERM, and end it by SIGKILL if it has not ended in time."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), within_seconds)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self.wait()


def _die_with_parent() -> Callable[[], None]:
    """Return what the child runs between fork and exec."""
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return prepare


async def _guard(pid: int) -> int:
    """Start a guard over `pid` and return our end of its pipe."""
    reading, writing = os.pipe()
    try:
        await asyncio.create_subprocess_exec("/bin/sh", "-c", _GUARD, str(pid), stdin=reading, start_new_session=True)
    finally:
        os.close(reading)
    return writing
