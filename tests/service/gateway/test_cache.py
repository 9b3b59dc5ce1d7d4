"""The cache through the gateway's own door: what workers are asked, what is charged, and what answers say."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pydantic
import pytest
from redis.asyncio import Redis

from gateway.cache import shared
from quadrate.v1 import embed_pb2, options_pb2, rerank_pb2
from tests.redis_server import RedisServer
from tests.service.gateway.conftest import Door, routing
from tests.service.gateway.test_reloads import HELLO, load, route, write_catalogue
from tests.service.workers.conftest import running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from quadrate.testing.worker import FakeWorker

ROOM = {"cache_max_bytes": 2**20}
LONG_SECONDS = 5.0


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let requests wait for Redis on a machine that does much else."""
    monkeypatch.setattr(shared, "PATIENCE_SECONDS", LONG_SECONDS)


@pytest.fixture
async def cached(open_door: Callable[..., Any], worker: FakeWorker) -> AsyncIterator[Door]:
    """A gateway that keeps answers."""
    async with open_door(routing(worker), **ROOM) as door:
        await door.until_serving()
        yield door


def embed(*texts: str, **form: Any) -> embed_pb2.EmbedRequest:
    """Return a request for texts."""
    return embed_pb2.EmbedRequest(model="fake", inputs=[options_pb2.Input(text=text) for text in texts], **form)


def rerank(*documents: str, **form: Any) -> rerank_pb2.RerankRequest:
    """Return a request for documents."""
    inputs = [options_pb2.Input(text=text) for text in documents]
    return rerank_pb2.RerankRequest(model="fake-rerank", query="abc", documents=inputs, **form)


async def told(call: Any) -> tuple[Any, str | None]:
    """Return an answer, and what it says of the cache."""
    answer = await call
    return answer, dict(await call.trailing_metadata()).get("x-quadrate-cache")


def asked_of(worker: FakeWorker) -> int:
    """Return how many texts and documents a worker got."""
    return sum(len(request.inputs if isinstance(request, embed_pb2.EmbedRequest) else request.documents) for request in worker.received)


def counted(door: Door, name: str) -> float:
    """Return a counter's value for the embedding model."""
    return door.telemetry.metrics.counter(name, "fake")._value.get()


async def test_a_text_is_computed_once(cached: Door, worker: FakeWorker) -> None:
    """The second answer is the first one's, is marked as known, and no worker is asked for it."""
    first, word = await told(cached.embed.Embed(embed("abc")))
    assert word is None
    asked = asked_of(worker)
    second, word = await told(cached.embed.Embed(embed("abc")))
    assert (word, asked_of(worker)) == ("hit", asked)
    assert [second.timings.HasField(name) for name in ("queue_seconds", "inference_seconds", "total_seconds")] == [True] * 3
    for answer in (first, second):
        answer.ClearField("timings")
    assert first == second
    assert (counted(cached, "router_cache_hits_total"), counted(cached, "router_cache_misses_total")) == (1, 1)


async def test_the_rest_of_a_request_goes_to_a_worker(cached: Door, worker: FakeWorker) -> None:
    """Of three texts of which one is known, two are computed, and every vector stands in its place."""
    whole = [(await cached.embed.Embed(embed(text))).embeddings[0].values for text in ("abc", "bcd", "cde")]
    await told(cached.embed.Embed(embed("xyz")))
    asked = asked_of(worker)
    answer, word = await told(cached.embed.Embed(embed("new", "abc", "older", "cde")))
    assert (word, asked_of(worker) - asked) == ("partial", 2)
    assert [found.index for found in answer.embeddings] == [0, 1, 2, 3]
    assert list(answer.embeddings[1].values) == list(whole[0])
    assert list(answer.embeddings[3].values) == list(whole[2])
    assert answer.usage.tokens == sum(found.usage.tokens for found in answer.embeddings)


async def test_another_form_is_another_answer(cached: Door, worker: FakeWorker) -> None:
    """A value type that was not asked for before is computed."""
    await told(cached.embed.Embed(embed("abc")))
    _, word = await told(cached.embed.Embed(embed("abc", value_type=options_pb2.INT8)))
    assert word is None


async def test_documents_are_known_for_their_query(cached: Door, worker: FakeWorker) -> None:
    """What was scored before is not scored again, and the order and `top_n` are those of all documents."""
    first, word = await told(cached.rerank.Rerank(rerank("aab", "abc", "xyz")))
    assert word is None
    asked = asked_of(worker)
    second, word = await told(cached.rerank.Rerank(rerank("aab", "abc", "xyz", top_n=2)))
    assert (word, asked_of(worker)) == ("hit", asked)
    assert [found.index for found in second.results] == [found.index for found in first.results][:2]
    third, word = await told(cached.rerank.Rerank(rerank("xyz", "new", "aab")))
    assert (word, asked_of(worker) - asked) == ("partial", 1)
    before = {("aab", "abc", "xyz")[found.index]: found.relevance_score for found in first.results}
    after = {("xyz", "new", "aab")[found.index]: found.relevance_score for found in third.results}
    assert all(after[text] == before[text] for text in ("aab", "xyz"))


@pytest.mark.parametrize(("said", "again"), [("no-store", None), ("no-cache", "hit")])
async def test_a_caller_may_want_a_fresh_answer(cached: Door, worker: FakeWorker, said: str, again: str | None) -> None:
    """`no-store` leaves no trace; `no-cache` computes and keeps."""
    _, word = await told(cached.embed.Embed(embed("abc"), metadata=(("cache-control", said),)))
    assert word is None
    _, word = await told(cached.embed.Embed(embed("abc")))
    assert word == again


async def test_switched_off_it_says_nothing(door: Door, worker: FakeWorker) -> None:
    """With no room for answers each is computed, and none speaks of a cache."""
    for _ in range(2):
        assert (await told(door.embed.Embed(embed("abc"))))[1] is None


async def test_keys_may_have_answers_of_their_own(open_door: Callable[..., Any], worker: FakeWorker) -> None:
    """With the scope `key`, nobody learns by an answer's time what another one asked."""
    auth = "api_keys: [{key: one, name: a}, {key: two, name: b}]"
    async with open_door(routing(worker), auth=auth, cache_scope="key", **ROOM) as door:
        await door.until_serving()
        words = [(await told(door.embed.Embed(embed("abc"), metadata=(("x-api-key", key),))))[1] for key in ("one", "two", "one")]
    assert words == [None, None, "hit"]


async def test_a_revision_that_changed_knows_nothing(cached: Door, worker: FakeWorker) -> None:
    """After a model was loaded anew, every answer comes from the new one."""
    await told(cached.embed.Embed(embed("abc")))
    worker.cards["fake"].revision = "sha256:111111111111"
    pool = next(pool for pool in cached.gateway.routes.pools if pool.alias == "fake")
    await cached.until(lambda: pool.facts.card.revision == "sha256:111111111111")
    assert (await told(cached.embed.Embed(embed("abc"))))[1] is None


async def test_an_edited_card_is_not_answered_from_what_was_kept(open_door: Callable[..., Any], tmp_path: Path) -> None:
    """A real worker loads the same revision by another card: from then on its new vectors are given, and the old ones by none."""
    file = write_catalogue(tmp_path, seed=0)
    async with running("embed", file, "tiny") as made, open_door(route(made), **ROOM) as door:
        await door.until_serving()
        before = await door.embed.Embed(HELLO)
        assert (await told(door.embed.Embed(HELLO)))[1] == "hit"
        models = json.loads(file.read_text())
        models["models"]["tiny"]["layer_norm"] = True
        file.write_text(json.dumps(models))
        await load(made)
        pool = next(pool for pool in door.gateway.routes.pools if pool.alias == "tiny")
        await door.until(lambda: pool.facts.card.fingerprint != before.provenance.fingerprint)
        after, word = await told(door.embed.Embed(HELLO))
        assert (word, after.provenance.revision) == (None, before.provenance.revision)
        assert list(after.embeddings[0].values) != list(before.embeddings[0].values)
        assert (await told(door.embed.Embed(HELLO)))[1] == "hit"


async def test_a_hit_is_charged_as_a_request_and_no_tokens(open_door: Callable[..., Any], worker: FakeWorker) -> None:
    """What nothing was computed for costs no tokens."""
    limits = "anonymous: {capacity: 100, refill_rate: 0.001, tokens_per_minute: 10000}"
    async with open_door(routing(worker), limits=limits, **ROOM) as door:
        await door.until_serving()
        left = []
        for _ in range(2):
            call = door.embed.Embed(embed("abcdefgh"))
            await call
            headers = dict(await call.trailing_metadata())
            left.append((int(headers["x-ratelimit-remaining-requests"]), int(headers["x-ratelimit-remaining-tokens"])))
    assert left[0][0] - left[1][0] == 1
    assert left[1][1] >= left[0][1]


@pytest.mark.usefixtures("patience")
async def test_gateways_share_what_they_know(
    open_door: Callable[..., Any], worker: FakeWorker, tmp_path: Path, require_program: Callable[[str], str]
) -> None:
    """A second gateway knows what the first one computed, for as long as is said. A Redis that is killed costs nobody an answer."""
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisServer(require_program("redis-server"), tmp_path))
        given = {
            **ROOM,
            "cache_redis": True,
            "cache_live_seconds": 70,
            "redis_url": pydantic.SecretStr(redis.url),
            "redis_timeout_seconds": LONG_SECONDS,
        }
        one, two = [await stack.enter_async_context(open_door(routing(worker), **given)) for _ in range(2)]
        for door in (one, two):
            await door.until_serving()
        assert (await told(one.embed.Embed(embed("abc"))))[1] is None
        async with redis.client() as client:
            async with asyncio.timeout(10):
                while not (kept := await client.keys("quadrate:cache:*")):
                    await asyncio.sleep(0.01)
            assert 0 < await client.ttl(kept[0]) <= 70
        assert (await told(two.embed.Embed(embed("abc"))))[1] == "hit"
        redis.kill()
        assert (await told(two.embed.Embed(embed("other"))))[1] is None
        assert (await told(two.embed.Embed(embed("abc"))))[1] == "hit"


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("garbage", [b"", b"garbage", b"\x0a\x05abc", "cut", "of another key", "a list"])
async def test_what_redis_holds_and_no_gateway_wrote_is_unknown(
    open_door: Callable[..., Any],
    worker: FakeWorker,
    tmp_path: Path,
    require_program: Callable[[str], str],
    garbage: bytes | str,
) -> None:
    """A value that cannot be read is computed again and written over; no caller sees more of it than a miss."""
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisServer(require_program("redis-server"), tmp_path))
        given = {**ROOM, "cache_redis": True, "redis_url": pydantic.SecretStr(redis.url), "redis_timeout_seconds": LONG_SECONDS}
        one, two, three = [await stack.enter_async_context(open_door(routing(worker), **given)) for _ in range(3)]
        for door in (one, two, three):
            await door.until_serving()
        client = await stack.enter_async_context(Redis.from_url(redis.url, protocol=2))
        first = await one.embed.Embed(embed("abc"))
        name = await the_key(client)
        written = await client.get(name)
        await put_garbage(client, name, garbage, written)
        second, word = await told(two.embed.Embed(embed("abc")))
        assert (word, second.embeddings) == (None, first.embeddings)
        async with asyncio.timeout(10):
            while await client.type(name) != b"string" or await client.get(name) != written:
                await asyncio.sleep(0.01)
        assert (await told(three.embed.Embed(embed("abc"))))[1] == "hit"


async def the_key(client: Redis) -> bytes:
    """Return the name of the only entry, once it is there."""
    async with asyncio.timeout(10):
        while not (names := await client.keys("quadrate:cache:*")):
            await asyncio.sleep(0.01)
    (name,) = names
    return bytes(name)


async def put_garbage(client: Redis, name: bytes, garbage: bytes | str, written: bytes) -> None:
    """Put something else where a gateway wrote."""
    if garbage == "a list":
        await client.delete(name)
        await client.lpush(name, "x")
    else:
        await client.set(name, {"cut": written[:-3], "of another key": b"\0" + written[1:]}.get(str(garbage), garbage))
