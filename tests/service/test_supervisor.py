"""The supervisor over processes that stand in for the mesh's, itself a process as `quadrate up` runs it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from quadrate.cli.plan import Folder, MeshState, Plan, Process, ProcessState
from tests.processes import LONG_SECONDS, eventually, is_alive

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

STAND_IN = Path(__file__).with_name("stand_in.py")


def process(name: str, role: str, *, after: tuple[str, ...] = (), **environment: str) -> Process:
    """Describe a stand-in on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = (sys.executable, str(STAND_IN), str(port))
    return Process(name, role, command, environment, f"127.0.0.1:{port}", f"{url}/live", f"{url}/ready", after)


class Running:
    """A supervisor, its folder and its output."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.output = folder.path / "output.txt"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, *processes: Process, stdout: Path | None = None) -> None:
        """Write the plan and start the supervisor; what it prints goes to `stdout` or to its output."""
        self.folder.create()
        self.folder.banner.write_text("All answer.")
        self.folder.write_plan(Plan("127.0.0.1:1", processes))
        with self.output.open("wb") as output, (stdout or self.output).open("ab") as printed:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "quadrate.cli.supervisor", str(self.folder.path), stdout=printed, stderr=output
            )
        await eventually(lambda: self.folder.read_state() is not None, "the first state")

    @property
    def state(self) -> MeshState:
        """What the supervisor says now."""
        state = self.folder.read_state()
        assert state is not None
        return state

    def process(self, name: str) -> ProcessState:
        """What the supervisor says of one process."""
        return next(row for row in self.state.processes if row.name == name)

    def pids(self) -> list[int]:
        """Return the pids of all processes that run."""
        return [row.pid for row in self.state.processes if row.pid is not None]

    async def ready(self) -> None:
        """Wait until the mesh answers."""
        await eventually(lambda: (state := self.folder.read_state()) is not None and state.state == "ready", "ready")

    async def signal(self, number: signal.Signals) -> int:
        """Send a signal and return the exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        return await self.ended()

    async def ended(self) -> int:
        """Wait for the end and return the exit code."""
        assert self._process is not None
        return await asyncio.wait_for(self._process.wait(), LONG_SECONDS)

    async def close(self) -> None:
        """End it if a test has not."""
        if self._process is not None and self._process.returncode is None:
            await self.signal(signal.SIGTERM)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    """Give a supervisor that is not started yet."""
    made = Running(Folder(tmp_path / "8085"))
    yield made
    await made.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_it_starts_in_order_tells_and_stops(running: Running, number: signal.Signals) -> None:
    """A process waits for those it needs; when all answer the banner is printed; a signal ends everything within 5 seconds."""
    await running.start(process("worker", "embed_worker"), process("door", "gateway"), process("edge", "envoy", after=("door",)))
    await running.ready()
    pids = running.pids()
    assert len(pids) == 3
    assert psutil.Process(pids[2]).create_time() > psutil.Process(pids[1]).create_time()
    began = time.monotonic()
    assert await running.signal(number) == 0
    assert time.monotonic() - began < 5
    assert not any(map(is_alive, pids))
    assert "All answer." in running.output.read_text()
    assert running.state.state == "stopped"
    assert not running.folder.is_running()


async def test_processes_that_will_not_end_are_ended(running: Running) -> None:
    """Processes that ignore SIGTERM, one of each kind, do not keep the mesh over 5 seconds."""
    roles = ("embed_worker", "rerank_worker", "gateway", "envoy")
    await running.start(*(process(role, role, STUBBORN="1") for role in roles))
    await running.ready()
    pids = running.pids()
    began = time.monotonic()
    assert await running.signal(signal.SIGTERM) == 0
    assert time.monotonic() - began < 5
    assert not any(map(is_alive, pids))


async def test_a_process_that_dies_is_started_again(running: Running) -> None:
    """The restart is counted, said with the signal's name, and the process is ready again."""
    await running.start(process("worker", "embed_worker"))
    await running.ready()
    first = running.pids()[0]
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: (row := running.process("worker")).state == "ready" and row.pid != first, "ready again")
    assert running.process("worker").restarts == 1
    assert "worker was killed by SIGKILL; it is started again in 0.5 s" in running.output.read_text()


async def test_a_full_disk_does_not_stop_the_mesh(running: Running) -> None:
    """While neither its state nor its banner can be written, the supervisor runs the mesh on, and tells again when it can."""
    full = Path("/dev/full")  # Linux has it
    await running.start(process("gateway", "gateway"), stdout=full if full.exists() else None)
    await running.ready()
    first = running.process("gateway").pid
    assert first is not None
    scratch = running.folder.path / f".state.json.{running.state.pid}"
    scratch.mkdir()  # so that the file cannot be written
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: "is started again" in running.output.read_text(), "the restart")
    assert "cannot be written" in running.output.read_text()
    scratch.rmdir()
    await eventually(lambda: running.process("gateway").pid not in {first, None}, "a new process in the state")
    await running.ready()


async def test_pauses_between_restarts_double(running: Running, tmp_path: Path) -> None:
    """A process that was ready and then fails at every start is tried again, each time after twice the pause."""
    await running.start(process("worker", "embed_worker", GOOD_STARTS="1", LEDGER=str(tmp_path / "ledger")))
    await running.ready()
    os.kill(running.pids()[0], signal.SIGKILL)
    await eventually(lambda: "again in 2 s" in running.output.read_text(), "third pause")
    text = running.output.read_text()
    assert text.index("again in 0.5 s") < text.index("again in 1 s") < text.index("again in 2 s")
    assert running.state.state == "ready"  # the rest goes on


async def test_a_start_that_fails_is_bounded_and_said(running: Running, tmp_path: Path) -> None:
    """A process that never comes up is tried three times; then all end, with its own last words and exit code 1."""
    broken = process("broken", "gateway", GOOD_STARTS="0", LEDGER=str(tmp_path / "ledger"))
    await running.start(process("worker", "embed_worker"), broken)
    assert await running.ended() == 1
    assert "broken ended with exit code 3 before it was ready, at attempt 3: the moon is wrong" in running.output.read_text()
    assert (tmp_path / "ledger").read_text() == "xxx"
    assert running.state.state == "failed"
    assert running.pids() == []


async def test_a_configuration_that_cannot_be_used_is_not_tried_again(running: Running, tmp_path: Path) -> None:
    """Exit code 2 says that no further start would help."""
    await running.start(process("broken", "gateway", GOOD_STARTS="0", EXIT_CODE="2", LEDGER=str(tmp_path / "ledger")))
    assert await running.ended() == 1
    assert "at attempt 1: the moon is wrong" in running.output.read_text()


async def test_a_program_that_is_not_there_is_named(running: Running) -> None:
    """A missing program is one sentence."""
    absent = Process("edge", "envoy", ("/nowhere/envoy",), {}, "127.0.0.1:1", "http://127.0.0.1:1/live", "http://127.0.0.1:1/ready")
    await running.start(absent)
    assert await running.ended() == 1
    assert "edge could not be started (No such file or directory: /nowhere/envoy)" in running.output.read_text()


async def test_nothing_outlives_a_killed_supervisor(running: Running) -> None:
    """SIGKILL to the supervisor ends every process, even one that ignores SIGTERM."""
    await running.start(process("worker", "embed_worker", STUBBORN="1"), process("door", "gateway"))
    await running.ready()
    pids = running.pids()
    await running.signal(signal.SIGKILL)
    await eventually(lambda: not any(map(is_alive, pids)), "all gone")
    assert not running.folder.is_running()


async def test_a_guard_ends_the_child_where_the_kernel_does_not(tmp_path: Path) -> None:
    """Off Linux a guard holds a pipe: when the parent is killed, the child is too; a child that ends by itself ends its guard."""
    program = f"""
import asyncio, sys
from pathlib import Path
from quadrate.cli.child import Child

async def main():
    log = Path({str(tmp_path / "log")!r})
    short = await Child.start([sys.executable, "-c", ""], {{}}, log, by_kernel=False)
    await short.wait()
    long = await Child.start([sys.executable, "-c", "import signal; signal.pause()"], {{}}, log, by_kernel=False)
    print(long.pid, flush=True)
    await long.wait()

asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    await eventually(lambda: len(_guards(parent.pid)) == 1, "the first guard has gone")
    guards = _guards(parent.pid)
    parent.kill()
    await parent.wait()
    await eventually(lambda: not is_alive(pid), "the child is gone")
    await eventually(lambda: not any(map(is_alive, guards)), "the guard is gone")


def _guards(parent: int) -> list[int]:
    return [child.pid for child in psutil.Process(parent).children() if child.name() in {"sh", "dash", "bash"} and is_alive(child.pid)]


async def test_one_folder_has_one_supervisor(running: Running) -> None:
    """A second supervisor of the same mesh refuses."""
    await running.start(process("worker", "embed_worker"))
    await running.ready()
    second = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "quadrate.cli.supervisor", str(running.folder.path), stderr=asyncio.subprocess.PIPE
    )
    _, said = await second.communicate()
    assert second.returncode == 1
    assert b"already runs" in said


async def test_a_process_that_serves_in_part_is_called_degraded(running: Running) -> None:
    """What a process says of itself is its state; the start waits a while for it to become whole, then goes on and says what is not."""
    await running.start(process("door", "gateway", STATUS="degraded", REASON="it does not fit"))
    await eventually(lambda: running.process("door").state == "degraded", "degraded")
    assert running.state.state == "starting"
    await running.ready()
    assert running.process("door").state == "degraded"
    assert running.state.troubles == ("tiny: it does not fit",)
    await eventually(lambda: "tiny: it does not fit" in running.output.read_text(), "told")
