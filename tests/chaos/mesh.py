"""A whole mesh of real processes whose every process a test may kill, pause and start again.

Nothing here brings a process back by itself: the test is the supervisor.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from quadrate.cli import assemble
from quadrate.cli.assemble import Options
from quadrate.cli.plan import Folder, Process
from quadrate.config.shipped import shipped
from quadrate.testing.ports import free_block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ROOT = Path(__file__).resolve().parents[2]
REDIS = "redis"
START_SECONDS = 60.0
POLL_SECONDS = 0.05
MOST_OF_A_KIND = 3
"""Ports are laid out for so many gateways, and so many workers of each kind."""
_EMBED_ONLY = """\
embeddings:
  - model: minilm
    served_name: sentence-transformers/all-MiniLM-L6-v2
    upstream: {type: grpc, url: "grpc://127.0.0.1:7997"}
"""
_DIE_WITH_PARENT = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execvp(sys.argv[1], sys.argv[1:])"
_NO_LIMITS = "default: {capacity: 1000000, refill_rate: 1000000}\nanonymous: {capacity: 1000000, refill_rate: 1000000}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a mesh consists of.

    Args:
        gateways: How many gateways, at most MOST_OF_A_KIND; likewise the workers.
        rerank_workers: 0 takes rerankers out of the shipped routing.yaml, too.
        redis: Whether a redis-server runs, which the gateways are told of by ROUTER_REDIS_URL.
        model: False lets embed workers answer without running a model (EMBED_SESSION=null), so that the machine has room for load.
        configs: The texts of files that replace the shipped ones, by name: `routing.yaml`, `auth.yaml`, … Addresses of embed and rerank
            workers on loopback are replaced by those of this mesh. Unless `rate_limits.yaml` is given, nobody has a limit.
        environment: Variables of every process.
        environment_of: Variables of one process, by its name.
    """

    gateways: int = 1
    embed_workers: int = 1
    rerank_workers: int = 0
    redis: bool = False
    model: bool = False
    configs: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    environment_of: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


class ChaosMesh:
    """A running mesh. Processes are called `envoy`, `gateway`, `gateway-2`, `embed_worker`, `embed_worker-2`, `rerank_worker`, `redis`.

    `start` is for the main thread: a process dies with the thread that began it. All that waits may be called in other threads.
    """

    def __init__(self, shape: Shape, folder: Path) -> None:
        self.shape = shape
        self.folder = Folder(folder)
        self.folder.create()
        self.configs = folder / "configs"
        """The configuration that gateways and workers were told of; what a test writes there they may take up."""
        self.ports = _ports(free_block(100))
        self._write_configs()
        self._planned = {process.name: process for process in self._plan()}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Every process, those that others need first."""
        return tuple(self._planned)

    @property
    def edge(self) -> str:
        """`host:port` of Envoy."""
        return f"127.0.0.1:{self.ports['port']}"

    @property
    def url(self) -> str:
        """Where REST is."""
        return f"http://{self.edge}"

    @property
    def admin(self) -> str:
        """The URL of Envoy's admin interface."""
        return f"http://127.0.0.1:{self.ports['admin_port']}"

    @property
    def redis(self) -> str:
        """The URL of the redis-server."""
        return f"redis://127.0.0.1:{self.ports['redis_port']}/0"

    def target(self, name: str) -> str:
        """Return `host:port` that a process takes calls on: gRPC for gateways and workers."""
        return self._planned[name].address

    def http(self, name: str) -> str:
        """Return the URL of the HTTP server of a gateway or worker."""
        return self._planned[name].live.removesuffix("/health/live")

    def pid(self, name: str) -> int:
        """Return the process id of a running process."""
        return self._running[name].pid

    def start(self, name: str) -> None:
        """Start a process that does not run. It is not waited for: see `until_ready`."""
        process = self._planned[name]
        environment = {**os.environ, **self._common(), **process.environment, **self.shape.environment}
        environment |= self.shape.environment_of.get(name, {})
        with self.folder.log_of(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                _mortal(process.command), env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a process: SIGSTOP, SIGCONT, SIGTERM, SIGHUP, …."""
        self._running[name].send_signal(number)

    def kill(self, name: str) -> None:
        """Kill a process by SIGKILL; it is gone on return."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def terminate(self, name: str, *, within_seconds: float = 20.0) -> int:
        """Ask a process to end by SIGTERM, and return its exit code. Raises subprocess.TimeoutExpired."""
        process = self._running[name]
        process.terminate()
        code = process.wait(within_seconds)
        del self._running[name]
        return code

    def restart(self, name: str) -> None:
        """Kill a process and start it again at once."""
        self.kill(name)
        self.start(name)

    def is_running(self, name: str) -> bool:
        """Whether a process was started and has not ended."""
        return name in self._running and self._running[name].poll() is None

    def is_ready(self, name: str) -> bool:
        """Whether a process says that it serves; of a gateway, that every upstream of it does."""
        if name == REDIS:
            return _has_answered(self.ports["redis_port"])
        try:
            answer = httpx.get(self._planned[name].ready, timeout=2)
        except httpx.HTTPError:
            return False
        return answer.status_code == httpx.codes.OK and (name == "envoy" or answer.json()["status"] == "ok")

    def until_ready(self, *names: str, seconds: float = START_SECONDS) -> None:
        """Wait until these processes serve (default: all). Raises AssertionError with the end of the log of one that does not."""
        for name in names or self.names:
            self.until(lambda name=name: self.is_ready(name), f"{name} is not ready", seconds=seconds, while_runs=name)  # type: ignore[misc] # a default binds the loop's value

    def until(self, holds: Callable[[], bool], otherwise: str, *, seconds: float = START_SECONDS, while_runs: str | None = None) -> None:
        """Wait until something holds, asked again and again; `otherwise` is said when it does not in time."""
        end = time.monotonic() + seconds
        while not holds():
            has_ended = while_runs is not None and not self.is_running(while_runs)
            assert not has_ended, f"{otherwise}: {while_runs} has ended\n{self.tail(while_runs)}"
            assert time.monotonic() < end, f"{otherwise}\n{self.tail(while_runs)}"
            time.sleep(POLL_SECONDS)

    def readiness(self, name: str = "gateway") -> dict[str, Any]:
        """Return the report of GET /health/ready."""
        answer: dict[str, Any] = httpx.get(self._planned[name].ready, timeout=5).json()
        return answer

    def metric(self, process: str, sample: str, **labels: str) -> float:
        """Return the sum of a process's samples of this name and these labels: counters end in `_total`, histograms in `_count`, ….."""
        text = httpx.get(f"{self.http(process)}/metrics", timeout=5).text
        samples = (found for family in text_string_to_metric_families(text) for found in family.samples if found.name == sample)
        return sum(found.value for found in samples if labels.items() <= found.labels.items())

    def memory_bytes(self, name: str) -> int:
        """Return the resident memory of a process."""
        return int(psutil.Process(self.pid(name)).memory_info().rss)

    def descriptors(self, name: str) -> int:
        """Return how many file descriptors a process holds."""
        return int(psutil.Process(self.pid(name)).num_fds())

    def log(self, name: str) -> str:
        """Return what a process has written, over all its lives."""
        return self.folder.log_of(name).read_text(errors="replace")

    def tail(self, name: str | None, lines: int = 15) -> str:
        """Return the last lines of a log; of every process that has ended where none is named."""
        names = [name] if name else [one for one in self.names if not self.is_running(one)]
        return "\n".join(f"{one}: {line}" for one in names for line in self.log(one).splitlines()[-lines:])

    def write_config(self, name: str, text: str) -> None:
        """Replace a file of the configuration, whole or not at all. Of routing.yaml, loopback addresses must be this mesh's (`target`)."""
        scratch = self.configs / f".{name}.new"
        scratch.write_text(text)
        scratch.replace(self.configs / name)

    def start_all(self) -> None:
        """Start everything, and wait until all of it serves."""
        for name in self.names:
            if name == "envoy":  # it asks the gateways how they are as soon as it runs
                self.until_ready(*(one for one in self.names if one != "envoy"))
            self.start(name)
        self.until_ready()

    def stop_all(self) -> None:
        """End everything that still runs, paused or not."""
        for process in self._running.values():
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self._running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()
        self._running.clear()

    def _common(self) -> dict[str, str]:
        """Return the variables of every process: this checkout's code, and the redis-server where there is one."""
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        found = {"PYTHONSAFEPATH": "1", "PYTHONPATH": paths, "XDG_STATE_HOME": str(self.folder.path), "LOG_LEVEL": "INFO"}
        if self.shape.redis:
            found["ROUTER_REDIS_URL"] = self.redis
        return found if self.shape.model else {**found, "EMBED_SESSION": "null"}

    def _write_configs(self) -> None:
        shutil.copytree(shipped("configs"), self.configs)
        texts = {"rate_limits.yaml": _NO_LIMITS, **({} if self.shape.rerank_workers else {"routing.yaml": _EMBED_ONLY})}
        for name, text in (texts | dict(self.shape.configs)).items():
            (self.configs / name).write_text(text)

    def _plan(self) -> Iterator[Process]:
        """Give the processes of `quadrate up` for this shape, their configuration written."""
        mesh = assemble.read(self._options())
        planned = assemble.plan(mesh, self.folder)
        assemble.write(mesh, self.folder)
        for name in mesh.changed:  # tests change what the processes read, so it all lies in one folder
            (self.folder.config / name).replace(self.configs / name)
        if self.shape.redis:
            yield self._redis()
        for process in planned.processes:
            moved = {key: value.replace(f"{self.folder.config}/", f"{self.configs}/") for key, value in process.environment.items()}
            yield replace(process, environment=moved)

    def _options(self) -> Options:
        shape, ports = self.shape, self.ports
        return Options(
            config=self.configs,
            gateways=shape.gateways,
            embed_workers=shape.embed_workers,
            rerank_workers=max(shape.rerank_workers, 1),
            port=ports["port"],
            admin_port=ports["admin_port"],
            gateway_port=ports["gateway_port"],
            embed_port=ports["embed_port"],
            rerank_port=ports["rerank_port"],
        )

    def _redis(self) -> Process:
        port = str(self.ports["redis_port"])
        data = self.folder.path / "redis"
        data.mkdir()
        command = ("redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", str(data))
        return Process(name=REDIS, role=REDIS, command=command, environment={}, address=f"127.0.0.1:{port}", live="", ready="")


@contextlib.contextmanager
def running(shape: Shape, folder: Path) -> Iterator[ChaosMesh]:
    """Run a mesh, and end all of it."""
    mesh = ChaosMesh(shape, folder)
    try:
        mesh.start_all()
        yield mesh
    finally:
        mesh.stop_all()


def _mortal(command: tuple[str, ...]) -> tuple[str, ...]:
    """Return a command whose process dies with ours, even if we are killed. Nothing runs between fork and exec: gRPC has threads."""
    return (sys.executable, "-c", _DIE_WITH_PARENT, *command) if sys.platform == "linux" else command


def _ports(first: int) -> dict[str, int]:
    starts = {"gateway_port": 10, "embed_port": 40, "rerank_port": 70}
    return {"port": first, "admin_port": first + 1, "redis_port": first + 2, **{name: first + start for name, start in starts.items()}}


def _has_answered(port: int) -> bool:
    """Whether a redis-server answers PING."""
    import redis  # noqa: PLC0415 - only meshes with a store need it

    try:
        with redis.Redis(port=port, socket_timeout=1, socket_connect_timeout=1) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False
