"""What becomes of requests when replicas fail, are slow, stand still, come or go."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from gateway.upstreams import names, outliers, pulse
from gateway.upstreams.peers import Peer
from gateway.upstreams.retries import MOST_TRIES
from quadrate.errors import Internal, Overloaded, Unavailable
from quadrate.testing.ports import free_port
from quadrate.testing.worker import FakeWorker
from quadrate.v1 import embed_pb2, options_pb2
from tests.service.gateway.conftest import refused, routing

if TYPE_CHECKING:
    from collections.abc import Callable

    from grpc_health.v1 import health_pb2

    from gateway.upstreams.pool import Pool
    from tests.service.gateway.conftest import Door

REQUEST = embed_pb2.EmbedRequest(model="fake", inputs=[options_pb2.Input(text="cat")])


def pool_of(door: Door) -> Pool:
    """Return the pool of the embedding model."""
    return next(pool for pool in door.gateway.routes.pools if pool.alias == "fake")


def value(door: Door, name: str, *labels: str) -> float:
    """Return a counter's value."""
    return float(door.telemetry.metrics.counter(name, *labels)._value.get())


def route(workers: list[FakeWorker], extra: str = "", upstream: str = "") -> str:
    """Return a routing file of the embedding model alone."""
    first, *others = [f"'grpc://{worker.target}'" for worker in workers]
    return f"embeddings: [{{model: fake, {extra} upstream: {{type: grpc, url: {first}, replicas: [{', '.join(others)}] {upstream}}}}}]\n"


async def embed_until(door: Door, condition: Callable[[], bool]) -> None:
    """Ask one request after the other until something holds."""
    async with asyncio.timeout(30):
        while not condition():
            await door.embed.Embed(REQUEST)


class Stopped:
    """A worker, not yet started, that can be made to stand still with its connections open, as by SIGSTOP."""

    def __init__(self, worker: FakeWorker) -> None:
        self.worker = worker
        self.runs = asyncio.Event()
        self.runs.set()
        self.cancelled = 0
        self._check = worker.health.servicer.Check
        worker.health.servicer.Check = self.check
        worker.before = self.wait
        worker.before_listing = self.runs.wait

    async def check(self, request: health_pb2.HealthCheckRequest, context: Any) -> Any:
        """Tell how it is, once it runs."""
        await self.runs.wait()
        return await self._check(request, context)

    async def wait(self, _: Any, __: Any) -> None:
        """Answer, once it runs."""
        try:
            await self.runs.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


async def test_what_a_silent_worker_was_asked_is_asked_of_another(open_door: Callable[..., Any]) -> None:
    """Within a second, and its own work is called off; nothing new is sent there until it is heard again."""
    first = FakeWorker()
    still = Stopped(first)
    async with (
        first,
        FakeWorker() as second,
        open_door(route([first, second])) as door,
    ):
        await door.until_serving()
        await embed_until(door, lambda: bool(first.received))
        still.runs.clear()
        async with asyncio.timeout(pulse.SUSPECT_SECONDS + 3):
            await asyncio.gather(*(door.embed.Embed(REQUEST) for _ in range(10)))
        asked = len(first.received)
        assert "has not answered" in pool_of(door).replicas[0].trouble
        await asyncio.gather(*(door.embed.Embed(REQUEST) for _ in range(10)))
        assert len(first.received) == asked
        await door.until(lambda: still.cancelled > 0)
        assert value(door, "router_upstream_ejections_total", first.target, "fake", "silent") == 1
        still.runs.set()
        await door.until(lambda: not pool_of(door).replicas[0].trouble)
        await embed_until(door, lambda: len(first.received) > asked)


async def test_the_only_worker_is_waited_for_and_then_given_up(open_door: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else could answer; after a while the request fails and readiness says why. It is taken back when it is heard."""
    monkeypatch.setattr(pulse, "STUCK_SECONDS", 1.2)
    worker = FakeWorker()
    still = Stopped(worker)
    async with (
        worker,
        open_door(route([worker])) as door,
    ):
        await door.until_serving()
        still.runs.clear()
        failure = await refused(door.embed.Embed(REQUEST))
        assert failure.status == "UNAVAILABLE"
        assert "x-envoy-ratelimited" not in failure.trailers  # another gateway may still reach it
        _, report = door.gateway.readiness.report()
        assert report["status"] == "unavailable"
        assert "does not answer" in report["upstreams"][0]["reason"]
        still.runs.set()
        await door.until_serving()
        await door.embed.Embed(REQUEST)


async def test_a_worker_that_always_fails_is_put_aside_and_given_another_chance(
    open_door: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After five failures in a row nothing is sent there for a while; then once, and aside again if that fails."""
    monkeypatch.setattr(outliers, "FIRST_SECONDS", 0.3)

    async def fail(_: Any, __: Any) -> None:
        raise Unavailable("It is broken.")

    async with FakeWorker(before=fail) as broken, FakeWorker() as sound, open_door(routing(broken, sound)) as door:
        await door.until_serving()
        pool = pool_of(door)
        await embed_until(door, lambda: bool(pool.replicas[0].record.reason))
        assert len(broken.received) == outliers.FAILURES_IN_ROW
        await asyncio.gather(*(door.embed.Embed(REQUEST) for _ in range(20)))
        assert len(broken.received) == outliers.FAILURES_IN_ROW
        await embed_until(door, lambda: pool.replicas[0].record.aside_times == 2)
        assert len(broken.received) == outliers.FAILURES_IN_ROW + 1
        broken.before = None
        await embed_until(door, lambda: len(broken.received) > outliers.FAILURES_IN_ROW + 5)
        assert not pool.replicas[0].trouble


async def test_never_more_than_half_are_put_aside(open_door: Callable[..., Any]) -> None:
    """Where all fail, the fault is not with one of them."""

    async def fail(_: Any, __: Any) -> None:
        raise Internal("All are broken.")

    async with (
        FakeWorker(before=fail) as one,
        FakeWorker(before=fail) as two,
        FakeWorker(before=fail) as three,
        open_door(route([one, two, three])) as door,
    ):
        await door.until_serving()
        for _ in range(60):
            await refused(door.embed.Embed(REQUEST))
        assert sum(bool(replica.record.reason) for replica in pool_of(door).replicas) == 1


async def test_a_worker_that_is_much_slower_is_put_aside(open_door: Callable[..., Any]) -> None:
    """It serves, but everybody would wait for it."""

    async def dawdle(_: Any, __: Any) -> None:
        await asyncio.sleep(0.2)

    async with FakeWorker(before=dawdle) as slow, FakeWorker() as quick, open_door(route([slow, quick])) as door:
        await door.until_serving()
        await embed_until(door, lambda: bool(pool_of(door).replicas[0].record.reason))
        assert "slower" in pool_of(door).replicas[0].trouble
        assert not pool_of(door).replicas[1].trouble


async def test_a_request_is_tried_a_few_times_and_then_told(open_door: Callable[..., Any]) -> None:
    """Each replica once, then again after pauses, which show; the caller hears what the last said, the edge that trying is over."""

    async def fail(_: Any, __: Any) -> None:
        raise Unavailable("Not now.")

    async with FakeWorker(before=fail) as one, FakeWorker(before=fail) as two, open_door(route([one, two])) as door:
        await door.until_serving()
        failure = await refused(door.embed.Embed(REQUEST))
        assert (failure.message, failure.trailers["x-envoy-ratelimited"]) == ("Not now.", "true")
        assert len(one.received) + len(two.received) == MOST_TRIES
        assert min(len(one.received), len(two.received)) >= 1
        assert 'router_request_stage_seconds_count{stage="pause"} 1.0' in door.telemetry.metrics.text().decode()


async def test_tries_end_with_the_budget(open_door: Callable[..., Any]) -> None:
    """When too many fail, failures are told at once: those who try again would be a load of their own."""

    async def fail(_: Any, __: Any) -> None:
        raise Unavailable("Not now.")

    async with FakeWorker(before=fail) as one, FakeWorker(before=fail) as two, open_door(route([one, two])) as door:
        await door.until_serving()
        failures = await asyncio.gather(*(refused(door.embed.Embed(REQUEST)) for _ in range(300)))
        assert all("x-envoy-ratelimited" in failure.trailers for failure in failures)
        retries = value(door, "router_upstream_retries_total", "fake")
        assert value(door, "router_upstream_retries_denied_total", "fake") > 0
        assert retries + 300 == len(one.received) + len(two.received)
        assert retries < 200  # a hundred to begin with, a fifth of 300, and ten a second


async def test_a_pause_never_outlasts_the_caller(open_door: Callable[..., Any]) -> None:
    """Whoever waits for a moment only hears at once that it failed."""

    async def fail(_: Any, __: Any) -> None:
        raise Unavailable("Not now.")

    async with FakeWorker(before=fail) as worker, open_door(route([worker])) as door:
        await door.until_serving()
        assert (await refused(door.embed.Embed(REQUEST, timeout=0.1))).status in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}
        assert len(worker.received) < MOST_TRIES


async def test_a_full_worker_is_no_reason_to_fail_while_another_has_room(open_door: Callable[..., Any]) -> None:
    """And a full worker is not a broken one."""

    async def full(_: Any, __: Any) -> None:
        raise Overloaded("No room.", retry_after_seconds=1.0)

    async with FakeWorker(before=full) as busy, FakeWorker() as free, open_door(route([busy, free])) as door:
        await door.until_serving()
        await asyncio.gather(*(door.embed.Embed(REQUEST) for _ in range(40)))
        assert len(free.received) == 40
        assert not pool_of(door).replicas[0].record.failed


async def test_a_worker_that_takes_longer_than_its_route_allows_is_left(open_door: Callable[..., Any]) -> None:
    """`timeout_ms` is the time of one try; the caller waits for longer and is answered by another."""

    async def hold(_: Any, __: Any) -> None:
        await asyncio.Event().wait()

    async with (
        FakeWorker(before=hold) as stuck,
        FakeWorker() as sound,
        open_door(route([stuck, sound], upstream=", timeout_ms: 200")) as door,
    ):
        await door.until_serving()
        await asyncio.gather(*(door.embed.Embed(REQUEST, timeout=10) for _ in range(8)))
        assert len(sound.received) == 8


async def test_a_short_request_that_takes_long_is_asked_twice_if_the_route_says_so(
    open_door: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    """The first answer counts, the other request is called off, and nothing of it is charged twice; its line in the log says so."""
    gone = asyncio.Event()

    async def hold(_: Any, __: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            gone.set()

    async with (
        FakeWorker(before=hold) as stuck,
        FakeWorker() as sound,
        open_door(route([stuck, sound], "hedge_after_ms: 20,")) as door,
    ):
        await door.until_serving()
        await door.until(lambda: all(replica.facts is not None for replica in pool_of(door).replicas))
        await asyncio.gather(*(door.embed.Embed(REQUEST) for _ in range(6)))
        await asyncio.wait_for(gone.wait(), 10)
        # A sound worker may take longer than that, too, on a busy machine.
        answered_by = [value(door, "router_upstream_hedges_total", "fake", which) for which in ("first", "second")]
        assert sum(answered_by) == len(stuck.received)
        assert value(door, "router_tokens_total", "fake", "anonymous") == 6 * 3
        lines = request_lines(capfd)
        assert len(lines) == 6
        asked_twice = [line for line in lines if line.get("tries") == 2 and line["hedged"] is True]
        assert len(asked_twice) == sum(answered_by)
        assert not any("tries" in line or "hedged" in line for line in lines if line not in asked_twice)


def request_lines(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Return what the gateway's log says of each request that it sent on."""
    said = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    return [line["metadata"] for line in said if line["message"] == "request" and "upstream" in line["metadata"]]


async def test_a_request_asked_twice_in_vain_is_sent_no_more_often_than_any(open_door: Callable[..., Any]) -> None:
    """Both tries count, and each that follows is paid for: four in all, three of them from the allowance."""
    both = asyncio.Barrier(2)
    asked = 0

    async def fail(_: Any, __: Any) -> None:
        nonlocal asked
        asked += 1
        if asked <= 2:  # the first waits for the hedge
            await both.wait()
        raise Unavailable("Not now.")

    async with (
        FakeWorker(before=fail) as one,
        FakeWorker(before=fail) as two,
        open_door(route([one, two], "hedge_after_ms: 20,")) as door,
    ):
        await door.until_serving()
        await door.until(lambda: all(replica.facts is not None for replica in pool_of(door).replicas))
        failure = await refused(door.embed.Embed(REQUEST))
        assert failure.status == "UNAVAILABLE"
        assert len(one.received) + len(two.received) == MOST_TRIES
        assert value(door, "router_upstream_retries_total", "fake") == MOST_TRIES - 2


async def test_a_long_request_is_never_asked_twice(open_door: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes long because it is long."""
    monkeypatch.setattr("gateway.upstreams.pool.SHORT_TOKENS", 2)

    async def dawdle(_: Any, __: Any) -> None:
        await asyncio.sleep(0.1)

    async with (
        FakeWorker(before=dawdle) as one,
        FakeWorker(before=dawdle) as two,
        open_door(route([one, two], "hedge_after_ms: 5,")) as door,
    ):
        await door.until_serving()
        await asyncio.gather(*(door.embed.Embed(REQUEST) for _ in range(6)))
        assert len(one.received) + len(two.received) == 6


async def test_a_retried_request_is_charged_once(open_door: Callable[..., Any]) -> None:
    """However often it was sent."""

    async def fail(_: Any, __: Any) -> None:
        raise Unavailable("Not now.")

    async with FakeWorker(before=fail) as broken, FakeWorker() as sound, open_door(route([broken, sound])) as door:
        await door.until_serving()
        for _ in range(8):
            await door.embed.Embed(REQUEST)
        assert broken.received
        assert value(door, "router_tokens_total", "fake", "anonymous") == 8 * 3


async def test_weights_share_the_work(open_door: Callable[..., Any]) -> None:
    """One of 3 has three times as much under way as one of 1."""
    release = asyncio.Event()

    async def hold(_: Any, __: Any) -> None:
        await release.wait()

    async with FakeWorker(before=hold) as strong, FakeWorker(before=hold) as weak:
        upstreams = f"{{type: grpc, url: 'grpc://{strong.target}', weight: 3}}, {{type: grpc, url: 'grpc://{weak.target}'}}"
        async with open_door(f"embeddings: [{{model: fake, upstreams: [{upstreams}]}}]") as door:
            await door.until_serving()
            calls = [asyncio.ensure_future(door.embed.Embed(REQUEST)) for _ in range(40)]
            await door.until(lambda: len(strong.received) + len(weak.received) == 40)
            assert len(strong.received) == pytest.approx(30, abs=2)
            release.set()
            await asyncio.gather(*calls)


async def test_a_stream_survives_the_loss_of_a_worker(open_door: Callable[..., Any]) -> None:
    """Items that were not answered yet go elsewhere; the stream does not end."""
    release = asyncio.Event()

    async def hold(_: Any, __: Any) -> None:
        await release.wait()

    async with FakeWorker(before=hold) as stays, FakeWorker(before=hold) as leaves, open_door(route([stays, leaves])) as door:
        await door.until_serving()
        stream = door.embed.EmbedStream()
        for number in range(20):
            await stream.write(embed_pb2.EmbedStreamRequest(id=str(number), request=REQUEST))
        await door.until(lambda: len(leaves.received) >= 5)
        await leaves.server.stop()
        release.set()
        await stream.done_writing()
        answers = [answer async for answer in stream]
        assert {answer.id for answer in answers} == {str(number) for number in range(20)}
        assert not [answer for answer in answers if answer.HasField("error")]


async def test_each_address_of_a_name_is_a_replica(open_door: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """They come and go without a failed request, and readiness names each."""
    addresses = ["127.0.0.1"]

    async def resolve(_: str, __: int) -> tuple[str, ...]:
        return tuple(addresses)

    monkeypatch.setattr(names, "_resolve", resolve)
    monkeypatch.setattr(names, "RESOLVE_SECONDS", 0.05)
    port = free_port()
    async with (
        FakeWorker(port=port) as first,
        FakeWorker(port=port, host="127.0.0.2") as second,
        open_door(f"embeddings: [{{model: fake, upstream: {{type: grpc, url: 'grpc://workers:{port}'}}}}]") as door,
    ):
        await door.until_serving()
        await door.embed.Embed(REQUEST)
        assert [line["name"] for line in door.gateway.readiness.report()[1]["upstreams"]] == [f"fake@127.0.0.1:{port}"]
        addresses.append("127.0.0.2")
        await embed_until(door, lambda: bool(second.received))
        assert {line["name"] for line in door.gateway.readiness.report()[1]["upstreams"]} == {
            f"fake@127.0.0.1:{port}",
            f"fake@127.0.0.2:{port}",
        }
        addresses.remove("127.0.0.1")
        await door.until(lambda: len(pool_of(door).replicas) == 1)
        before = len(first.received)
        for _ in range(10):
            await door.embed.Embed(REQUEST)
        assert len(first.received) == before
        await door.until(lambda: first.target not in door.telemetry.metrics.text().decode())
        assert second.target in door.telemetry.metrics.text().decode()


async def test_cards_are_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway asks for them every second: a worker at rest need not be asked for anything else."""
    async with FakeWorker() as worker:
        peer, beats = Peer(worker.target), 0

        def beat() -> None:
            nonlocal beats
            beats += 1

        monkeypatch.setattr(peer.pulse, "beat", beat)
        await peer.models()
        assert beats == 1
        await peer.close()
