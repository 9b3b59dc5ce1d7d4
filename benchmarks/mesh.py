"""The numbers of the whole mesh: throughput over REST, what it adds to an idle request, its own ceiling, start and memory.

    python benchmarks/mesh.py rest      the mesh over REST against its engine in process, in turn; 1 and 32 texts a request, 32 connections;
                                        with --precision fast or small, both in that class
    python benchmarks/mesh.py idle      one request at a time: through Envoy and gateway, against the worker alone
    python benchmarks/mesh.py null      requests a second when the model's run alone is replaced; everything else stays on, and with
                                        --traces RATIO that share of requests is sent as traces to a collector on this machine
    python benchmarks/mesh.py start     from `quadrate up` to the first right answer
    python benchmarks/mesh.py memory    proportional set size at rest, and after minutes of random lengths and cancelled calls

Each command starts its own mesh as a user does (`quadrate up`) and stops it. `wrk` makes the load. Results are printed as a table and,
with --json FILE, written for a script. Rounds alternate between what is compared; medians are given. Linux only (/proc, wrk).
The cache is off, so that every answer is computed; benchmarks/cache.py measures what it gains.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import multiprocessing
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import grpc
import grpc.aio
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent))
import corpus
import engine

from quadrate.v1 import embed_pb2, embed_pb2_grpc, options_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection

CONNECTIONS = 32
TEXTS = 1_000
MANY_TEXTS = 8_192
"""Thirty-two callers of 32 texts have a thousand under way at once, and what is alike among them would be computed once."""
WARM_UP_SECONDS, SAMPLE_SECONDS, REST_SECONDS = 30.0, 5.0, 10.0
QUADRATE = (sys.executable, "-m", "quadrate.cli")

WRK_SCRIPT = """
local bodies = {}
for line in io.lines(os.getenv("BODIES")) do bodies[#bodies + 1] = line end
local next_body = 0
request = function()
  next_body = next_body % #bodies + 1
  return wrk.format("POST", "/v1/embeddings", {["content-type"] = "application/json"}, bodies[next_body])
end
done = function(summary, latency, requests)
  local errors = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format("RESULT %d %d %d %.0f %.0f\\n", summary.requests, summary.duration, errors, latency:percentile(50), latency:percentile(99)))
end
"""  # noqa: E501


class Mesh:
    """A mesh started as a user starts it, for the length of a `with` block.

    Args:
        flags: More flags of `quadrate up`.
        port: Where callers find it.
        key: What they show, if it needs a key.
        environment: More environment, for example EMBED_SESSION=null.
    """

    def __init__(self, *flags: str, port: int = 8085, key: str = "", **environment: str) -> None:
        self._flags = flags
        self.port = port
        self._key = key
        self.worker_port = 7997
        self._environment = {**os.environ, "LOG_LEVEL": "INFO", "ROUTER_CACHE_MAX_BYTES": "0", **environment}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [*QUADRATE, "up", "--port", str(self.port), *self._flags],
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.communicate(timeout=20)

    def _wait_until_ready(self, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self._process is None or self._process.poll() is not None:
                raise SystemExit(f"quadrate up has ended: {self._process and self._process.communicate()[1].decode()}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if embed_over_rest(self.port, {"model": "minilm", "input": "hello"}, self._key) == http.HTTPStatus.OK:
                    return
            time.sleep(0.02)
        raise SystemExit("the mesh did not become ready")

    def processes(self) -> dict[str, psutil.Process]:
        """Return the processes of the mesh by what they are."""
        if self._process is None:
            return {}
        root = psutil.Process(self._process.pid)
        return {_role(process): process for process in (root, *root.children(recursive=True))}


def _role(process: psutil.Process) -> str:
    command = " ".join(process.cmdline())
    for role in ("embed_worker", "rerank_worker", "gateway"):
        if f"-m {role}" in command:
            return role
    return "envoy" if "envoy" in process.name() else "quadrate up"


def embed_over_rest(port: int, body: dict[str, Any], key: str = "") -> int:
    """Post one request on a connection of its own and return the HTTP status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"content-type": "application/json"} | ({"x-api-key": key} if key else {})
    try:
        connection.request("POST", "/v1/embeddings", json.dumps(body), headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


@dataclass(frozen=True, slots=True)
class Load:
    """What `wrk` measured."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float


def load(port: int, bodies: Sequence[str], seconds: float, connections: int = CONNECTIONS) -> Load:
    """Send `bodies` in turn over `connections` for `seconds`. Any answer but a good one ends the benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        script, lines = Path(folder, "load.lua"), Path(folder, "bodies")
        script.write_text(WRK_SCRIPT, encoding="utf-8")
        lines.write_text("\n".join(bodies), encoding="utf-8")
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "30s", "-s", str(script), f"http://127.0.0.1:{port}"]
        done = subprocess.run(command, env={**os.environ, "BODIES": str(lines)}, capture_output=True, text=True, check=True)
    found = re.search(r"^RESULT (\d+) (\d+) (\d+) (\d+) (\d+)$", done.stdout, re.MULTILINE)
    if found is None:
        raise SystemExit(done.stdout)
    requests, microseconds, errors, p50, p99 = map(int, found.groups())
    if errors:
        raise SystemExit(f"{errors} of {requests} requests failed")
    return Load(requests / microseconds * 1e6, p50 / 1e3, p99 / 1e3)


def bodies_of(texts: Sequence[str], size: int) -> list[str]:
    """Return JSON bodies of `size` texts each."""
    options = {"model": "minilm", "encoding_format": "base64", "truncate": "right"}
    groups = [list(texts[start : start + size]) for start in range(0, len(texts) - size + 1, size)]
    return [json.dumps({**options, "input": group[0] if size == 1 else group}) for group in groups]


def compare(rounds: int, measures: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Take each measure once a round, in turn, and return the figures by name."""
    figures: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(rounds):
        names = list(measures) if number % 2 == 0 else list(reversed(measures))
        for name in names:
            figures[name].append(measures[name]())
            print(f"  round {number + 1}: {name}: {figures[name][-1]:.1f}", flush=True)
    return figures


def rest(options: argparse.Namespace) -> dict[str, Any]:
    """Texts a second over REST against the engine in process, fed as by as many callers."""
    texts = corpus.paragraphs(TEXTS)
    one, many = bodies_of(texts, 1), bodies_of(corpus.paragraphs(MANY_TEXTS), 32)
    latencies: dict[str, list[Load]] = {"1": [], "32": []}

    def over_rest(size: int, bodies: list[str]) -> float:
        found = load(8085, bodies, options.seconds)
        latencies[str(size)].append(found)
        return found.requests_per_second * size

    with Mesh("--precision", options.precision):
        over_rest(1, one)
        latencies["1"].clear()
        figures = compare(
            options.rounds,
            {
                "engine in process, texts/s": lambda: engine.texts_per_second_of_engine(
                    texts, seconds=options.seconds, callers=CONNECTIONS, precision=options.precision
                ),
                "mesh, 1 text a request, texts/s": lambda: over_rest(1, one),
                "mesh, 32 texts a request, texts/s": lambda: over_rest(32, many),
            },
        )
    medians = {name: statistics.median(values) for name, values in figures.items()}
    base = medians["engine in process, texts/s"]
    latency = {
        f"{size} a request": {"p50_ms": statistics.median(x.p50_ms for x in loads), "p99_ms": statistics.median(x.p99_ms for x in loads)}
        for size, loads in latencies.items()
    }
    return {"medians": medians, "ratio to engine": {name: value / base for name, value in medians.items()}, "latency": latency}


async def _grpc_milliseconds(port: int, texts: Sequence[str]) -> list[float]:
    found = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = embed_pb2_grpc.EmbedServiceStub(channel)
        for text in texts:
            request = embed_pb2.EmbedRequest(model="minilm", inputs=[options_pb2.Input(text=text)])
            started = time.perf_counter()
            await stub.Embed(request)
            found.append((time.perf_counter() - started) * 1e3)
    return found[len(found) // 10 :]


def _rest_milliseconds(port: int, texts: Sequence[str]) -> list[float]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    found = []
    for body in bodies_of(texts, 1):
        started = time.perf_counter()
        connection.request("POST", "/v1/embeddings", body, {"content-type": "application/json"})
        connection.getresponse().read()
        found.append((time.perf_counter() - started) * 1e3)
    connection.close()
    return found[len(found) // 10 :]


def idle(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of one request at a time, the same texts each way."""
    texts = ["What is the capital of France?"] * 300
    with Mesh() as mesh:
        figures = compare(
            options.rounds,
            {
                "worker alone, gRPC, ms": lambda: statistics.median(asyncio.run(_grpc_milliseconds(mesh.worker_port, texts))),
                "whole mesh, gRPC, ms": lambda: statistics.median(asyncio.run(_grpc_milliseconds(mesh.port, texts))),
                "whole mesh, REST, ms": lambda: statistics.median(_rest_milliseconds(mesh.port, texts)),
            },
        )
    medians = {name: statistics.median(values) for name, values in figures.items()}
    base = medians["worker alone, gRPC, ms"]
    return {"medians": medians, "added, ms": {name: value - base for name, value in medians.items()}}


async def _collect(port: Connection) -> None:
    """Take traces over OTLP and forget them."""

    async def export(_: bytes, __: Any) -> bytes:
        return b""

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    handlers = {"Export": grpc.unary_unary_rpc_method_handler(export)}
    name = "opentelemetry.proto.collector.trace.v1.TraceService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
    port.send(server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    await server.wait_for_termination()


@contextlib.contextmanager
def collector(ratio: float | None) -> Iterator[dict[str, str]]:
    """Run a collector in a process of its own and give the environment that sends it `ratio` of all traces; None: none of it."""
    if ratio is None:
        yield {}
        return
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run_collector, args=(theirs,), daemon=True)
    process.start()
    yield {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{ours.recv()}", "OTEL_TRACES_SAMPLER_ARG": str(ratio)}
    process.terminate()


def _run_collector(port: Connection) -> None:
    asyncio.run(_collect(port))


def null(options: argparse.Namespace) -> dict[str, Any]:
    """Requests a second of one short text with a null model: what the mesh costs. No two at a time are alike: those would share a run."""
    bodies = bodies_of([f"What is the capital of country {number}?" for number in range(1_000)], 1)
    with collector(options.traces) as environment, Mesh(EMBED_SESSION="null", **environment) as mesh:
        load(mesh.port, bodies, 3)
        loads = [load(mesh.port, bodies, options.seconds) for _ in range(options.rounds)]
        before = {role: _cpu_seconds(process) for role, process in mesh.processes().items()}
        last = load(mesh.port, bodies, options.seconds)
        cpu = {role: _cpu_seconds(process) - before[role] for role, process in mesh.processes().items()}
    requests = last.requests_per_second * options.seconds
    return {
        "requests/s": statistics.median(found.requests_per_second for found in loads),
        "p50_ms": statistics.median(found.p50_ms for found in loads),
        "p99_ms": statistics.median(found.p99_ms for found in loads),
        "CPU microseconds a request": {role: round(seconds / requests * 1e6) for role, seconds in cpu.items()},
    }


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def start(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds from `quadrate up` to the first right answer, everything installed."""
    seconds = []
    for _ in range(options.rounds):
        began = time.perf_counter()
        with Mesh():
            seconds.append(time.perf_counter() - began)
    return {"median_seconds": statistics.median(seconds), "seconds": seconds}


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Megabytes of proportional set size: at rest, through `minutes` of random lengths and cancelled calls, and at rest again.

    Under load it goes up and down with what runs at the moment, so growth compares the medians of the first and the last quarter of it.
    """
    with Mesh() as mesh:
        before = proportional_megabytes(mesh)
        asyncio.run(_trouble(mesh, WARM_UP_SECONDS))
        samples = asyncio.run(_sampled_trouble(mesh, options.minutes * 60))
        time.sleep(REST_SECONDS)
        after = proportional_megabytes(mesh)
    quarter = max(1, len(samples) // 4)
    first, last = _medians(samples[:quarter]), _medians(samples[-quarter:])
    return {
        "at rest before, MB": before,
        "first quarter, MB": first,
        "last quarter, MB": last,
        "at rest after, MB": after,
        "growth": {role: last[role] / first[role] - 1 for role in first},
        "embed worker through time, MB": [round(sample["embed_worker"]) for sample in samples],
    }


def _medians(samples: Sequence[dict[str, float]]) -> dict[str, float]:
    return {role: statistics.median(sample[role] for sample in samples) for role in samples[0]}


async def _sampled_trouble(mesh: Mesh, seconds: float) -> list[dict[str, float]]:
    """Make trouble, and look at the memory every SAMPLE_SECONDS."""
    trouble = asyncio.create_task(_trouble(mesh, seconds))
    samples = []
    while not trouble.done():
        await asyncio.wait([trouble], timeout=SAMPLE_SECONDS)
        samples.append(proportional_megabytes(mesh))
    await trouble
    return samples


def proportional_megabytes(mesh: Mesh) -> dict[str, float]:
    """Return the proportional set size of each process and of all together."""
    found = {role: _pss_bytes(process.pid) / 1e6 for role, process in mesh.processes().items()}
    return {**found, "all": sum(found.values())}


def _pss_bytes(pid: int) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


async def _trouble(mesh: Mesh, seconds: float) -> None:
    """Send texts of random lengths, and leave one call in five while it runs."""
    words = " ".join(corpus.paragraphs(50)).split()
    chance = random.Random(7)  # noqa: S311 - lengths, not secrets
    end = time.monotonic() + seconds

    def requests() -> Iterator[embed_pb2.EmbedRequest]:
        while time.monotonic() < end:
            lengths = [chance.randint(1, 400) for _ in range(chance.choice((1, 1, 1, 8)))]
            texts = [options_pb2.Input(text=" ".join(chance.choices(words, k=length))) for length in lengths]
            yield embed_pb2.EmbedRequest(model="minilm", inputs=texts, truncation=options_pb2.Truncation.RIGHT)

    async with grpc.aio.insecure_channel(f"127.0.0.1:{mesh.port}") as channel:
        stub, source = embed_pb2_grpc.EmbedServiceStub(channel), requests()

        async def caller() -> None:
            for request in source:
                timeout = chance.uniform(0.001, 0.05) if chance.random() < 0.2 else 30.0
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await stub.Embed(request, timeout=timeout)

        await asyncio.gather(*(caller() for _ in range(16)))


def main() -> None:
    """Run one of the commands."""
    commands: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        "rest": rest,
        "idle": idle,
        "null": null,
        "start": start,
        "memory": memory,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=commands)
    parser.add_argument("--rounds", type=int, default=3, help="how often each measure is taken")
    parser.add_argument("--seconds", type=float, default=15.0, help="length of one measure under load")
    parser.add_argument("--precision", choices=("exact", "fast", "small"), default="exact", help="rest: class of arithmetic")
    parser.add_argument("--traces", type=float, metavar="RATIO", help="null: send this share of requests as traces")
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the memory test")
    parser.add_argument("--json", type=Path, help="write the result here, too")
    options = parser.parse_args()
    result = commands[options.command](options)
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
