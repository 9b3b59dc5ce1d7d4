"""Quotas at the gateway: charged before the work, told truly, and given back when nothing came of it."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc
import pytest

from gateway.quotas import quotas
from quadrate.errors import Internal, InvalidArgument
from quadrate.v1 import embed_pb2, model_pb2, options_pb2, rerank_pb2
from tests.processes import eventually
from tests.service.gateway.conftest import Door, refusal, refused, routing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from quadrate.testing.worker import FakeWorker
    from tests.redis_server import RedisServer

KEYS = "api_keys: [{key: alpha, name: alice}, {key: beta, name: bob}]\nallow_anonymous_without_api_keys: true"
ALICE, BOB = (("x-api-key", "alpha"),), (("x-api-key", "beta"),)
CAT_TOKENS = 3
"""What the fake worker's tokenizer makes of `cat`, special tokens included."""
SLOW = 0.001
"""A refill that a test does not live to see."""


def cats(count: int = 1, model: str = "fake") -> embed_pb2.EmbedRequest:
    """Return a request of so many times three tokens."""
    return embed_pb2.EmbedRequest(model=model, inputs=[options_pb2.Input(text="cat")] * count)


def bucket(capacity: int, refill_rate: float = SLOW, **more: Any) -> str:
    """Return a limit of requests, and what else."""
    rest = "".join(f", {name}: {value}" for name, value in more.items())
    return f"{{capacity: {capacity}, refill_rate: {refill_rate}{rest}}}"


async def answered(call: Any) -> dict[str, str]:
    """Await a call that must succeed, and return the limits that its headers tell, without `x-ratelimit-`."""
    await call
    return ratelimit(await call.trailing_metadata())


def ratelimit(metadata: Any) -> dict[str, str]:
    """Return what metadata tells of limits."""
    return {key.removeprefix("x-ratelimit-"): value for key, value in metadata if key.startswith("x-ratelimit-")}


async def outcomes(calls: Sequence[Any]) -> list[bool]:
    """Await calls at once; return whether each was answered. One that fails for another reason than a limit is an error."""

    async def outcome(call: Any) -> bool:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            if refusal(error).reason != "RATE_LIMIT_EXCEEDED":
                raise
            return False
        return True

    return list(await asyncio.gather(*map(outcome, calls)))


@pytest.fixture
async def limited(open_door: Any, worker: FakeWorker) -> Callable[..., Any]:
    """Return a function that opens a door with limits."""

    def start(limits: str, **settings: Any) -> Any:
        return open_door(routing(worker), auth=KEYS, limits=limits, **settings)

    return start


async def test_who_has_no_limits_is_told_none(limited: Any) -> None:
    """No header, no refusal."""
    async with limited(f"per_api_key: {{bob: {bucket(1)}}}") as door:
        await door.until_serving()
        assert [await answered(door.embed.Embed(cats(), metadata=ALICE)) for _ in range(3)] == [{}, {}, {}]
        assert await answered(door.embed.Embed(cats())) == {}
        assert "remaining-requests" in await answered(door.embed.Embed(cats(), metadata=BOB))


async def test_answers_tell_what_is_left(limited: Any) -> None:
    """Limit, remaining and reset, of requests and of tokens, with this request counted."""
    async with limited(f"default: {bucket(10, 2.0, tokens_per_minute=600)}") as door:
        await door.until_serving()
        first = await answered(door.embed.Embed(cats(4), metadata=ALICE))
        assert (first["limit-requests"], first["remaining-requests"], first["reset-requests"]) == ("10", "9", "500ms")
        assert (first["limit-tokens"], first["remaining-tokens"], first["reset-tokens"]) == ("600", "588", "1.2s")
        second = await answered(door.embed.Embed(cats(), metadata=ALICE))
        assert second["remaining-requests"] == "8"
        other = await answered(door.embed.Embed(cats(), metadata=BOB))
        assert other["remaining-requests"] == "9", "each key has its own bucket"


async def test_a_refusal_says_which_limit_and_how_long(limited: Any, worker: FakeWorker) -> None:
    """RESOURCE_EXHAUSTED with the same headers, `retry-after` and `retry-after-ms`; no worker heard of it."""
    async with limited(f"anonymous: {bucket(2, 0.5)}") as door:
        await door.until_serving()
        for _ in range(2):
            await door.embed.Embed(cats())
        error = await refused(door.embed.Embed(cats()))
        assert (error.status, error.reason, error.body["code"]) == ("RESOURCE_EXHAUSTED", "RATE_LIMIT_EXCEEDED", "rate_limit_exceeded")
        assert error.body["type"] == "rate_limit_error"
        assert "2 requests at once and 0.5 a second" in error.message
        assert 1900 < int(error.trailers["retry-after-ms"]) <= 2000
        assert error.trailers["retry-after"] == "2"
        assert ratelimit(error.trailers.items())["remaining-requests"] == "0"
        assert len(worker.received) == 2


@pytest.mark.parametrize("limits", ["default: {capacity: 2, refill_rate: 5}", "default: {tokens_per_minute: 600}"])
async def test_waiting_as_long_as_told_is_enough(limited: Any, limits: str) -> None:
    """A caller who waits exactly so long is served."""
    async with limited(limits) as door:
        await door.until_serving()
        await door.embed.Embed(cats(200), metadata=ALICE)
        waited = 0
        while waited < 3:
            try:
                await door.embed.Embed(cats(), metadata=ALICE)
            except grpc.aio.AioRpcError as error:
                await asyncio.sleep(int(refusal(error).trailers["retry-after-ms"]) / 1000)
                await door.embed.Embed(cats(), metadata=ALICE)
                waited += 1


async def test_tokens_are_charged_as_the_model_reads_them(limited: Any) -> None:
    """For reranking the query is counted with each document, as the answer's usage says; on every wire."""
    async with limited("default: {tokens_per_day: 1000}") as door:
        await door.until_serving()
        request = rerank_pb2.RerankRequest(model="fake-rerank", query="cat", documents=[options_pb2.Input(text="dog cat")] * 5)
        call = door.rerank.Rerank(request, metadata=ALICE)
        answer = await call
        assert ratelimit(await call.trailing_metadata())["remaining-tokens"] == str(1000 - answer.usage.tokens)
        pairs = {"model": "fake-rerank", "query": "cat", "documents": ["dog cat"] * 5}
        for method in (door.cohere.RerankV1, door.cohere.RerankV2):
            await door.post(method, pairs, metadata=ALICE)
        left = await answered(door.embed.Embed(cats(), metadata=ALICE))
        assert left["remaining-tokens"] == str(1000 - 3 * answer.usage.tokens - CAT_TOKENS)

        await door.post(door.openai.CreateEmbedding, {"model": "fake", "input": ["cat", "dog"]}, metadata=BOB)
        cohere = {"model": "fake", "texts": ["cat", "dog"], "input_type": "search_query", "embedding_types": ["float"]}
        await door.post(door.cohere.EmbedV2, cohere, metadata=BOB)
        items = [embed_pb2.EmbedStreamRequest(id=str(number), request=cats()) for number in range(3)]
        assert len([answer async for answer in door.embed.EmbedStream(iter(items), metadata=BOB)]) == 3
        left = await answered(door.embed.Embed(cats(), metadata=BOB))
        assert left["remaining-tokens"] == str(1000 - (2 + 2 + 3 + 1) * CAT_TOKENS)


async def test_limits_of_a_model_hold_besides_the_callers_own(limited: Any) -> None:
    """The tighter of the two is told, and other models go on."""
    async with limited(f"default: {{capacity: 100, refill_rate: 1, models: {{fake: {bucket(2)}}}}}") as door:
        await door.until_serving()
        assert (await answered(door.embed.Embed(cats(), metadata=ALICE)))["remaining-requests"] == "1"
        await door.embed.Embed(cats(), metadata=ALICE)
        error = await refused(door.embed.Embed(cats(), metadata=ALICE))
        assert "for the model 'fake'" in error.message
        request = rerank_pb2.RerankRequest(model="fake-rerank", query="cat", documents=[options_pb2.Input(text="dog")])
        assert (await answered(door.rerank.Rerank(request, metadata=ALICE)))["remaining-requests"] == "97"


async def test_a_request_that_can_never_pass_says_so(limited: Any) -> None:
    """400 and no time to wait: trying again is of no use."""
    async with limited("default: {tokens_per_minute: 10}") as door:
        await door.until_serving()
        error = await refused(door.embed.Embed(cats(5), metadata=ALICE))
        assert (error.status, error.body["code"]) == ("INVALID_ARGUMENT", "request_exceeds_limit")
        assert "15 tokens" in error.message
        assert "10 tokens a minute" in error.message
        assert "retry-after" not in error.trailers


async def test_what_fails_costs_nothing(limited: Any, worker: FakeWorker) -> None:
    """A worker's error, an answer that is none, and a request that is wrong leave the limit as it was."""

    async def fail(_: Any, __: Any) -> None:
        raise Internal("A test.")

    async with limited(f"default: {bucket(3, tokens_per_day=9)}") as door:
        await door.until_serving()
        worker.before = fail
        for _ in range(10):
            assert (await refused(door.embed.Embed(cats(3), metadata=ALICE))).status == "INTERNAL"
        worker.before = None
        await refused(door.embed.Embed(cats(0), metadata=ALICE))
        await refused(door.embed.Embed(cats(1, "nothing"), metadata=ALICE))
        left = await answered(door.embed.Embed(cats(3), metadata=ALICE))
        assert (left["remaining-requests"], left["remaining-tokens"]) == ("2", "0")


async def test_whoever_leaves_before_the_answer_pays_nothing(limited: Any, worker: FakeWorker) -> None:
    """By cancelling, and by a deadline that passed."""
    arrived, may_answer = asyncio.Event(), asyncio.Event()

    async def hold(_: Any, __: Any) -> None:
        arrived.set()
        await may_answer.wait()

    async with limited(f"default: {bucket(1, concurrent_requests=1)}") as door:
        await door.until_serving()
        worker.before = hold
        call = door.embed.Embed(cats(), metadata=ALICE)
        waiting = asyncio.create_task(outcomes([call]))
        await arrived.wait()
        call.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await eventually(lambda: _counted(door, "router_quota_refunds_total") == 1, "the charge is given back")
        arrived.clear()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.embed.Embed(cats(), metadata=ALICE, timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(lambda: _counted(door, "router_quota_refunds_total") == 2, "the charge is given back")
        may_answer.set()
        worker.before = None
        assert (await answered(door.embed.Embed(cats(), metadata=ALICE)))["remaining-requests"] == "0"


async def test_requests_under_way_are_limited_until_they_are_answered(limited: Any, worker: FakeWorker) -> None:
    """The third of two is refused at once, and served when one of them is done."""
    arrived, may_answer = asyncio.Semaphore(0), asyncio.Event()

    async def hold(_: Any, __: Any) -> None:
        arrived.release()
        await may_answer.wait()

    async with limited("default: {concurrent_requests: 2}") as door:
        await door.until_serving()
        worker.before = hold
        held = [asyncio.create_task(outcomes([door.embed.Embed(cats(), metadata=ALICE)])) for _ in range(2)]
        await arrived.acquire()
        await arrived.acquire()
        error = await refused(door.embed.Embed(cats(), metadata=ALICE))
        assert "2 requests at the same time" in error.message
        assert int(error.trailers["retry-after-ms"]) > 0
        may_answer.set()
        assert await asyncio.gather(*held) == [[True], [True]]
        await door.embed.Embed(cats(), metadata=ALICE)


async def test_each_item_of_a_stream_is_a_request(limited: Any) -> None:
    """Those that pass are answered, the others by their error and how long to wait; the stream goes on."""
    async with limited(f"default: {bucket(4)}") as door:
        await door.until_serving()

        async def items() -> AsyncIterator[embed_pb2.EmbedStreamRequest]:
            for number in range(10):
                yield embed_pb2.EmbedStreamRequest(id=str(number), request=cats())

        answers = [answer async for answer in door.embed.EmbedStream(items(), metadata=ALICE)]
        assert len(answers) == 10
        errors = [answer.error for answer in answers if answer.HasField("error")]
        assert len(errors) == 6
        assert {(error.reason, error.retryable) for error in errors} == {("RATE_LIMIT_EXCEEDED", True)}
        assert all(error.retry_after_seconds > 0 for error in errors)


async def test_a_flood_of_refused_requests_is_not_even_tokenised(limited: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first refusal the others are refused by what is known, with the same truth about the wait."""
    async with limited(f"anonymous: {bucket(1, 0.01)}") as door:
        await door.until_serving()
        await door.embed.Embed(cats())
        await refused(door.embed.Embed(cats()))
        (pool,) = [pool for pool in door.gateway.routes.pools if pool.alias == "fake"]

        def never(*_: Any) -> Any:
            pytest.fail("tokenised")

        monkeypatch.setattr(type(pool.facts.tokenizer), "encode_async", never)
        errors = [await refused(door.embed.Embed(cats())) for _ in range(5)]
        assert {error.reason for error in errors} == {"RATE_LIMIT_EXCEEDED"}
        assert all(95_000 < int(error.trailers["retry-after-ms"]) <= 100_000 for error in errors)
        assert _counted(door, "router_rate_limit_drops_total") == 6


async def test_a_flood_of_too_many_tokens_is_not_tokenised_either(limited: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused whatever its texts are is refused unread, over every wire; waiting so long as told makes room for it."""
    async with limited("default: {tokens_per_minute: 60}") as door:
        await door.until_serving()
        await door.embed.Embed(cats(20), metadata=ALICE)
        await refused(door.embed.Embed(cats(5), metadata=ALICE))
        pools = {pool.alias: pool for pool in door.gateway.routes.pools}
        monkeypatch.setattr(type(pools["fake"].facts.tokenizer), "encode_async", lambda *_: pytest.fail("tokenised"))
        request = rerank_pb2.RerankRequest(model="fake-rerank", query="cat", documents=[options_pb2.Input(text="dog")] * 5)
        for call in (door.embed.Embed(cats(5), metadata=ALICE), door.rerank.Rerank(request, metadata=ALICE)):
            error = await refused(call)
            assert error.reason == "RATE_LIMIT_EXCEEDED"
            assert "this request has at least 1" in error.message
            assert 5 * CAT_TOKENS * 1000 - 1000 < int(error.trailers["retry-after-ms"]) <= 60_000
        assert _counted(door, "router_rate_limit_drops_total") == 3


@pytest.mark.parametrize("count", [1, 21])
async def test_what_may_pass_is_read_although_its_caller_was_refused(limited: Any, count: int) -> None:
    """A smaller request that has room; and one that never will, which is told so."""
    async with limited("default: {tokens_per_day: 60}") as door:
        await door.until_serving()
        await door.embed.Embed(cats(19), metadata=ALICE)
        await refused(door.embed.Embed(cats(2), metadata=ALICE))
        if count == 1:
            assert (await answered(door.embed.Embed(cats(), metadata=ALICE)))["remaining-tokens"] == "0"
        else:
            assert (await refused(door.embed.Embed(cats(count), metadata=ALICE))).body["code"] == "request_exceeds_limit"


async def test_known_answers_pass_although_no_tokens_are_left(limited: Any) -> None:
    """They cost none; whoever wants a fresh one is refused."""
    async with limited("default: {tokens_per_day: 6}", cache_max_bytes=2**20) as door:
        await door.until_serving()
        await door.embed.Embed(cats(2), metadata=ALICE)
        other = embed_pb2.EmbedRequest(model="fake", inputs=[options_pb2.Input(text="dog")])
        await refused(door.embed.Embed(other, metadata=ALICE))
        assert (await answered(door.embed.Embed(cats(2), metadata=ALICE)))["remaining-tokens"] == "0"
        error = await refused(door.embed.Embed(cats(), metadata=(*ALICE, ("cache-control", "no-cache"))))
        assert "at least" in error.message, "it was not even read"


async def test_known_answers_are_not_looked_for_all_the_time(limited: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller without tokens, whose texts were read a moment ago, has no others read; after a while it has."""
    async with limited("default: {tokens_per_day: 6}", cache_max_bytes=2**20) as door:
        await door.until_serving()
        await door.embed.Embed(cats(2), metadata=ALICE)
        dog = embed_pb2.EmbedRequest(model="fake", inputs=[options_pb2.Input(text="dog")])
        monkeypatch.setattr(quotas, "REMEMBERED_SECONDS", 0.0)  # the pause alone is what holds
        monkeypatch.setattr(quotas, "PAUSE_SECONDS_PER_BYTE", 1.0)
        assert "has 3" in (await refused(door.embed.Embed(dog, metadata=ALICE))).message
        for request in (dog, cats(2)):
            assert "has at least" in (await refused(door.embed.Embed(request, metadata=ALICE))).message
        door.gateway.quotas._unread_until["alice"] = time.monotonic()
        await answered(door.embed.Embed(cats(2), metadata=ALICE))


async def test_listing_and_tokenising_are_free(limited: Any) -> None:
    """They run no model."""
    async with limited(f"default: {bucket(1)}") as door:
        await door.until_serving()
        for _ in range(3):
            await door.models.ListModels(model_pb2.ListModelsRequest(), metadata=ALICE)
            await door.models.Tokenize(model_pb2.TokenizeRequest(model="fake", inputs=[options_pb2.Input(text="cat")]), metadata=ALICE)
        assert (await answered(door.embed.Embed(cats(), metadata=ALICE)))["remaining-requests"] == "0"


async def test_a_key_may_be_named_by_itself(limited: Any) -> None:
    """As files of an earlier deployment do; the name in logs does, too."""
    async with limited(f"default: {bucket(1)}\nper_api_key: {{alpha: {bucket(7)}}}") as door:
        await door.until_serving()
        assert (await answered(door.embed.Embed(cats(), metadata=ALICE)))["limit-requests"] == "7"
        assert (await answered(door.embed.Embed(cats(), metadata=BOB)))["limit-requests"] == "1"


async def test_edited_limits_hold_at_once_and_forget_nothing(limited: Any, tmp_path: Path) -> None:
    """A higher limit leaves as used what was used."""
    async with limited(f"default: {bucket(2)}") as door:
        await door.until_serving()
        await door.embed.Embed(cats(), metadata=ALICE)
        (tmp_path / "rate_limits.yaml").write_text(f"default: {bucket(5)}")
        await door.gateway.reload.look(is_asked=True)
        left = await answered(door.embed.Embed(cats(), metadata=ALICE))
        assert (left["limit-requests"], left["remaining-requests"]) == ("5", "3")


async def test_usage_tells_who_used_what(limited: Any, worker: FakeWorker) -> None:
    """Requests, tokens, failures and refusals by caller and model, and what is used of each limit."""
    async with limited(f"default: {bucket(2, tokens_per_day=1000)}") as door:
        await door.until_serving()
        await door.embed.Embed(cats(2), metadata=ALICE)
        await door.embed.Embed(cats(), metadata=ALICE)
        await refused(door.embed.Embed(cats(), metadata=ALICE))

        async def fail(_: Any, __: Any) -> None:
            raise InvalidArgument("A test.")

        worker.before = fail
        await refused(door.embed.Embed(cats(), metadata=BOB))
        page = await usage(door)
        assert page["rows"] == [
            {"principal": "alice", "model": "fake", "requests": 2, "tokens": 9, "failed": 0, "refused": 1},
            {"principal": "bob", "model": "fake", "requests": 0, "tokens": 0, "failed": 1, "refused": 0},
        ]
        used = {(line["principal"], line["limit"]): round(line["used"]) for line in page["limits"]}
        expected = {("alice", "requests"): 2, ("alice", "tokens_per_day"): 9, ("bob", "requests"): 0, ("bob", "tokens_per_day"): 0}
        assert used == expected
        assert (page["store"], page["gateways"]) == ("gateway", 1)
        assert (await usage(door, "2020-01-01"))["rows"] == []
        async with aiohttp.ClientSession() as session, session.get(f"{door.http}/usage?day=yesterday") as answer:
            assert (answer.status, "such as 20" in (await answer.json())["error"]) == (400, True)


async def test_two_gateways_and_fifty_callers_never_exceed_one_keys_limit(limited: Any, redis_server: RedisServer) -> None:
    """What passes in a while is at most the bucket, what it regained, and one request's cost; and not much less."""
    capacity, each_second, cost = 400, 20.0, 2 * CAT_TOKENS
    limits = f"default: {{tokens_per_minute: {capacity}}}"
    async with AsyncExitStack() as stack:
        doors = [await stack.enter_async_context(limited(limits, redis_url=redis_server.url, redis_timeout_seconds=5.0)) for _ in range(2)]
        for door in doors:
            await door.until_serving()
        started = time.monotonic()
        passed = sum(await outcomes([doors[number % 2].embed.Embed(cats(2), metadata=ALICE) for number in range(50) for _ in range(6)]))
        seconds = time.monotonic() - started
        assert passed * cost <= capacity + seconds * each_second + cost
        assert passed * cost >= capacity - cost


async def test_gateways_share_what_was_used_and_who_used_it(limited: Any, redis_server: RedisServer) -> None:
    """What one charges the other sees, a refund included; both know of two gateways; usage is of both."""
    limits = f"default: {bucket(10, tokens_per_day=100)}"
    async with limited(limits, redis_url=redis_server.url) as one, limited(limits, redis_url=redis_server.url) as other:
        await one.until_serving()
        await other.until_serving()
        assert (await answered(one.embed.Embed(cats(), metadata=ALICE)))["remaining-requests"] == "9"
        left = await answered(other.embed.Embed(cats(), metadata=ALICE))
        assert (left["remaining-requests"], left["remaining-tokens"]) == ("8", "94")
        await eventually(lambda: one.gateway.quotas.gateways == 2, "it hears of the other")
        await eventually(lambda: other.gateway.quotas.gateways == 2, "it hears of the other")

        async def both() -> bool:
            page = await usage(one)
            return [row["requests"] for row in page["rows"]] == [2] and page["store"] == "redis"

        async with asyncio.timeout(10):
            while not await both():
                await asyncio.sleep(0.1)


async def test_limits_go_on_while_redis_is_away_and_are_whole_when_it_is_back(
    limited: Any, redis_server: RedisServer, capfd: pytest.CaptureFixture[str]
) -> None:
    """No request fails for it. Half of the limit was used, so each of two gateways grants half of what is left; Redis learns of it."""
    settings = {"redis_url": redis_server.url, "redis_timeout_seconds": 0.5, "gateways": 2}
    limits = f"default: {bucket(20)}"
    async with limited(limits, **settings) as one, limited(limits, **settings) as other:
        doors = (one, other)
        for door in doors:
            await door.until_serving()
            await door.embed.Embed(cats(), metadata=ALICE)
        for _ in range(8):
            await one.embed.Embed(cats(), metadata=ALICE)
        await other.embed.Embed(cats(), metadata=BOB)
        redis_server.kill()
        granted = sum(await outcomes([door.embed.Embed(cats(), metadata=ALICE) for door in doors for _ in range(12)]))
        assert 5 <= granted <= 5 + 9 + 2, "a gateway knows what it was last told"
        assert _counted(one, "router_quota_local_charges_total") > 0
        assert one.gateway.readiness.report()[1]["redis"]["status"] == "away"
        assert (await usage(one))["store"] == "pending"
        await redis_server.start()
        await eventually(lambda: all(door.gateway.redis.available for door in doors), "it is found again")
        await outcomes([door.embed.Embed(cats(), metadata=ALICE) for door in doors])
        granted = sum(await outcomes([door.embed.Embed(cats(), metadata=ALICE) for door in doors for _ in range(15)]))
        assert granted <= 2, "an empty Redis does not mean a full bucket"
        assert one.gateway.readiness.report()[1]["redis"] == {"status": "ok", "reason": ""}


async def test_a_redis_that_forgets_is_told_again(limited: Any, redis_server: RedisServer) -> None:
    """Emptied between two requests, without a moment away: a day's budget is still used up, also one that is not asked for at once."""
    async with limited("default: {tokens_per_day: 30}", redis_url=redis_server.url) as door:
        await door.until_serving()
        for key in (ALICE, BOB):
            await door.embed.Embed(cats(8), metadata=key)
        async with redis_server.client() as client:
            await client.flushall()
            await client.script_flush()
        for key in (ALICE, BOB):
            await door.embed.Embed(cats(1), metadata=key)
            error = await refused(door.embed.Embed(cats(2), metadata=key))
            assert error.reason == "RATE_LIMIT_EXCEEDED"


async def usage(door: Door, day: str = "") -> dict[str, Any]:
    """Ask for the page of usage."""
    async with aiohttp.ClientSession() as session, session.get(f"{door.http}/usage", params={"day": day} if day else {}) as answer:
        assert answer.status == 200
        return dict(await answer.json())


def _counted(door: Door, name: str) -> float:
    """Return the sum of a counter's series."""
    lines = door.telemetry.metrics.text().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))
