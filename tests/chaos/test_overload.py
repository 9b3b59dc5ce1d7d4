"""Ten times what the model can do, and one caller who floods: who can be served is, and all others are told so at once.

The model sleeps (EMBED_NULL_TOKEN_US), so that a small machine can offer many times what it does. Latencies are judged against others of
the same mesh, minutes ago.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from tests.chaos.load import OK, Grpc, Load, Outcome, Rest, percentile

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


async def test_ten_times_too_much_is_refused_at_once_and_the_rest_is_served(
    start_mesh: StartMesh, length: Callable[[float, float], float]
) -> None:
    """The served rate stays, refusals come at once and are true, memory is bounded, and seconds after it is as it was before."""
    seconds = length(20.0, 60.0)
    with start_mesh(environment=SLEEPING) as mesh:
        usual = await alone(Rest(mesh.url), rate=5, seconds=4)
        async with Load(Rest(mesh.url), callers=32) as load:
            await load.seconds(6)
        peak = load.per_second()
        before = {name: mesh.memory_bytes(name) for name in mesh.names}
        ways = [way for _ in range(CONNECTIONS) for way in (Rest(mesh.url), Grpc(mesh.edge))]
        idle = Rest(mesh.url, body=lambda _: {"model": "unknown", "input": "refused for its model"})
        async with Load(*ways, rate=10 * peak) as load, Load(idle, rate=10) as yardstick:
            await load.seconds(seconds)
            stopped = time.monotonic()
        drained = time.monotonic()
        grown = {name: mesh.memory_bytes(name) - before[name] for name in mesh.names}
        calls = [made for made in load.made if made.ended <= stopped]
        served = sum(made.outcome.status == OK for made in calls) / seconds
        turned_away = refused(load.made)
        last = max(turned_away, key=lambda made: made.ended)
        await asyncio.sleep(max(0.0, last.ended + wait_seconds(last.outcome) - time.monotonic()))
        async with Rest(mesh.url) as way:
            again = await way.call(0)
        while time.monotonic() < stopped + 5:
            await asyncio.sleep(0.1)
        later = await alone(Rest(mesh.url), rate=5, seconds=4)
        asked = mesh.metric("gateway", "router_overload_refusals_total")
    figures = {
        "peak": peak,
        "served": served,
        "refused": len(turned_away),
        "refusal p99": percentile(turned_away, 99),
        "of an unknown model": percentile(yardstick.made, 99),
        "usual p99": usual,
        "later p99": later,
        "drained": drained - stopped,
        "grown MiB": {name: round(more / MIB) for name, more in grown.items()},
        "without asking": asked,
    }
    assert {made.outcome.status for made in load.made} <= {OK, "429", "RESOURCE_EXHAUSTED"}, load.summary()
    assert served >= 0.9 * peak, figures
    # On a machine that is busy with other things whatever needs no room takes longer, too.
    assert percentile(turned_away, 99) < max(0.05, 1.5 * percentile(yardstick.made, 99)), figures
    assert all(wait_seconds(made.outcome) > 0 for made in turned_away)
    assert again.status == OK, again
    assert drained - stopped < 5, figures
    assert later <= 2 * usual, figures
    assert max(grown.values()) < 100 * MIB, figures


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
