"""Where requests go, what happens when workers come and go, and what readiness says of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc
from aiohttp import web
from grpc_health.v1 import health_pb2, health_pb2_grpc

from quadrate.errors import Internal, Unavailable
from quadrate.testing.ports import free_port
from quadrate.testing.worker import FakeWorker, fake_card
from quadrate.v1 import embed_pb2, model_pb2, options_pb2
from tests.service.gateway.conftest import Door, refused, routing

if TYPE_CHECKING:
    from collections.abc import Callable

REQUEST = embed_pb2.EmbedRequest(model="fake", inputs=[options_pb2.Input(text="cat")])


async def readiness(door: Door) -> tuple[int, dict[str, Any]]:
    """Return what GET /health/ready answers."""
    async with aiohttp.ClientSession() as session, session.get(f"{door.http}/health/ready") as answer:
        return answer.status, await answer.json()


async def health(door: Door, name: str) -> int:
    """Return what grpc.health.v1 says of a name."""
    answer = await health_pb2_grpc.HealthStub(door.channel).Check(health_pb2.HealthCheckRequest(service=name))
    return int(answer.status)


async def test_readiness_follows_the_workers(open_door: Callable[..., Any]) -> None:
    """Unavailable without workers, ok with all, degraded with some, back again; health says the same by name."""
    port = free_port()
    async with FakeWorker(port=port) as first, FakeWorker() as second, open_door(routing(first, second)) as door:
        await door.until_serving()
        status, report = await readiness(door)
        assert (status, report["status"]) == (200, "ok")
        assert report["upstreams"][0] == {"name": f"fake@{first.target}", "type": "grpc", "protocol": "grpc", "status": "ok", "reason": ""}
        assert len(report["upstreams"]) == 4
        for name in ("", "quadrate.v1.EmbedService", "quadrate.v1.RerankService", "quadrate.v1.ModelService", "model/fake"):
            assert await health(door, name) == health_pb2.HealthCheckResponse.SERVING

        first.serve(serving=False)
        await door.until(lambda: door.gateway.readiness.status == "degraded")
        status, report = await readiness(door)
        assert (status, report["status"]) == (200, "degraded")
        assert {line["status"] for line in report["upstreams"] if first.target in line["name"]} == {"unavailable"}
        assert await health(door, "model/fake") == health_pb2.HealthCheckResponse.SERVING

        second.serve(serving=False)
        await door.until(lambda: door.gateway.readiness.status == "unavailable")
        assert (await readiness(door))[0] == 503
        assert await health(door, "") == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await health(door, "quadrate.v1.EmbedService") == health_pb2.HealthCheckResponse.NOT_SERVING
        assert (await refused(door.embed.Embed(REQUEST))).reason == "UNAVAILABLE"
        listed = await door.models.ListModels(model_pb2.ListModelsRequest())
        assert [card.state for card in listed.models] == [model_pb2.MODEL_STATE_UNAVAILABLE] * 2

        first.serve(serving=True)
        second.serve(serving=True)
        await door.until_serving()
        assert (await readiness(door))[1]["status"] == "ok"
        await door.embed.Embed(REQUEST)
        text = door.telemetry.metrics.text().decode()
        assert 'router_readiness_degraded_total{status="degraded"} 1.0' in text


async def test_a_gateway_that_starts_first_finds_its_worker(open_door: Callable[..., Any]) -> None:
    """Reachable before any worker is; requests are refused as unavailable until one comes, and served then."""
    port = free_port()
    late = FakeWorker(port=port)
    late.server.port = port
    async with open_door(routing(late)) as door:
        status, report = await readiness(door)
        assert (status, report["status"]) == (503, "unavailable")
        failure = await refused(door.embed.Embed(REQUEST))
        assert (failure.status, failure.reason) == ("UNAVAILABLE", "UNAVAILABLE")
        await door.until(lambda: {one["reason"] for one in door.gateway.readiness.report()[1]["upstreams"]} == {"cannot be reached"})
        async with late:
            await door.until_serving()
            await door.embed.Embed(REQUEST)


async def test_a_worker_that_still_loads_is_waited_for(open_door: Callable[..., Any]) -> None:
    """Its reason and its progress are told; as soon as its health says SERVING it is used."""
    loading = fake_card("fake", state=model_pb2.MODEL_STATE_LOADING, state_reason="warming up", load_progress=0.25)
    worker = FakeWorker(loading, fake_card("fake-rerank", model_pb2.TASK_RERANK), starts_serving=False)
    async with worker, open_door(routing(worker)) as door:
        await door.until(lambda: any(one["reason"] == "warming up" for one in door.gateway.readiness.report()[1]["upstreams"]))
        asked = model_pb2.GetModelRequest(model="fake")
        told = (await door.models.GetModel(asked)).model
        assert (told.state, told.state_reason, told.load_progress) == (model_pb2.MODEL_STATE_LOADING, "warming up", 0.25)
        worker.cards["fake"].ClearField("load_progress")
        worker.serve(serving=True)
        await door.until_serving()
        assert not (await door.models.GetModel(asked)).model.HasField("load_progress")
        await door.embed.Embed(REQUEST)


async def test_why_a_model_could_not_be_loaded_is_told(open_door: Callable[..., Any]) -> None:
    """Health says NOT_SERVING before and after; what the worker says of it is asked for again, and stands in readiness and the card."""
    card = fake_card("fake", state=model_pb2.MODEL_STATE_LOADING, state_reason="loading")
    worker = FakeWorker(card, fake_card("fake-rerank", model_pb2.TASK_RERANK), starts_serving=False)
    async with worker, open_door(routing(worker)) as door:
        for reason in ("loading", "its golden vectors do not match"):
            worker.cards["fake"].state_reason = reason
            await door.until(lambda said=reason: said in {one["reason"] for one in door.gateway.readiness.report()[1]["upstreams"]})
        told = await door.models.GetModel(model_pb2.GetModelRequest(model="fake"))
        assert (told.model.state, told.model.state_reason) == (model_pb2.MODEL_STATE_UNAVAILABLE, "its golden vectors do not match")


async def test_a_request_lost_with_a_worker_is_tried_on_another(open_door: Callable[..., Any]) -> None:
    """UNAVAILABLE from one of two: the other answers, once each, and the retry is counted."""

    async def fail(_: Any, __: Any) -> None:
        raise Unavailable("The model is stuck.")

    async with FakeWorker(before=fail) as broken, FakeWorker() as sound, open_door(routing(broken, sound)) as door:
        await door.until_serving()
        for _ in range(20):
            await door.embed.Embed(REQUEST)
        assert len(sound.received) == 20
        assert 0 < len(broken.received) <= 20
        assert f'router_upstream_retries_total{{model="fake"}} {len(broken.received)}.0' in door.telemetry.metrics.text().decode()
        sound.before = fail
        failure = await refused(door.embed.Embed(REQUEST))
        assert (failure.status, failure.message) == ("UNAVAILABLE", "The model is stuck.")


async def test_a_fault_of_a_worker_is_not_retried(open_door: Callable[..., Any]) -> None:
    """Only UNAVAILABLE says that nothing was done."""

    async def fail(_: Any, __: Any) -> None:
        raise Internal("A bug.")

    async with FakeWorker(before=fail) as first, FakeWorker(before=fail) as second, open_door(routing(first, second)) as door:
        await door.until_serving()
        assert (await refused(door.embed.Embed(REQUEST))).status == "INTERNAL"
        assert len(first.received) + len(second.received) == 1


async def test_a_worker_that_vanishes_under_load_loses_no_request(open_door: Callable[..., Any]) -> None:
    """Its connection breaks with requests in flight; all of them are answered by the other."""
    left = asyncio.Event()

    async def hold(_: Any, __: Any) -> None:
        await left.wait()

    async with FakeWorker(before=hold) as stays, FakeWorker(before=hold) as leaves, open_door(routing(stays, leaves)) as door:
        await door.until_serving()
        calls = [asyncio.ensure_future(door.embed.Embed(REQUEST)) for _ in range(40)]
        await door.until(lambda: len(leaves.received) >= 5)
        await leaves.server.stop()
        left.set()
        assert len(await asyncio.gather(*calls)) == 40


async def test_the_less_loaded_of_two_is_chosen(open_door: Callable[..., Any]) -> None:
    """While one of two workers holds what it has, new requests go to the other."""
    release = asyncio.Event()

    async def hold(_: Any, __: Any) -> None:
        await release.wait()

    async with FakeWorker(before=hold) as held, FakeWorker() as free, open_door(routing(held, free)) as door:
        await door.until_serving()
        calls = [asyncio.ensure_future(door.embed.Embed(REQUEST)) for _ in range(30)]
        await door.until(lambda: len(held.received) + len(free.received) == 30)
        assert len(held.received) < 10
        release.set()
        await asyncio.gather(*calls)


async def test_the_next_priority_serves_while_the_first_is_gone(open_door: Callable[..., Any]) -> None:
    """And the first takes over again when it is back."""
    async with FakeWorker() as first, FakeWorker() as spare:
        file = (
            "embeddings:\n  - model: fake\n    upstreams:\n"
            f"      - {{type: grpc, url: 'grpc://{spare.target}', priority: 1}}\n"
            f"      - {{type: grpc, url: 'grpc://{first.target}'}}\n"
        )
        async with open_door(file) as door:
            await door.until_serving()
            await door.embed.Embed(REQUEST)
            first.serve(serving=False)
            await door.until(lambda: door.gateway.readiness.status == "degraded")
            await door.embed.Embed(REQUEST)
            first.serve(serving=True)
            await door.until_serving()
            await door.embed.Embed(REQUEST)
            assert (len(first.received), len(spare.received)) == (2, 1)


async def test_a_replica_that_reads_text_differently_is_not_mixed_in(open_door: Callable[..., Any]) -> None:
    """Ids of one tokenizer mean nothing to another."""
    other = FakeWorker().tokenizer.replace(b'"hello"', b'"hallo"')
    async with FakeWorker() as first, FakeWorker(tokenizer=other) as second, open_door(routing(first, second)) as door:
        await door.until_serving()
        for _ in range(10):
            await door.embed.Embed(REQUEST)
        assert 0 in (len(first.received), len(second.received))


async def test_a_replica_of_another_width_is_not_mixed_in(open_door: Callable[..., Any]) -> None:
    """Two models may read text by the same tokenizer and give vectors that belong into no index together."""
    wide = fake_card("fake", dimensions=16), fake_card("fake-rerank", model_pb2.TASK_RERANK)
    async with FakeWorker() as first, FakeWorker(*wide) as second, open_door(routing(first, second)) as door:
        await door.until_serving()
        widths = {len((await door.embed.Embed(REQUEST)).embeddings[0].values) for _ in range(20)}
        assert len(widths) == 1


async def test_ids_never_reach_a_replica_that_reads_text_differently(open_door: Callable[..., Any]) -> None:
    """A request that is lost while its model is exchanged is not tried on the new one, which would answer with a wrong vector."""
    other = FakeWorker().tokenizer.replace(b'"hello"', b'"hallo"')
    async with FakeWorker() as old, FakeWorker(tokenizer=other) as new, open_door(routing(old, new)) as door:
        await door.until_serving()
        (pool,) = (pool for pool in door.gateway.routes.pools if pool.alias == "fake")

        async def leave(_: Any, __: Any) -> None:
            old.health.set("model/fake", serving=False, reason="exchanged")
            await door.until(lambda: pool.known is pool.replicas[1].facts)
            raise Unavailable("The model is going.")

        old.before = leave
        assert (await refused(door.embed.Embed(REQUEST))).message == "The model is going."
        assert not new.received
        await door.embed.Embed(REQUEST)
        assert len(new.received) == 1


async def test_a_model_that_is_switched_off_does_not_make_its_worker_look_away(open_door: Callable[..., Any], worker: FakeWorker) -> None:
    """The gauge speaks of what is asked for."""
    upstream = f"upstream: {{type: grpc, url: 'grpc://{worker.target}'}}"
    file = f"embeddings: [{{model: fake, {upstream}}}]\nrerank: [{{model: fake-rerank, enabled: false, {upstream}}}]\n"
    async with open_door(file) as door:
        await door.until_serving()
        assert f'router_upstream_serving{{upstream="{worker.target}"}} 1.0' in door.telemetry.metrics.text().decode()


async def test_the_server_of_a_model_that_is_switched_off_has_no_gauge(open_door: Callable[..., Any], worker: FakeWorker) -> None:
    """Whoever is woken by a gauge of 0 would be woken for nothing."""
    off = "{model: another, enabled: false, upstream: {type: openai, url: 'http://127.0.0.1:1'}}"
    async with open_door(f"embeddings: [{{model: fake, upstream: {{type: grpc, url: 'grpc://{worker.target}'}}}}, {off}]\n") as door:
        await door.until_serving()
        assert 'router_upstream_serving{upstream="127.0.0.1:1"}' not in door.telemetry.metrics.text().decode()


async def test_an_earlier_deployments_routes_find_our_own_workers(open_door: Callable[..., Any], worker: FakeWorker) -> None:
    """`infinity` and `rerank` name a protocol that our workers do not speak; being asked in ours, they answer."""
    url = f"http://{worker.target}"
    file = (
        f"embeddings: [{{model: fake, served_name: x/y, upstream: {{type: infinity, url: '{url}', timeout_ms: 3000}}}}]\n"
        f"rerank: [{{model: fake-rerank, served_name: x/z, max_top_k: 9, upstream: {{type: rerank, url: '{url}', timeout_seconds: 10}}}}]\n"
    )
    async with open_door(file) as door:
        await door.until_serving()
        await door.embed.Embed(REQUEST)
        assert [line["type"] for line in (await readiness(door))[1]["upstreams"]] == ["infinity", "rerank"]


async def test_an_http_upstream_is_unavailable_and_says_why(open_door: Callable[..., Any], worker: FakeWorker) -> None:
    """A server that speaks HTTP only, one over TLS, and a worker without the model: each with its reason, and the rest is served."""
    runner = web.AppRunner(web.Application())
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    file = (
        "embeddings:\n"
        f"  - {{model: fake, upstream: {{type: grpc, url: 'grpc://{worker.target}'}}}}\n"
        f"  - {{model: other, upstream: {{type: openai, url: 'http://127.0.0.1:{port}'}}}}\n"
        f"  - {{model: safe, upstream: {{type: grpc, url: 'grpcs://{worker.target}'}}}}\n"
        f"  - {{model: absent, upstream: {{type: grpc, url: 'grpc://{worker.target}'}}}}\n"
    )

    def reasons() -> dict[str, str]:
        return {one["name"].partition("@")[0]: one["reason"] for one in door.gateway.readiness.report()[1]["upstreams"]}

    async with open_door(file) as door:
        await door.until_serving("fake")
        await door.until(lambda: "it answers HTTP 404 at /v1/embeddings, /embeddings" in reasons()["other"])
        await door.until(lambda: "tls" in reasons()["safe"].lower())
        await door.until(lambda: reasons()["absent"] == "the worker does not have this model; its models for the task: fake")
        assert (await readiness(door))[1]["status"] == "degraded"
        await door.embed.Embed(REQUEST)
    await runner.cleanup()


async def test_an_upstream_that_wants_tls_gets_nothing_in_the_clear(open_door: Callable[..., Any], worker: FakeWorker) -> None:
    """Neither by its url nor as a replica; readiness says why."""
    tls = f"grpcs://{worker.target}"
    for upstream in (f"{{type: grpc, url: '{tls}'}}", f"{{type: grpc, url: 'grpc://127.0.0.1:9', replicas: ['{tls}']}}"):
        async with open_door(f"embeddings: [{{model: fake, upstream: {upstream}}}]") as door:
            await door.until(lambda door=door: "tls" in door.gateway.readiness.report()[1]["upstreams"][-1]["reason"].lower())
            assert (await refused(door.embed.Embed(REQUEST))).status == "UNAVAILABLE"


async def test_a_route_s_timeout_holds(open_door: Callable[..., Any], worker: FakeWorker) -> None:
    """An upstream with a timeout of its own is left after that."""

    async def hold(_: Any, __: Any) -> None:
        await asyncio.Event().wait()

    worker.before = hold
    async with open_door(
        f"embeddings: [{{model: fake, upstream: {{type: grpc, url: 'grpc://{worker.target}', timeout_ms: 100}}}}]"
    ) as door:
        await door.until_serving()
        assert (await refused(door.embed.Embed(REQUEST, timeout=10))).status == "DEADLINE_EXCEEDED"


async def test_watch_tells_of_changes(door: Door, worker: FakeWorker) -> None:
    """A Watch on a model's name hears that it stops and that it comes back."""
    watch = health_pb2_grpc.HealthStub(door.channel).Watch(health_pb2.HealthCheckRequest(service="model/fake"))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    worker.serve(serving=False)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    worker.serve(serving=True)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


async def test_metrics_of_all_gateways_are_one_page(open_door: Callable[..., Any], worker: FakeWorker) -> None:
    """GET /metrics/mesh has both gateways' series under their addresses; one that is away is left out."""
    away = free_port()
    async with open_door(routing(worker)) as other:
        port = other.gateway.server.http_port
        async with open_door(routing(worker), metrics_peers=f"localhost:{port},127.0.0.1:{away}") as door:
            await door.until_serving()
            await door.embed.Embed(REQUEST)
            async with aiohttp.ClientSession() as session, session.get(f"{door.http}/metrics/mesh") as answer:
                text = await answer.text()
            own = f"127.0.0.1:{door.gateway.server.http_port}"
            labels = f'gateway="{own}",method="quadrate.v1.EmbedService/Embed",model="fake",principal="anonymous",status="OK"'
            assert f"router_requests_total{{{labels}}} 1.0" in text
            assert f'gateway="127.0.0.1:{port}"' in text
            assert str(away) not in text
            assert f'router_upstream_serving{{gateway="{own}",upstream="{worker.target}"}} 1.0' in text
            assert f'router_tokens_total{{gateway="{own}",model="fake",principal="anonymous"}} 3.0' in text


async def test_reflection_has_a_switch(open_door: Callable[..., Any], worker: FakeWorker) -> None:
    """ROUTER_REFLECTION=false: nobody can list services."""
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc  # noqa: PLC0415

    for on in (True, False):
        async with open_door(routing(worker), reflection=on) as door:
            stub = reflection_pb2_grpc.ServerReflectionStub(door.channel)
            if on:
                call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
                names = {service.name for service in (await call.read()).list_services_response.service}
                assert "quadrate.openai.v1.OpenAiService" in names
            else:
                # Nothing is sent: grpc.aio may tell of a stream that ends while it writes as an error of its own.
                assert await stub.ServerReflectionInfo().code() is grpc.StatusCode.UNIMPLEMENTED
