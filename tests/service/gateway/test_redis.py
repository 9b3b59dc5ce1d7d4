"""The shared connection to Redis: quick when it is there, and no burden when it is not."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from gateway.redis import RedisAway, SharedRedis
from quadrate.errors import ConfigError
from quadrate.telemetry import Metrics
from quadrate.testing.ports import free_port
from tests.processes import eventually
from tests.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from redis.asyncio import Redis

TIMEOUT_SECONDS = 0.6


@pytest.fixture
async def shared(redis_server: RedisServer) -> AsyncIterator[SharedRedis]:
    """A connection to it."""
    async with SharedRedis(redis_server.url, timeout_seconds=TIMEOUT_SECONDS, metrics=Metrics("router")) as shared:
        yield shared


async def ping(client: Redis) -> Any:
    """Ask the least there is to ask."""
    return await client.get("nothing")


async def lose(shared: SharedRedis) -> None:
    """Call until the loss is noticed."""
    with pytest.raises(RedisAway):
        while True:
            await shared.call(ping)


async def test_a_call_gives_what_its_work_gives(shared: SharedRedis) -> None:
    """Work gets the client, and its answer comes back."""

    async def work(client: Redis) -> Any:
        await client.set("a", b"1")
        return await client.get("a")

    assert await shared.call(work) == b"1"


async def test_a_killed_store_costs_one_call_and_then_none(shared: SharedRedis, redis_server: RedisServer) -> None:
    """The call that finds out fails; those after it fail at once and open no connection; listeners hear of both turns."""
    turns: list[bool] = []
    shared.listen(lambda: turns.append(shared.available))
    redis_server.kill()
    await lose(shared)
    started = time.perf_counter()
    for _ in range(100):
        with pytest.raises(RedisAway):
            await shared.call(ping)
    assert time.perf_counter() - started < TIMEOUT_SECONDS
    assert not shared.available
    assert shared.reason
    await redis_server.start()
    await eventually(lambda: shared.available, "it is found again")
    assert await shared.call(ping) is None
    assert turns == [False, True]


async def test_a_paused_store_counts_as_away_after_the_time_of_a_call(shared: SharedRedis, redis_server: RedisServer) -> None:
    """Every call that waits fails within the time allowed, and it comes back when the store goes on."""
    redis_server.pause()
    started = time.perf_counter()
    results = await asyncio.gather(*(shared.call(ping) for _ in range(50)), return_exceptions=True)
    assert all(isinstance(result, RedisAway) for result in results)
    assert time.perf_counter() - started < 10 * TIMEOUT_SECONDS
    redis_server.resume()
    await eventually(lambda: shared.available, "it is found again")


async def test_a_store_is_missed_without_any_call(shared: SharedRedis, redis_server: RedisServer) -> None:
    """It is asked now and then, so that the first request after a quiet hour need not find out."""
    redis_server.kill()
    await eventually(lambda: not shared.available, "the loss is noticed")


async def test_a_store_that_takes_no_writes_is_away(shared: SharedRedis, redis_server: RedisServer) -> None:
    """A replica that lost its master, or a full store, answers reads and is of no use."""
    async with redis_server.client() as client:
        await client.execute_command("REPLICAOF", "127.0.0.1", str(free_port()))
        await eventually(lambda: not shared.available, "it is noticed")
        assert "ReadOnly" in shared.reason
        await client.execute_command("REPLICAOF", "NO", "ONE")
        await eventually(lambda: shared.available, "it is found again")


async def test_a_gateway_starts_without_its_store() -> None:
    """One that is away at the start is looked for like one that was lost."""
    async with SharedRedis(f"redis://127.0.0.1:{free_port()}", timeout_seconds=TIMEOUT_SECONDS, metrics=Metrics("router")) as shared:
        assert not shared.available


@pytest.fixture
async def cluster(require_program: Callable[[str], str], tmp_path: Path) -> AsyncIterator[RedisServer]:
    """A cluster of one node, which has all slots."""
    options = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    async with RedisServer(require_program("redis-server"), tmp_path, *options) as server, server.client() as client:
        await client.execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        async with asyncio.timeout(10):
            while "cluster_state:ok" not in await client.execute_command("CLUSTER", "INFO"):
                await asyncio.sleep(0.02)
        yield server


async def test_a_cluster_is_refused_at_the_start(cluster: RedisServer) -> None:
    """With the reason and the way out: limits of one request cannot be charged in one step there."""
    with pytest.raises(ConfigError, match=r"ROUTER_REDIS_URL: this Redis is a cluster.*name one server.*docs/quotas\.md"):
        async with SharedRedis(cluster.url, timeout_seconds=TIMEOUT_SECONDS, metrics=Metrics("router")):
            pass


async def test_a_cluster_that_comes_later_is_told_of_and_not_used(cluster: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway goes on without it, and does not take it for one that is back."""
    with monkeypatch.context() as changed:
        changed.setattr("gateway.redis._probe", lose_the_connection)
        async with SharedRedis(cluster.url, timeout_seconds=TIMEOUT_SECONDS, metrics=Metrics("router")) as shared:
            turns: list[bool] = []
            shared.listen(lambda: turns.append(shared.available))
            assert shared.reason == "ConnectionError"
            changed.undo()
            await eventually(lambda: "is a cluster" in shared.reason, "it is told of")
            with pytest.raises(RedisAway, match="is a cluster"):
                await shared.call(ping)
            assert not turns


async def lose_the_connection(_: Redis) -> None:
    """Answer as a machine that is restarted."""
    raise ConnectionError


async def test_no_password_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    """Neither the log nor the reason holds what the URL holds."""
    url = f"redis://user:a-secret-word@127.0.0.1:{free_port()}"
    async with SharedRedis(url, timeout_seconds=TIMEOUT_SECONDS, metrics=Metrics("router")) as shared:
        assert "a-secret-word" not in shared.reason
    assert "a-secret-word" not in capfd.readouterr().out
