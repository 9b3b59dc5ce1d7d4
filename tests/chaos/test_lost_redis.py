"""Redis is killed, started again, paused and let go on under load: no request fails for it, and limits hold."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING

from tests.chaos.load import OK, Grpc, Load, Rest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.conftest import StartMesh
    from tests.chaos.mesh import ChaosMesh

GATEWAYS = ("gateway", "gateway-2")
CAPACITY, EACH_SECOND = 100, 20.0
CONFIGS = {
    "auth.yaml": "api_keys: [{key: key-of-many, name: many}, {key: key-of-few, name: few}]\n",
    "rate_limits.yaml": (
        "per_api_key:\n"
        "  many: {capacity: 1000000, refill_rate: 1000000, tokens_per_day: 1000000000, concurrent_requests: 1000}\n"
        f"  few: {{capacity: {CAPACITY}, refill_rate: {EACH_SECOND}}}\n"
    ),
}
PATIENCE_SECONDS = 0.2
"""How long a request may wait for Redis, as the gateways are told."""
USUAL_SECONDS = 1.0
"""How long requests take on a machine that does all this at once."""
TOLERATED = 0.02 * CAPACITY
"""What a coming or going may let through beyond the limit, in requests: each gateway goes on from what it was last told, and one that is
not back yet grants its share beside the other."""


def ways(mesh: ChaosMesh, key: str) -> tuple[Rest, Grpc]:
    """Both wires, with a key."""
    return Rest(mesh.url, headers={"x-api-key": key}, name=f"rest {key}"), Grpc(
        mesh.edge, metadata=(("x-api-key", key),), name=f"grpc {key}"
    )


def away(mesh: ChaosMesh) -> bool:
    """Whether every gateway counts by itself."""
    return all(mesh.metric(name, "router_redis_up") == 0 for name in GATEWAYS)


def back(mesh: ChaosMesh) -> bool:
    """Whether every gateway counts in Redis."""
    return all(mesh.metric(name, "router_redis_up") == 1 for name in GATEWAYS)


async def wait_for(holds: Callable[[ChaosMesh], bool], mesh: ChaosMesh) -> None:
    """Wait until something holds of the mesh."""
    await asyncio.to_thread(mesh.until, lambda: holds(mesh), f"never {holds.__name__}", seconds=20)


async def test_redis_that_comes_and_goes_fails_no_request_and_lifts_no_limit(
    start_mesh: StartMesh, length: Callable[[int, int], int]
) -> None:
    """Killed and started again, empty; paused and let go on; again and again."""
    rounds = length(2, 10)
    with start_mesh(gateways=2, embed_workers=1, redis=True, configs=CONFIGS) as mesh:
        started = time.monotonic()
        async with Load(*ways(mesh, "key-of-many"), callers=6) as many, Load(*ways(mesh, "key-of-few"), rate=3 * EACH_SECOND) as few:
            await many.calls(200)
            for _ in range(rounds):
                mesh.kill("redis")
                await wait_for(away, mesh)
                await few.seconds(3)
                mesh.start("redis")
                await wait_for(back, mesh)
                await few.seconds(3)
                mesh.send("redis", signal.SIGSTOP)
                await wait_for(away, mesh)
                await few.seconds(3)
                mesh.send("redis", signal.SIGCONT)
                await wait_for(back, mesh)
                await few.seconds(3)
            seconds = time.monotonic() - started
        assert not many.failed, many.summary()
        assert set(few.statuses()) <= {OK, "429", "RESOURCE_EXHAUSTED"}, few.summary()
        granted = few.statuses()[OK]
        assert granted <= CAPACITY + EACH_SECOND * seconds + 4 * rounds * TOLERATED
        assert granted >= 0.6 * EACH_SECOND * seconds
        assert max(made.seconds for made in many.made) < PATIENCE_SECONDS + USUAL_SECONDS
        assert all(mesh.log(name).count("Redis is away") == 2 * rounds for name in GATEWAYS), "one line each time"
        assert all(mesh.metric(name, "router_quota_local_charges_total") > 0 for name in GATEWAYS)
