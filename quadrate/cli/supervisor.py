"""The process that keeps a mesh running: `python -m quadrate.cli.supervisor FOLDER`, which `quadrate up` turns into.

It starts each process of the plan when those it waits for are live, watches them, starts again what dies, and stops all of them when
told to. Only the standard library is imported, and none of the services: they are processes, run by the commands of the plan.

    waiting → starting → ready ⇄ degraded, unavailable
                 ↑          ↓
             restarting ←───┘   (failed: never ready after all attempts; then everything stops)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from quadrate.cli import logfile, probe
from quadrate.cli.child import Child
from quadrate.cli.plan import Folder, MeshState, Process, ProcessState

POLL_STARTING_SECONDS = 0.05
POLL_RUNNING_SECONDS = 2.5
FIRST_BACKOFF_SECONDS = 0.5
LAST_BACKOFF_SECONDS = 30.0
ATTEMPTS_AT_START = 3
"""How often a process is started that was never ready, before the whole start is given up."""
READY_WITHIN_SECONDS = 180.0
"""How long all processes together may take until the mesh answers."""
STOP_ORDER = ((("gateway",), 2.0), (("envoy",), 0.7), (("embed_worker", "rerank_worker"), 1.5))
"""Which processes are asked to end after which, and how many seconds they may take: together under 5."""
CANNOT_START = 2
"""The exit code of a process whose configuration cannot be used. To start it again would not help."""
DEGRADED_SECONDS = 3.0
"""How long a start waits for a process that serves in part, as a gateway does until it has found all workers."""
_STATES = {"ok": "ready", "": "ready", "degraded": "degraded", "unavailable": "unavailable"}


class StartFailed(Exception):
    """The mesh could not be started; the text says which process failed and how."""


@dataclass(slots=True)
class Keeper:
    """Keeps one process running."""

    process: Process
    state: ProcessState
    log: Path
    live: asyncio.Event = field(default_factory=asyncio.Event)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    child: Child | None = None
    was_ready: bool = False
    """Whether it has been ready since it was last started."""
    ever_ready: bool = False
    exit_code: int | None = None
    degraded_since: float | None = None


class Supervisor:
    """Runs the plan in `folder`."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        plan = folder.read_plan()
        states = [
            ProcessState(process.name, process.role, process.address, process.models, str(folder.log_of(process.name)))
            for process in plan.processes
        ]
        self._state = MeshState(address=plan.address, pid=os.getpid(), processes=states)
        self._keepers = [Keeper(process, state, folder.log_of(process.name)) for process, state in zip(plan.processes, states, strict=True)]
        self._stopping = asyncio.Event()
        self._failure = ""

    async def run(self) -> int:
        """Run until told to stop. Returns the exit code: 0 after a signal, 1 if the mesh could not be started."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._stopping.set)
        self._write()
        tasks = [asyncio.create_task(self._keep(keeper)) for keeper in self._keepers]
        tasks += [asyncio.create_task(self._watch(keeper)) for keeper in self._keepers]
        tasks += [asyncio.create_task(self._announce()), asyncio.create_task(self._bound_logs())]
        try:
            await self._until_stopped(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._stop_all()
        return 1 if self._failure else 0

    async def _until_stopped(self, tasks: list[asyncio.Task[None]]) -> None:
        """Return when a signal came or the start failed; raises what no task may raise."""
        stopped = asyncio.create_task(self._stopping.wait())
        pending: set[asyncio.Task[None] | asyncio.Task[bool]] = {stopped, *tasks}
        try:
            while not stopped.done():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        except StartFailed as exc:
            self._failure = str(exc)
            say(self._failure, bad=True)
        finally:
            stopped.cancel()

    async def _keep(self, keeper: Keeper) -> None:
        """Start the process, and again each time it ends, after a pause that doubles until it was ready once more."""
        for name in keeper.process.after:
            await self._keeper(name).live.wait()
        attempts, pause_seconds = 0, FIRST_BACKOFF_SECONDS
        while True:
            ended = await self._run_once(keeper)
            attempts, pause_seconds = (0, FIRST_BACKOFF_SECONDS) if keeper.was_ready else (attempts + 1, pause_seconds)
            if not keeper.ever_ready and (attempts >= ATTEMPTS_AT_START or keeper.exit_code == CANNOT_START):
                keeper.state.state = "failed"
                raise StartFailed(_failure(keeper, f"{ended} before it was ready, at attempt {attempts}"))
            keeper.state.restarts += 1
            self._set(keeper, "restarting")
            say(f"{keeper.process.name} {ended}; it is started again in {pause_seconds:g} s. Log: {keeper.log}", bad=True)
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * 2, LAST_BACKOFF_SECONDS)

    async def _run_once(self, keeper: Keeper) -> str:
        """Start the process, wait for its end and say how it ended."""
        keeper.was_ready, keeper.exit_code = False, None
        self._set(keeper, "starting")
        try:
            keeper.child = await Child.start(keeper.process.command, keeper.process.environment, keeper.log)
        except OSError as exc:
            return f"could not be started ({exc.strerror}: {exc.filename})"
        keeper.state.pid = keeper.child.pid
        self._write()
        code = keeper.exit_code = await keeper.child.wait()
        keeper.child, keeper.state.pid = None, None
        keeper.live.clear()
        keeper.ready.clear()
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    async def _watch(self, keeper: Keeper) -> None:
        """Ask the process again and again how it is."""
        while True:
            if keeper.child is not None:
                await self._ask(keeper)
            await asyncio.sleep(POLL_RUNNING_SECONDS if keeper.ready.is_set() else POLL_STARTING_SECONDS)

    async def _ask(self, keeper: Keeper) -> None:
        child = keeper.child
        if not keeper.live.is_set() and (await probe.get(keeper.process.live)).ok:
            keeper.live.set()
        answer = await probe.get(keeper.process.ready)
        if keeper.child is not child or child is None:  # it ended while it was asked
            return
        if answer.ok:
            self._serves(keeper, _STATES.get(answer.status, "ready"), answer.reason)
        elif keeper.was_ready:
            self._set(keeper, "unavailable", answer.reason)

    def _serves(self, keeper: Keeper, state: str, reason: str) -> None:
        now = time.monotonic()
        keeper.degraded_since = (keeper.degraded_since or now) if state == "degraded" else None
        if keeper.degraded_since is None or now - keeper.degraded_since > DEGRADED_SECONDS:
            keeper.was_ready = keeper.ever_ready = True
            keeper.ready.set()
        self._set(keeper, state, reason)

    async def _announce(self) -> None:
        """Tell, in the order of the plan, what is ready, and at last how to call the mesh."""
        try:
            async with asyncio.timeout(READY_WITHIN_SECONDS):
                for keeper in self._keepers:
                    await keeper.ready.wait()
        except TimeoutError:
            late = next(keeper for keeper in self._keepers if not keeper.ready.is_set())
            reason = (await probe.get(late.process.ready)).reason
            raise StartFailed(
                _failure(late, f"was not ready within {READY_WITHIN_SECONDS:g} s{f' ({reason})' if reason else ''}")
            ) from None
        self._state.state = "ready"
        self._write()
        say(self._folder.banner.read_text())
        for trouble in self._state.troubles:
            say(trouble, bad=True)
        await asyncio.Event().wait()

    async def _bound_logs(self) -> None:
        while True:
            for keeper in self._keepers:
                logfile.bound(keeper.log)
            await asyncio.sleep(5)

    async def _stop_all(self) -> None:
        """Stop gateways, then the edge, then workers: what was accepted is answered, and nothing new comes in."""
        began = time.monotonic()
        self._state.state = "stopping"
        self._write()
        for roles, within_seconds in STOP_ORDER:
            ending = [keeper for keeper in self._keepers if keeper.process.role in roles and keeper.child is not None]
            await asyncio.gather(*(self._stop(keeper, within_seconds) for keeper in ending))
        self._state.state, self._state.reason = ("failed", self._failure) if self._failure else ("stopped", "")
        self._write()
        say(f"Stopped after {time.monotonic() - began:.1f} s.")

    async def _stop(self, keeper: Keeper, within_seconds: float) -> None:
        if keeper.child is not None:
            await keeper.child.stop(within_seconds=within_seconds)
        keeper.child, keeper.state.pid, keeper.state.state = None, None, "stopped"

    def _keeper(self, name: str) -> Keeper:
        return next(keeper for keeper in self._keepers if keeper.process.name == name)

    def _set(self, keeper: Keeper, state: str, reason: str = "") -> None:
        if (keeper.state.state, keeper.state.reason) != (state, reason):
            keeper.state.state, keeper.state.reason = state, reason
            self._write()

    def _write(self) -> None:
        """Write the state down. A disk that takes nothing now takes the next one, perhaps; the mesh runs on."""
        try:
            self._folder.write_state(self._state)
        except OSError as exc:
            say(f"{self._folder.path} cannot be written ({exc.strerror}); what `quadrate status` tells is old.", bad=True)


def say(text: str, *, bad: bool = False) -> None:
    """Tell the person at the terminal; in red if something went wrong and there is a terminal."""
    stream = sys.stderr if bad else sys.stdout
    coloured = bad and stream.isatty() and not os.environ.get("NO_COLOR")
    with contextlib.suppress(BrokenPipeError, OSError):  # the terminal may be gone; the mesh is not
        print(f"\033[31m{text}\033[0m" if coloured else text, file=stream, flush=True)


def _failure(keeper: Keeper, what: str) -> str:
    """Say how a process failed: in its own words if it left some, otherwise by the end of its log."""
    reason = logfile.last_words(keeper.log)
    if reason:
        return f"{keeper.process.name} {what}: {reason}"
    lines = "\n".join(f"  {line}" for line in logfile.tail(keeper.log, 8))
    return f"{keeper.process.name} {what}. Its log, {keeper.log}, ends:\n{lines or '  (nothing)'}"


def main() -> int:
    """Run the mesh whose folder is the first argument."""
    folder = Folder(Path(sys.argv[1]))
    try:
        with folder.locked():
            return asyncio.run(Supervisor(folder).run())
    except BlockingIOError:
        say(f"A mesh already runs from {folder.path}.", bad=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
