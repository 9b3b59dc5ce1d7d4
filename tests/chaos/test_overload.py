"""Ten times what the model can do, and one caller who floods: who can be served is, and all others are told so at once.

The model sleeps (EMBED_NULL_TOKEN_US), so that a small machine can offer many times what it does. Latencies are judged against others of
the same mesh, minutes ago.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.chaos.load import OK, Grpc, Load, Outcome, Rest, peak, percentile

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.conftest import StartMesh
    from tests.chaos.load import Caller, Made
    from tests.chaos.mesh import ChaosMesh

SLEEPING = {"EMBED_NULL_TOKEN_US": "40000", "EMBED_MAX_BATCH_TOKENS": "32", "EMBED_THREADS": "8", "ROUTER_CACHE_MAX_BYTES": "0"}
"""A text of twelve tokens takes half a second, and eight runs go on at a time: fifteen texts a second, and an idle machine."""
AUTH = "api_keys: [{key: sk-of-the-flood, name: flood}, {key: sk-of-the-other, name: other}]\nallow_anonymous_without_api_keys: false\n"
CONNECTIONS = 8
"""The edge takes 100 calls at a time on one connection of HTTP/2: more would wait at the caller's end, unseen."""
RECOVERY_SECONDS = 5.0
"""So long after a flood all of it is answered, and latencies are as before."""
MOST_GROWN_MIB = 100
MIB = 2**20


def keyed(mesh: ChaosMesh, key: str, **options: Any) -> Rest:
    """Return a caller with a key."""
    return Rest(mesh.url, headers={"Authorization": f"Bearer {key}", **options.pop("headers", {})}, name=key, **options)


def refused(calls: list[Made]) -> list[Made]:
    """Return the calls that were refused for want of room."""
    return [made for made in calls if made.outcome.status in ("429", "RESOURCE_EXHAUSTED")]


def wait_seconds(outcome: Outcome) -> float:
    """Return how long a refusal says to wait."""
    assert outcome.headers is not None
    assert int(outcome.headers["retry-after"]) >= 1
    return int(outcome.headers["retry-after-ms"]) / 1000


async def alone(way: Caller, *, rate: float, seconds: float) -> float:
    """Return the 99th percentile of calls made one after another while nobody else calls."""
    async with Load(way, rate=rate) as load:
        await load.seconds(seconds)
    assert not load.failed, load.summary()
    return percentile(load.made, 99)


@dataclass(frozen=True, slots=True)
class Flood:
    """What became of a mesh that was asked for more than it can do.

    Args:
        load: All calls of the flood.
        stopped: When it ended, by time.monotonic.
        drained_seconds: From then to the last answer.
        yardstick: Calls meanwhile that are refused for their model, and need no room.
        grown_mib: What each process took more of memory.
    """

    load: Load
    stopped: float
    drained_seconds: float
    yardstick: Load
    grown_mib: dict[str, float]

    @property
    def refused(self) -> list[Made]:
        """The calls that there was no room for."""
        return refused(self.load.made)

    def served_per_second(self, seconds: float) -> float:
        """Return how many a second were answered while it went on, which was so long."""
        return sum(made.outcome.status == OK and made.ended <= self.stopped for made in self.load.made) / seconds


async def flooded(mesh: ChaosMesh, *, rate: float, seconds: float) -> Flood:
    """Ask so many times a second, on both wires, for so long, and wait until all is answered."""
    before = {name: mesh.memory_bytes(name) for name in mesh.names}
    ways = [way for _ in range(CONNECTIONS) for way in (Rest(mesh.url), Grpc(mesh.edge))]
    idle = Rest(mesh.url, body=lambda _: {"model": "unknown", "input": "refused for its model"})
    async with Load(*ways, rate=rate) as load, Load(idle, rate=10) as yardstick:
        await load.seconds(seconds)
        stopped = time.monotonic()
    drained_seconds = time.monotonic() - stopped
    grown = {name: (mesh.memory_bytes(name) - before[name]) / MIB for name in mesh.names}
    return Flood(load, stopped, drained_seconds, yardstick, grown)


async def as_told(mesh: ChaosMesh, flood: Flood) -> Outcome:
    """Call once more when the last refusal said that there will be room."""
    last = max(flood.refused, key=lambda made: made.ended)
    await asyncio.sleep(max(0.0, last.ended + wait_seconds(last.outcome) - time.monotonic()))
    async with Rest(mesh.url) as way:
        return await way.call(0)


async def test_ten_times_too_much_is_refused_at_once_and_the_rest_is_served(
    start_mesh: StartMesh, length: Callable[[float, float], float]
) -> None:
    """The served rate stays, refusals come at once and are true, memory is bounded, and seconds after it is as it was before."""
    seconds = length(20.0, 60.0)
    with start_mesh(environment=SLEEPING) as mesh:
        usual = await alone(Rest(mesh.url), rate=5, seconds=4)
        most = await peak(Rest(mesh.url), callers=32, seconds=6)
        flood = await flooded(mesh, rate=10 * most, seconds=seconds)
        again = await as_told(mesh, flood)
        await asyncio.sleep(max(0.0, flood.stopped + RECOVERY_SECONDS - time.monotonic()))
        later = await alone(Rest(mesh.url), rate=5, seconds=4)
        asked = mesh.metric("gateway", "router_overload_refusals_total")
    served, refusal, unknown = flood.served_per_second(seconds), percentile(flood.refused, 99), percentile(flood.yardstick.made, 99)
    figures = (
        f"{most=} {served=} {len(flood.refused)=} {refusal=} {unknown=} {usual=} {later=} {asked=} "
        f"{flood.drained_seconds=} {flood.grown_mib=}"
    )
    assert set(flood.load.statuses()) <= {OK, "429", "RESOURCE_EXHAUSTED"}, flood.load.summary()
    assert served >= 0.9 * most, figures
    # On a machine that is busy with other things whatever needs no room takes longer, too.
    assert refusal < max(0.05, 1.5 * unknown), figures
    assert all(wait_seconds(made.outcome) > 0 for made in flood.refused)
    assert again.status == OK, again
    assert flood.drained_seconds < RECOVERY_SECONDS, figures
    assert later <= 2 * usual, figures
    assert max(flood.grown_mib.values()) < MOST_GROWN_MIB, figures


async def test_one_key_floods_and_another_hardly_notices(start_mesh: StartMesh, length: Callable[[float, float], float]) -> None:
    """While one key asks for five times what there is, one that asks once a second waits at most twice as long as alone."""
    seconds = length(20.0, 120.0)
    environment = {**SLEEPING, "EMBED_MAX_BATCH_TOKENS": "16"}
    with start_mesh(environment=environment, configs={"auth.yaml": AUTH}) as mesh:
        quiet = await alone(keyed(mesh, "sk-of-the-other"), rate=1, seconds=seconds)
        async with Load(keyed(mesh, "sk-of-the-flood"), rate=75) as flood, Load(keyed(mesh, "sk-of-the-other"), rate=1) as other:
            await other.seconds(seconds)
    figures = {"alone": quiet, "beside a flood": percentile(other.made, 99), "flood": flood.statuses()}
    assert len(refused(flood.made)) > len(flood.made) / 2, figures
    assert not other.failed, other.summary()
    assert percentile(other.made, 99) <= 2 * quiet, figures


async def test_bulk_waits_for_interactive_calls_of_the_same_key(start_mesh: StartMesh) -> None:
    """However much bulk one key sends, its own interactive calls wait for no more than what runs, and bulk gets all that is left."""
    with start_mesh(environment={**SLEEPING, "EMBED_MAX_BATCH_TOKENS": "16"}) as mesh:
        usual = await alone(Rest(mesh.url), rate=2, seconds=10)
        bulk = Rest(mesh.url, headers={"x-quadrate-priority": "bulk"}, name="bulk")
        async with Load(bulk, callers=64) as flood, Load(Rest(mesh.url), rate=2) as other:
            await other.seconds(15)
    figures = {"usual": usual, "beside bulk": percentile(other.made, 99), "bulk a second": flood.per_second()}
    assert not flood.failed, flood.summary()
    assert not other.failed, other.summary()
    assert percentile(other.made, 99) <= 2.5 * usual, figures
    assert flood.per_second() > 10, figures
