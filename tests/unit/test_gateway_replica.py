"""What becomes of a call to a worker whose work is given to another, in the very moments in which it ends anyway."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from gateway.auth.principal import ANONYMOUS
from gateway.upstreams.errand import Errand
from gateway.upstreams.peers import Lost
from gateway.upstreams.replica import Replica
from quadrate.server import Call
from quadrate.telemetry import Telemetry
from quadrate.v1 import embed_pb2, model_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

TELEMETRY = Telemetry.silent("router")


class Worker:
    """As much of a peer as a call needs. It answers when it is told to."""

    target, protocol, gate, outstanding_tokens = "worker:1", "grpc", None, 0

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()

    async def embed(self, *_: Any, **__: Any) -> str:
        """Answer, once it may."""
        await self.may_answer.wait()
        return "answer"


def replica_of(worker: Worker, changed: Callable[[Replica], None] = lambda _: None) -> Replica:
    """Return a replica that this worker is."""
    route, upstream = SimpleNamespace(model="fake"), SimpleNamespace(timeout=None, weight=1.0)
    return Replica(
        route=route,  # type: ignore[arg-type]
        task=model_pb2.TASK_EMBED,
        upstream=upstream,  # type: ignore[arg-type]
        peer=worker,  # type: ignore[arg-type]
        metrics=TELEMETRY.metrics,
        changed=changed,
    )


def send(replica: Replica) -> asyncio.Task[Any]:
    """Begin a call."""
    call = Call("m", {}, "id", None, TELEMETRY.traces.begin({}))
    errand = Errand(method="embed", request=embed_pb2.EmbedRequest(), read_by=None, tokens=3, principal=ANONYMOUS)  # type: ignore[arg-type]
    return asyncio.create_task(replica.send(errand, call))


async def under_way(replica: Replica) -> asyncio.Task[Any]:
    """Return a call that waits for its answer."""
    task = send(replica)
    while not replica._under_way:
        await asyncio.sleep(0)
    return task


async def test_what_is_let_go_may_be_asked_elsewhere() -> None:
    """It fails as what was lost does, and nothing of it stays."""
    replica = replica_of(Worker())
    task = await under_way(replica)
    replica.let_go()
    with pytest.raises(Lost):
        await task
    assert not task.cancelling()
    assert (replica._let_go, replica._under_way, replica.peer.outstanding_tokens) == (set(), set(), 0)


@pytest.mark.parametrize("leaves_first", [True, False])
async def test_who_leaves_in_the_moment_of_being_let_go_has_left(*, leaves_first: bool) -> None:
    """A caller that is gone is not answered elsewhere, whichever came first."""
    replica = replica_of(Worker())
    task = await under_way(replica)
    for step in (task.cancel, replica.let_go) if leaves_first else (replica.let_go, task.cancel):
        step()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (replica._let_go, replica._under_way) == (set(), set())


async def test_an_answer_that_ends_a_doubt_is_not_lost_by_that() -> None:
    """Whoever hears that the replica answers again may let it go as still silent; the answer is there already."""
    worker = Worker()
    replica = replica_of(worker, changed=lambda one: one.let_go())
    replica.doubt = "it has not answered"
    task = await under_way(replica)
    worker.may_answer.set()
    assert await task == "answer"
    assert not task.cancelling()
