"""What a mesh on this machine consists of, written down before anything is started, and what has become of it.

A mesh has a folder of its own, $XDG_STATE_HOME/quadrate/<port>/:

    plan.json     the processes to run: command, environment, addresses        written by `up`, read by the supervisor
    banner.txt    what is printed when all answer                              written by `up`
    state.json    pid, state and restarts of each process                      written by the supervisor, read by `status`
    lock          held while the supervisor lives; the kernel frees it
    logs/         one file a process
    config/       envoy.yaml, and the configuration where flags changed it
    certificates/ an authority and certificates                                written by `up --tls`, which keeps the authority

Only the standard library is imported here: the supervisor lives on this module and must stay small.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the mesh."""

    name: str
    """Unique in the mesh: `gateway`, `embed_worker-2`."""
    role: str
    """`embed_worker`, `rerank_worker`, `gateway` or `envoy`."""
    command: tuple[str, ...]
    environment: dict[str, str]
    """What is added to the environment of `up`."""
    address: str
    """`host:port` that callers use."""
    live: str
    """The URL that answers once the process runs."""
    ready: str
    """The URL that answers 200 once it serves."""
    after: tuple[str, ...] = ()
    """The processes that must be live before this one is started."""
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole mesh."""

    address: str
    """`host:port` of the edge."""
    processes: tuple[Process, ...]


@dataclass(slots=True)
class ProcessState:
    """What has become of one process: `waiting`, `starting`, `ready`, `degraded`, `unavailable`, `restarting`, `stopped` or `failed`."""

    name: str
    role: str
    address: str
    models: tuple[str, ...]
    log: str
    pid: int | None = None
    state: str = "waiting"
    restarts: int = 0
    reason: str = ""
    """What it says is not as it should be."""


@dataclass(slots=True)
class MeshState:
    """What has become of the mesh: `starting`, `ready`, `stopping`, `stopped` or `failed`."""

    address: str
    pid: int
    state: str = "starting"
    reason: str = ""
    processes: list[ProcessState] = field(default_factory=list)

    @property
    def troubles(self) -> tuple[str, ...]:
        """What is not served or not as it should be, as the gateways say, who know of all models; each once."""
        return tuple(dict.fromkeys(row.reason for row in self.processes if row.role == "gateway" and row.reason))


class Folder:
    """The folder of one mesh, named by the edge's port."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs = path / "logs"
        self.config = path / "config"
        self.certificates = path / "certificates"
        self.banner = path / "banner.txt"

    @classmethod
    def of(cls, port: int) -> Folder:
        """Return the folder of the mesh on `port`."""
        return cls(root() / str(port))

    def create(self) -> None:
        """Make the folder, for its owner's eyes only, without what a mesh that is no more has left half written."""
        for path in (self.path, self.logs, self.config):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        for scratch in self.path.glob(".*.json.*"):
            scratch.unlink()

    def log_of(self, process: str) -> Path:
        """Return the log file of a process."""
        return self.logs / f"{process}.log"

    def write_plan(self, plan: Plan) -> None:
        """Write plan.json."""
        self._write("plan.json", dataclasses.asdict(plan))

    def read_plan(self) -> Plan:
        """Read plan.json."""
        data = json.loads((self.path / "plan.json").read_text())
        return Plan(data["address"], tuple(Process(**_with_tuples(row)) for row in data["processes"]))

    def write_state(self, state: MeshState) -> None:
        """Write state.json, whole or not at all."""
        self._write("state.json", dataclasses.asdict(state))

    def read_state(self) -> MeshState | None:
        """Read state.json; None if there is none that can be read. What only another version writes is passed over."""
        try:
            data = json.loads((self.path / "state.json").read_text())
            data["processes"] = [ProcessState(**_known(ProcessState, _with_tuples(row))) for row in data["processes"]]
            return MeshState(**_known(MeshState, data))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def is_running(self) -> bool:
        """Whether a supervisor holds the lock."""
        try:
            with (self.path / "lock").open("r") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock; raises BlockingIOError if another process does."""
        with (self.path / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield

    def _write(self, name: str, data: dict[str, Any]) -> None:
        scratch = self.path / f".{name}.{os.getpid()}"
        scratch.write_text(json.dumps(data, indent=1))
        scratch.replace(self.path / name)


def _known(kind: type[ProcessState | MeshState], row: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is no field of this version's."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {key: value for key, value in row.items() if key in names}


def _with_tuples(row: dict[str, Any]) -> dict[str, Any]:
    """Give back what JSON took: every list in the plan was a tuple."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}


def root() -> Path:
    """Return the folder that holds every mesh's folder."""
    given = os.environ.get("XDG_STATE_HOME")
    return (Path(given).expanduser() if given else Path.home() / ".local" / "state") / "quadrate"
