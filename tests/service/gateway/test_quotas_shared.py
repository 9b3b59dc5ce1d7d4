"""Limits counted in Redis do what the model does, which is what the store in the process does."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from redis import Redis
from redis.exceptions import ResponseError

from gateway.quotas import shared as shared_module
from gateway.quotas.ledger import Ledger
from gateway.quotas.plan import Plan
from gateway.quotas.rules import SECOND_US, Rule
from gateway.quotas.script import Script
from gateway.quotas.shared import SharedStore
from gateway.quotas.usage import Usage
from gateway.redis import RedisAway, SharedRedis
from quadrate.telemetry import Metrics
from tests.processes import eventually
from tests.quota_model import StoreMachine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from gateway.quotas.rules import Reply
    from tests.redis_server import RedisServer

CLOCK = "test:clock"
TIMEOUT_SECONDS = 5.0


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[SharedRedis]:
    """A connection to it."""
    async with SharedRedis(redis_server.url, timeout_seconds=TIMEOUT_SECONDS, metrics=Metrics("router")) as redis:
        yield redis


@pytest.fixture
async def redis_in_a_hurry(redis_server: RedisServer) -> AsyncIterator[SharedRedis]:
    """A connection that soon gives up."""
    async with SharedRedis(redis_server.url, timeout_seconds=0.3, metrics=Metrics("router")) as redis:
        yield redis


@pytest.fixture
def moved_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let scripts read the time from a key of the test's; it is the only thing about them that differs."""
    for name in ("CHARGE", "SETTLE"):
        script: Script = getattr(shared_module, name)
        text = script.text.replace("redis.call('TIME')", f"cjson.decode(redis.call('GET', '{CLOCK}'))")
        assert text != script.text
        moved = Script.of(text)
        monkeypatch.setattr(shared_module, name, moved)


class InRedis:
    """The shared store, driven from code that does not wait, by a clock of the test's."""

    def __init__(self, redis_server: RedisServer) -> None:
        self._runner = asyncio.Runner()
        self._redis = SharedRedis(redis_server.url, timeout_seconds=TIMEOUT_SECONDS, metrics=Metrics("router"))
        self._store = SharedStore(self._redis)
        self._clock = Redis.from_url(redis_server.url, protocol=2)

    def set_clock(self, now_us: int) -> None:
        """Let it be so late."""
        self._clock.set(CLOCK, f"[{now_us // SECOND_US}, {now_us % SECOND_US}]")

    def charge(self, rules: Sequence[Rule], costs: Sequence[float], lease: str, lease_us: float) -> Reply:
        """Charge the store."""
        return self._runner.run(self._store.charge(rules, costs, lease, lease_us))

    def settle(self, rules: Sequence[Rule], changes: Sequence[float], lease: str, charged_us: float) -> None:
        """Settle with the store, and wait until it is done."""

        async def settle() -> None:
            self._store.settle(rules, changes, lease, charged_us)
            await self._store.drain()

        self._runner.run(settle())

    def close(self) -> None:
        """Close the connections."""
        self._runner.run(self._redis.__aexit__())
        self._runner.close()
        self._clock.close()


def bucket(capacity: float = 10.0, each: float = 60.0 * SECOND_US) -> Rule:
    """A bucket that regains next to nothing while a test runs."""
    return Rule(kind="bucket", key="quadrate:quota:x", name="requests", counts="requests", capacity=capacity, each=each, largest=capacity)


def leases(capacity: float = 2.0) -> Rule:
    """A limit of requests under way."""
    return Rule(kind="leases", key="quadrate:quota:l", name="concurrent_requests", counts="requests", capacity=capacity, largest=capacity)


def day(capacity: float = 100.0) -> Rule:
    """A sum of tokens."""
    return Rule(kind="day", key="quadrate:quota:d", name="tokens_per_day", counts="tokens", capacity=capacity, largest=capacity)


async def becomes(value: Callable[[], Awaitable[Any]], wanted: Any) -> None:
    """Wait until an answer is what it should be."""
    async with asyncio.timeout(10):
        while await value() != wanted:
            await asyncio.sleep(0.02)


@pytest.mark.usefixtures("moved_clock")
async def test_the_store_in_redis_does_what_the_model_does(redis_server: RedisServer) -> None:
    """Whatever is charged, given back and corrected, in any order, with any limits, as time passes."""

    class Machine(StoreMachine):
        store: Any = None

    def run() -> None:
        Machine.store = InRedis(redis_server)
        try:
            run_state_machine_as_test(Machine, settings=settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck)))
        finally:
            Machine.store.close()

    await asyncio.to_thread(run)


async def test_many_callers_at_once_get_what_there_is_and_no_more(redis: SharedRedis) -> None:
    """Two gateways ask a hundred times each at the same moment; exactly the limit passes."""
    stores = [SharedStore(redis), SharedStore(redis)]
    replies = await asyncio.gather(*(store.charge([bucket(37.0)], [1.0], "", 0.0) for store in stores for _ in range(100)))
    assert sum(reply.allowed for reply in replies) == 37


async def test_a_caller_that_leaves_while_it_is_charged_is_charged_nothing(redis: SharedRedis) -> None:
    """Whether the charge was sent already or not."""
    store, rules = SharedStore(redis), [bucket(10.0), leases()]
    for delay in (0, 1, 2, 3, 4, 8):
        charge = asyncio.create_task(store.charge(rules, [4.0, 1.0], f"lease-{delay}", 60e6))
        for _ in range(delay):
            await asyncio.sleep(0)
        charge.cancel()
        (outcome,) = await asyncio.gather(charge, return_exceptions=True)
        if not isinstance(outcome, asyncio.CancelledError):
            store.settle(rules, [-4.0, 0.0], f"lease-{delay}", 0.0)
        await store.drain()
    reply = await store.charge(rules, [10.0, 1.0], "last", 60e6)
    assert reply.allowed
    assert reply.states[1] == 0


async def test_all_limits_of_a_request_take_one_round_trip(redis: SharedRedis, redis_server: RedisServer) -> None:
    """One script for each request, whatever it falls under; and one trip for requests that come together."""
    store, rules = SharedStore(redis), [bucket(1000.0), leases(1000.0)]
    await store.charge(rules, [1.0, 1.0], "first", 1e6)  # teaches the scripts
    async with redis_server.client() as client:
        await client.config_resetstat()
        for number in range(5):
            await store.charge(rules, [1.0, 1.0], f"lease-{number}", 1e6)
        calls = {name: told["calls"] for name, told in (await client.info("commandstats")).items()}
        assert calls["cmdstat_evalsha"] == 5
        before = (await client.info("stats"))["total_reads_processed"]
        await asyncio.gather(*(store.charge(rules, [1.0, 1.0], f"more-{number}", 1e6) for number in range(100)))
        assert (await client.info("stats"))["total_reads_processed"] - before < 20


async def test_a_lease_of_a_lost_gateway_ends_by_itself(redis: SharedRedis) -> None:
    """Nobody gives it back, and others take its place once its time is over."""
    store = SharedStore(redis)
    assert (await store.charge([leases(1.0)], [1.0], "of the lost", 200_000.0)).allowed
    assert not (await store.charge([leases(1.0)], [1.0], "of another", 60e6)).allowed
    async with asyncio.timeout(10):
        while not (await store.charge([leases(1.0)], [1.0], "of another", 60e6)).allowed:
            await asyncio.sleep(0.02)


async def test_a_server_that_restarted_gets_the_scripts_again(redis: SharedRedis, redis_server: RedisServer) -> None:
    """It knows neither scripts nor limits; the next charge teaches it."""
    store = SharedStore(redis)
    await store.charge([bucket()], [1.0], "", 0.0)
    async with redis_server.client() as client:
        await client.script_flush()
        await client.flushall()
    assert (await store.charge([bucket()], [1.0], "", 0.0)).states == [0.0]


async def test_what_gateways_know_stands_where_redis_has_forgotten(redis: SharedRedis) -> None:
    """A floor counts as taken, and stays so for others."""
    store = SharedStore(redis)
    reply = await store.charge([bucket()], [1.0], "", 0.0, floors=[8 * 60e6])
    assert reply.allowed
    assert reply.states[0] == pytest.approx(8 * 60e6)
    assert (await store.charge([bucket()], [1.0], "", 0.0)).allowed
    assert not (await store.charge([bucket()], [1.0], "", 0.0)).allowed


async def test_keys_end_with_what_they_say(redis: SharedRedis, redis_server: RedisServer) -> None:
    """A full bucket needs no key: a store of many callers holds only those that came of late."""
    store = SharedStore(redis)
    await store.charge([bucket(10.0, 1000.0), leases()], [3.0, 1.0], "lease", 100_000.0)
    async with redis_server.client() as client:
        assert 0 < await client.pttl("quadrate:quota:x") < 1100
        assert 0 < await client.pttl("quadrate:quota:l") < 1200
        await client.delete("quadrate:probe")
        async with asyncio.timeout(10):
            while await client.keys("quadrate:quota:*"):
                await asyncio.sleep(0.05)


async def test_a_lost_store_is_told_to_all_who_wait(redis: SharedRedis, redis_server: RedisServer) -> None:
    """Charges fail, settlements are let go, and both work again when the store is back."""
    store = SharedStore(redis)
    redis_server.kill()
    outcomes = await asyncio.gather(*(store.charge([bucket()], [1.0], "", 0.0) for _ in range(300)), return_exceptions=True)
    assert all(isinstance(outcome, RedisAway) for outcome in outcomes)
    store.settle([bucket()], [-1.0], "", 0.0)
    await store.drain()
    await redis_server.start()
    await eventually(lambda: redis.available, "the store is found again")
    assert (await store.charge([bucket()], [1.0], "", 0.0)).allowed


async def test_what_requests_give_back_while_redis_stands_still_waits_for_it(
    redis_in_a_hurry: SharedRedis, redis_server: RedisServer
) -> None:
    """One failed, and one was of fewer tokens than estimated: every limit is as it should be once Redis goes on, and nobody need ask."""
    redis, rules = redis_in_a_hurry, [bucket(100.0), leases(3.0), day()]
    store = SharedStore(redis)
    failed, estimated = [await store.charge(rules, [20.0, 1.0, 20.0], f"lease-{number}", 60e6) for number in range(2)]
    redis_server.pause()
    await eventually(lambda: not redis.available, "the loss is noticed")
    store.settle(rules, [-20.0, -1.0, -20.0], "lease-0", failed.now_us)
    store.settle(rules, [-15.0, 0.0, -15.0], "lease-1", estimated.now_us)
    redis_server.resume()
    await eventually(lambda: redis.available, "the store is found again")
    await store.drain()
    reply = await SharedStore(redis).charge(rules, [0.0, 0.0, 0.0], "", 0.0)
    assert [reply.states[0] / 60e6, *reply.states[1:]] == [pytest.approx(5.0, abs=0.1), 0.0, 5.0]


async def test_what_a_request_gives_back_on_a_trip_that_is_lost_is_given_back_once(
    redis_in_a_hurry: SharedRedis, redis_server: RedisServer
) -> None:
    """Redis reads it when it goes on, and is sent it again by a gateway that has heard nothing."""
    redis, rules = redis_in_a_hurry, [bucket(100.0), leases(3.0), day()]
    store = SharedStore(redis)
    first, _ = [await store.charge(rules, [20.0, 1.0, 20.0], f"lease-{number}", 60e6) for number in range(2)]
    redis_server.pause()
    store.settle(rules, [-5.0, 0.0, -5.0], "lease-0", first.now_us)
    await eventually(lambda: not redis.available, "the loss is noticed")
    redis_server.resume()
    await eventually(lambda: redis.available, "the store is found again")
    await store.drain()
    reply = await SharedStore(redis).charge(rules, [0.0, 0.0, 0.0], "", 0.0)
    assert [reply.states[0] / 60e6, *reply.states[1:]] == [pytest.approx(35.0, abs=0.1), 1.0, 35.0]


def lose_answers(monkeypatch: pytest.MonkeyPatch, times: int) -> Iterator[int]:
    """Let so many trips be made whose answers never come; return what counts the trips."""
    send, losses = shared_module._send, itertools.count()

    async def lose_the_answer(*arguments: Any) -> list[Any]:
        replies = await send(*arguments)
        if next(losses) < times:
            raise TimeoutError
        return replies

    monkeypatch.setattr(shared_module, "_send", lose_the_answer)
    return losses


@pytest.mark.parametrize("times", [1, 2])
async def test_what_was_given_back_and_not_answered_is_given_back_once(
    redis: SharedRedis, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """However often the answers are lost, and whatever is asked for meanwhile."""
    store, rules = SharedStore(redis), [bucket(100.0), leases(5.0)]
    charged = [await store.charge(rules, [20.0, 1.0], f"lease-{number}", 60e6) for number in range(3)]
    losses = lose_answers(monkeypatch, times)
    for number in range(2):
        store.settle(rules, [-5.0, 0.0], f"lease-{number}", charged[number].now_us)
    await eventually(lambda: not redis.available, "an answer is lost")
    store.settle(rules, [-6.0, 0.0], "lease-2", charged[2].now_us)
    await eventually(lambda: redis.available and next(losses) > times, "the store is found again, and asked")
    await store.drain()
    reply = await store.charge(rules, [0.0, 0.0], "", 0.0)
    assert [reply.states[0] / 60e6, reply.states[1]] == [pytest.approx(44.0, abs=0.1), 0.0]


async def test_a_store_that_has_forgotten_a_charge_is_given_nothing_back(redis: SharedRedis, redis_server: RedisServer) -> None:
    """What is taken there now, others took."""
    store, rules = SharedStore(redis), [bucket()]
    charged = await store.charge(rules, [5.0], "", 0.0)
    async with redis_server.client() as client:
        await client.flushall()
        await SharedStore(redis).charge(rules, [3.0], "", 0.0)
        kept = await client.get("quadrate:quota:x")
        store.settle(rules, [-5.0], "", charged.now_us)
        await store.drain()
        assert await client.get("quadrate:quota:x") == kept


async def test_what_a_bucket_has_regained_meanwhile_is_not_given_back(redis: SharedRedis, redis_server: RedisServer) -> None:
    """Whatever others took since stays taken. A day lasts longer."""
    store, rules = SharedStore(redis), [bucket(10.0, 0.01 * SECOND_US), day()]
    charged = await store.charge(rules, [5.0, 5.0], "", 0.0)
    redis._delay_seconds = 0.5  # this gateway is cut off, and others are not
    redis._lose(ConnectionError())
    store.settle(rules, [-5.0, -5.0], "", charged.now_us)
    ended = time.monotonic()
    async with redis_server.client() as client:
        await eventually(lambda: time.monotonic() > ended + 0.1, "the bucket is full again")
        await client.set("quadrate:quota:x", of_others := str(charged.now_us + 60e6))
        await eventually(lambda: redis.available, "the store is found again")
        await store.drain()
        assert await client.get("quadrate:quota:x") == of_others
        assert (await store.charge([day()], [0.0], "", 0.0)).states == [0.0]


async def test_no_more_waits_for_redis_than_there_is_room_for(redis: SharedRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that came first stay; the rest is let go."""
    monkeypatch.setattr(shared_module, "MOST_WAITING", 3)
    store, rules = SharedStore(redis), [bucket(10.0)]
    charged = await store.charge(rules, [9.0], "", 0.0)
    redis._lose(ConnectionError())
    for _ in range(5):
        store.settle(rules, [-1.0], "", charged.now_us)
    await eventually(lambda: redis.available, "the store is found again")
    await store.drain()
    assert (await store.charge(rules, [0.0], "", 0.0)).states[0] / 60e6 == pytest.approx(6.0, abs=0.1)


async def test_a_charge_whose_answer_is_lost_is_given_back(redis_in_a_hurry: SharedRedis, redis_server: RedisServer) -> None:
    """Redis reads it when it goes on, long after its caller was told to do without."""
    redis, rules = redis_in_a_hurry, [bucket(10.0), leases(3.0), day()]
    store = SharedStore(redis)
    assert (await store.charge(rules, [2.0, 1.0, 5.0], "answered", 60e6)).allowed
    redis_server.pause()
    lost = [store.charge(rules, [3.0, 1.0, 7.0], f"lost-{number}", 60e6) for number in range(2)]
    outcomes = await asyncio.gather(*lost, return_exceptions=True)
    assert all(isinstance(outcome, RedisAway) for outcome in outcomes)
    redis_server.resume()
    await eventually(lambda: redis.available, "the store is found again")
    await store.drain()  # nobody need ask for anything
    reply = await SharedStore(redis).charge(rules, [0.0, 0.0, 0.0], "", 0.0)
    assert [reply.states[0] / 60e6, *reply.states[1:]] == [pytest.approx(2.0, abs=0.1), 1.0, 5.0]


@pytest.mark.parametrize("times", [1, 2])
async def test_only_what_was_carried_out_is_given_back_and_only_once(
    redis: SharedRedis, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """Of a trip whose answer is lost after Redis did it, as is the answer to what gives it back."""
    store, rules = SharedStore(redis), [bucket(10.0), leases(2.0)]
    await store.charge(rules, [1.0, 1.0], "answered", 60e6)
    losses = lose_answers(monkeypatch, times)
    charges = [store.charge(rules, [cost, 1.0], f"lost-{cost}", 60e6) for cost in (20.0, 4.0, 3.0)]  # of which the second has room
    outcomes = await asyncio.gather(*charges, return_exceptions=True)
    assert all(isinstance(outcome, RedisAway) for outcome in outcomes)
    await eventually(lambda: redis.available and next(losses) > times, "the store is found again, and asked")
    await store.drain()
    reply = await store.charge(rules, [2.0, 1.0], "after", 60e6)
    assert [reply.states[0] / 60e6, reply.states[1]] == [pytest.approx(1.0, abs=0.1), 1.0]
    async with redis_server.client() as client:
        assert sorted(await client.zrange("quadrate:quota:l", 0, -1)) == ["after", "answered"]


async def test_what_was_given_up_is_not_carried_out_any_more(redis: SharedRedis, redis_server: RedisServer) -> None:
    """A packet that arrives after its charge was given back finds the trip closed."""
    store = SharedStore(redis)
    await store.charge([bucket()], [1.0], "", 0.0)
    parts = ["bucket", 1.0, 10.0, 60e6, 0.0]
    async with redis_server.client() as client:
        undo = ["", 0, 2, 0, "bucket", -1.0, 60e6]
        assert await client.evalsha(shared_module.SETTLE.digest, 2, "quadrate:quota:x", store._mark, *undo) == 0
        with pytest.raises(ResponseError, match="LATE"):
            await client.evalsha(shared_module.CHARGE.digest, 2, "quadrate:quota:x", store._mark, "", 0.0, 2, 0, *parts)


async def test_a_request_counted_here_while_redis_stood_still_is_counted_once(
    redis_in_a_hurry: SharedRedis, redis_server: RedisServer
) -> None:
    """What Redis carried out late goes, what this gateway counted is told, and what a failed request gave back stays given back."""
    redis = redis_in_a_hurry
    ledger, plan = Ledger(redis, lambda: 1, Metrics("router")), Plan((bucket(100.0),))
    await ledger.charge(plan, [10.0], "", 0.0)
    redis_server.pause()
    kept, failed = [await ledger.charge(plan, [cost], "", 0.0) for cost in (5.0, 20.0)]
    assert not kept.is_shared
    ledger.settle(failed, [-20.0], "")
    redis_server.resume()
    await eventually(lambda: redis.available, "the store is found again")
    after = await ledger.charge(plan, [1.0], "", 0.0)
    assert after.is_shared
    assert after.reply.states[0] / 60e6 == pytest.approx(15.0, abs=0.1)


@pytest.mark.parametrize("is_empty", [False, True])
async def test_a_request_that_fails_while_redis_is_away_costs_nothing(
    redis_in_a_hurry: SharedRedis, redis_server: RedisServer, *, is_empty: bool
) -> None:
    """Whether Redis still knows the charge when it is back, or is told by the gateway what is taken."""
    redis = redis_in_a_hurry
    ledger, plan = Ledger(redis, lambda: 1, Metrics("router")), Plan((bucket(100.0), leases(3.0), day()), has_leases=True)
    failed, _ = [await ledger.charge(plan, [cost, 1.0, cost], f"lease-{cost}", 60e6) for cost in (10.0, 5.0)]
    if is_empty:
        redis_server.kill()
    else:
        redis_server.pause()
    await eventually(lambda: not redis.available, "the loss is noticed")
    ledger.settle(failed, [-10.0, -1.0, -10.0], "lease-10.0")
    if is_empty:
        await redis_server.start()
    else:
        redis_server.resume()
    await eventually(lambda: redis.available, "the store is found again")
    after = await ledger.charge(plan, [1.0, 1.0, 1.0], "lease-after", 60e6)
    assert after.is_shared
    assert [after.reply.states[0] / 60e6, *after.reply.states[1:]] == [pytest.approx(5.0, abs=0.1), 1.0, 5.0]


async def test_use_is_handed_over_once(redis_in_a_hurry: SharedRedis, redis_server: RedisServer) -> None:
    """Redis adds it when it goes on, and is handed it again by a gateway that has heard nothing."""
    redis, day = redis_in_a_hurry, dt.date(2026, 1, 1)
    usage, other = (Usage(redis, lambda: day) for _ in range(2))
    usage.row("alice", "minilm").tokens += 3
    await usage.hand_over()
    usage.row("alice", "minilm").tokens += 4
    redis_server.pause()
    with pytest.raises(RedisAway):
        await usage.hand_over()
    usage.row("alice", "minilm").tokens += 10
    assert usage.here(day)["alice", "minilm"].tokens == 14, "what may not have arrived, and what is new"
    redis_server.resume()
    await eventually(lambda: redis.available, "the store is found again")
    async with redis_server.client() as client:
        await becomes(lambda: client.hget("quadrate:usage:2026-01-01", "alice minilm tokens"), "7")
    assert (await usage.read(day))["alice", "minilm"].tokens == 17
    other.row("alice", "minilm").tokens += 100
    await other.hand_over()
    await usage.hand_over()
    assert (await usage.read(day))["alice", "minilm"].tokens == 117
    assert (await other.read(day))["alice", "minilm"].tokens == 117
