"""Hostile bodies, headers, messages and bytes harm nobody: each is refused in the shape of its API, and the mesh stays as it was.

A complaint names the seed and the number of a request: `hostile.http_request(random.Random("1:rest:77"))` is that request again.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest

from tests.chaos import hostile, hostile_frames, hostile_rpc, wires
from tests.chaos.load import Grpc, Load, Rest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.chaos.conftest import StartMesh
    from tests.chaos.mesh import ChaosMesh

SEED = 1
SHARES = {"rest": 0.6, "http1": 0.1, "http2": 0.1, "grpc": 0.2}
"""Of all requests: well framed ones over HTTP/1.1, bytes that are hardly HTTP/1.1, frames that are hardly HTTP/2, gRPC calls."""
SENDERS = {"rest": 12, "http1": 12, "http2": 12, "grpc": 8}
LARGEST_HEADERS_BYTES = 32 * 1024
GRPC_FAULTS = {"UNKNOWN", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "DEADLINE_EXCEEDED", "CANCELLED"}
"""What no request may bring about, however bad it is."""
GRPC_FAULT_NUMBERS = {13, 14, 15}
"""The same in the edge's log, which has 2 for every answer to gRPC-Web, whose trailers are in its body."""
SMALL_CACHE = {"ROUTER_CACHE_MAX_BYTES": str(2**20)}
"""It grows as long as there is room, which is what it is for, and hides what else grows."""
WARM_UP = 0.25
"""The part of the requests after which memory is measured first: caches and pools are full by then."""
GROWTH = 0.10
SLACK_BYTES = 24 * 2**20
"""What a process may grow by: part of what it had, and what an allocator keeps of the largest requests."""
SLACK_DESCRIPTORS = 8


@dataclass(frozen=True, slots=True)
class State:
    """What must not grow, by process."""

    memory_bytes: dict[str, int]
    descriptors: dict[str, int]

    @classmethod
    def of(cls, mesh: ChaosMesh) -> State:
        """Measure it."""
        return cls({name: mesh.memory_bytes(name) for name in mesh.names}, {name: mesh.descriptors(name) for name in mesh.names})


class Senders:
    """Send hostile requests of all kinds at once, and collect what is wrong with the answers."""

    def __init__(self, mesh: ChaosMesh) -> None:
        self._host, port = mesh.edge.split(":")
        self._port = int(port)
        self._channel = grpc.aio.insecure_channel(mesh.edge, options=(("grpc.use_local_subchannel_pool", 1),))
        self._numbers = {kind: itertools.count() for kind in SHARES}
        self.complaints: list[str] = []
        self.answered: dict[str, int] = {}

    async def send(self, count: int) -> None:
        """Send so many, shared out among the kinds; each number of a kind is sent once, whatever the number of senders."""
        async with asyncio.TaskGroup() as group:
            for kind, share in SHARES.items():
                numbers = iter([next(self._numbers[kind]) for _ in range(round(count * share))])
                for _ in range(SENDERS[kind]):
                    group.create_task(getattr(self, f"_send_{kind}")(numbers))

    async def close(self) -> None:
        """Close what is open."""
        await self._channel.close(None)

    async def _send_rest(self, numbers: Iterator[int]) -> None:
        async with wires.Http1(self._host, self._port) as caller:
            for number in numbers:
                request = hostile.http_request(self._draw("rest", number))
                try:
                    answer = await caller.ask(request)
                except wires.Closed as exc:
                    if sum(len(name) + len(value) for name, value in request.headers) < LARGEST_HEADERS_BYTES:
                        self._complain("rest", number, f"{request.method} {request.path[:80]} was not answered: closed {exc}")
                    continue
                self._note(f"rest {answer.status}")
                if what := wrong_with(request, answer):
                    self._complain("rest", number, f"{request.method} {request.path[:80]}: {what}")

    async def _send_http1(self, numbers: Iterator[int]) -> None:
        await self._send_bytes("http1", numbers, hostile.http1_bytes)

    async def _send_http2(self, numbers: Iterator[int]) -> None:
        await self._send_bytes("http2", numbers, hostile_frames.http2_bytes)

    async def _send_bytes(self, kind: str, numbers: Iterator[int], make: Callable[[random.Random, str], bytes]) -> None:
        for number in numbers:
            found = await wires.send_garbage(self._host, self._port, make(self._draw(kind, number), f"{self._host}:{self._port}"))
            self._note(f"{kind} {'answered' if found else 'closed'}")

    async def _send_grpc(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            request = hostile_rpc.grpc_request(self._draw("grpc", number))
            status, details = await wires.call_grpc(self._channel, request)
            self._note(f"grpc {status}")
            if status in GRPC_FAULTS:
                self._complain("grpc", number, f"{request.method}: {status} {details}")

    def _draw(self, kind: str, number: int) -> random.Random:
        return random.Random(f"{SEED}:{kind}:{number}")  # noqa: S311 - no secret is drawn

    def _note(self, what: str) -> None:
        self.answered[what] = self.answered.get(what, 0) + 1

    def _complain(self, kind: str, number: int, what: str) -> None:
        self.complaints.append(f"{SEED}:{kind}:{number} {what}")


def wrong_with(request: hostile.HttpRequest, answer: wires.Answer) -> str | None:
    """Return what is wrong with an answer, if anything is: no 5xx, an error in the shape of the API, an id, JSON throughout."""
    if answer.status >= 500 and not is_specified(answer.status, request):
        return f"{answer.status} {answer.body[:300]!r}"
    if "x-request-id" not in answer.headers:
        return f"{answer.status} without x-request-id"
    if answer.status == 200 or request.method in {"HEAD", "OPTIONS"} or speaks_grpc(request):
        return None
    try:
        error = json.loads(answer.body)["error"]
    except (ValueError, KeyError, TypeError):
        return f"{answer.status} is no error of ours: {answer.body[:300]!r}"
    told = isinstance(error.get("message"), str) and error["message"] and error.get("type") and {"param", "code"} <= error.keys()
    return None if told else f"{answer.status} does not say what is wrong: {error!r:.300}"


def speaks_grpc(request: hostile.HttpRequest) -> bool:
    """Whether a caller says that it speaks gRPC or gRPC-Web, and is answered accordingly, whatever the path."""
    return any(name == b"content-type" and value.startswith(b"application/grpc") for name, value in request.headers)


def is_specified(status: int, request: hostile.HttpRequest) -> bool:
    """Whether a 5xx is what docs/openapi.yaml says of such a request: 504 to a deadline of its own, 501 to an output not served."""
    has_deadline = any(name == b"grpc-timeout" for name, _ in request.headers)
    return (status == 504 and has_deadline) or (status == 501 and request.path.startswith("/quadrate/"))


def faults_in_log(mesh: ChaosMesh) -> list[dict[str, Any]]:
    """Return what the edge logged as a fault of ours: the only witness of what raw bytes brought about."""
    lines = (json.loads(line) for line in mesh.log("envoy").splitlines() if '"message":"request"' in line)
    return [line["metadata"] for line in lines if is_fault(line["metadata"])]


def is_fault(line: dict[str, Any]) -> bool:
    """Whether a line of the edge's log tells of a fault. A request whose caller left while it was answered is none."""
    if str(line["flags"]).startswith(("DC", "DPE")):
        return False
    status, grpc_status = int(line["status"] or 0), int(line.get("grpc_status") or 0)
    is_reset = "UR" in str(line["flags"])
    return is_reset or status in {500, 502, 503} or (status == 200 and grpc_status in GRPC_FAULT_NUMBERS)


def unexpected(mesh: ChaosMesh) -> list[str]:
    """Return lines of our own processes' logs that tell of what nobody foresaw."""
    names = [name for name in mesh.names if name not in {"envoy", "redis"}]
    signs = ("unexpected failure", "Traceback", "never retrieved", "was never awaited", '"level":"ERROR"')
    return [f"{name}: {line[:600]}" for name in names for line in mesh.log(name).splitlines() if any(sign in line for sign in signs)]


@pytest.mark.timeout(3600)
async def test_hostile_requests_harm_nobody(start_mesh: StartMesh, length: Callable[[int, int], int]) -> None:
    """No fault, no crash, nothing unforeseen in a log; memory and descriptors flat; a good caller beside them is always answered."""
    count = length(6_000, 100_000)
    with start_mesh(gateways=2, embed_workers=1, rerank_workers=1, environment=SMALL_CACHE) as mesh:
        pids = {name: mesh.pid(name) for name in mesh.names}
        senders = Senders(mesh)
        async with Load(Rest(mesh.url), Grpc(mesh.edge), callers=2) as load:
            await senders.send(round(count * WARM_UP))
            before = State.of(mesh)
            await senders.send(round(count * (1 - WARM_UP)))
            after = State.of(mesh)
        await senders.close()
        print(dict(sorted(senders.answered.items())), load.summary(), before, after, sep="\n")  # noqa: T201 - shown by -rP
        assert not senders.complaints, "\n".join(senders.complaints[:20])
        assert not load.failed, load.summary()
        assert {name: mesh.pid(name) for name in mesh.names if mesh.is_running(name)} == pids
        assert not unexpected(mesh), "\n".join(unexpected(mesh)[:5])
        assert not faults_in_log(mesh), "\n".join(map(str, faults_in_log(mesh)[:10]))
        for name, size in after.memory_bytes.items():
            assert size <= before.memory_bytes[name] * (1 + GROWTH) + SLACK_BYTES, f"{name}: {before} → {after}"
        await until_flat(mesh, before)


async def until_flat(mesh: ChaosMesh, before: State) -> None:
    """Wait until no process holds more descriptors than it did."""

    def flat() -> bool:
        return all(mesh.descriptors(name) <= count + SLACK_DESCRIPTORS for name, count in before.descriptors.items())

    await asyncio.to_thread(mesh.until, flat, f"descriptors were {before.descriptors}")
