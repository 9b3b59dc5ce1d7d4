"""Files that are edited while the gateway serves: they take effect as a whole and without a failed request, or not at all."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, Self

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.upstreams import routes
from quadrate.testing.ports import free_port
from quadrate.testing.worker import FakeWorker, fake_card
from quadrate.v1 import embed_pb2, model_pb2, options_pb2
from tests.service.gateway.conftest import KEY, Door, refused, routing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

REQUEST = embed_pb2.EmbedRequest(model="fake", inputs=[options_pb2.Input(text="hello world")])
TAKEN = "EMBED_MODEL_MAPPING: 'ours' is the name of 'ours' already; choose another"
FAST = {"routing_reload_interval_seconds": 0.05}


def write(path: Path, text: str) -> None:
    """Replace a file in one step, as editors and deployments do."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def route(*workers: FakeWorker, model: str = "fake", more: str = "") -> str:
    """Return a routing file with one embedding model."""
    first, *others = [f"grpc://{worker.target}" for worker in workers]
    return f"embeddings: [{{model: {model}, upstream: {{type: grpc, url: '{first}', replicas: {others}{more}}}}}]"


async def configuration(door: Door) -> dict[str, Any]:
    """Return what readiness says of the files."""
    async with aiohttp.ClientSession() as session, session.get(f"{door.http}/health/ready") as answer:
        return dict((await answer.json())["configuration"])


class Callers:
    """Callers who ask one after another. An async context manager: leaving it stops them, and raises what one was refused by."""

    def __init__(self, door: Door, *, count: int = 8) -> None:
        self.door = door
        self.answered = 0
        self._count = count
        self._stop = False

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._ask()) for _ in range(self._count)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)

    async def _ask(self) -> None:
        while not self._stop:
            await self.door.embed.Embed(REQUEST, timeout=20)
            self.answered += 1

    async def more(self, count: int = 20) -> None:
        """Wait until so many more were answered."""
        wanted = self.answered + count
        await self.door.until(lambda: self.answered >= wanted or any(task.done() for task in self._tasks))


async def test_a_model_moves_to_another_worker_without_a_failed_request(open_door: Callable[..., Any], tmp_path: Path) -> None:
    """The worker that is new serves before it is asked; the one that went gets nothing more, and its connection is closed."""
    async with FakeWorker() as before, FakeWorker() as after, open_door(route(before), **FAST) as door:
        await door.until_serving()
        async with Callers(door) as callers:
            await callers.more()
            write(tmp_path / "routing.yaml", route(after))
            await door.until(lambda: bool(after.received))
            received = len(before.received)
            await callers.more()
            assert len(before.received) <= received + 8
        await door.until(lambda: door.gateway.routes.targets == {after.target})
        text = door.telemetry.metrics.text().decode()
        assert f'router_upstream_serving{{upstream="{after.target}"}} 1.0' in text
        assert f'router_upstream_serving{{upstream="{before.target}"}}' not in text
        assert 'router_config_reloads_total{outcome="applied"} 1.0' in text
        await door.until(lambda: before.target not in door.telemetry.metrics.text().decode())


async def test_a_worker_that_is_still_loading_is_waited_for(open_door: Callable[..., Any], tmp_path: Path) -> None:
    """The model stays with the worker that serves it until the other does."""
    async with FakeWorker() as before, FakeWorker(starts_serving=False) as after, open_door(route(before), **FAST) as door:
        await door.until_serving()
        async with Callers(door) as callers:
            write(tmp_path / "routing.yaml", route(after))
            await door.until(lambda: after.target in door.gateway.routes.targets)
            await callers.more()
            assert not after.received
            after.serve(serving=True)
            await door.until(lambda: bool(after.received))


async def test_a_worker_that_never_comes_is_not_waited_for_for_ever(
    open_door: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while the file holds, as it would at a start; readiness says what is amiss."""
    monkeypatch.setattr(routes, "WARM_UP_SECONDS", 0.1)
    async with FakeWorker() as before, open_door(route(before), **FAST) as door:
        await door.until_serving()
        away = f"127.0.0.1:{free_port()}"
        write(tmp_path / "routing.yaml", f"embeddings: [{{model: fake, upstream: {{type: grpc, url: 'grpc://{away}'}}}}]")
        await door.until(lambda: door.gateway.readiness.status == "unavailable")
        assert [one["name"] for one in door.gateway.readiness.report()[1]["upstreams"]] == [f"fake@{away}"]


async def test_what_did_not_change_is_kept(open_door: Callable[..., Any], tmp_path: Path) -> None:
    """Models whose route is the same, and workers whose settings are, go on with their connections and what is known of them."""
    async with FakeWorker() as one, FakeWorker() as other, open_door(routing(one), **FAST) as door:
        await door.until_serving()
        embed, rerank = door.gateway.routes.pools
        write(tmp_path / "routing.yaml", routing(one).replace("max_top_k: 20", "max_top_k: 30"))
        await door.until(lambda: door.gateway.routes.pools[1] is not rerank)
        assert door.gateway.routes.pools[0] is embed
        write(tmp_path / "routing.yaml", route(one, other).replace("fake,", "fake, served_name: fake/fake,"))
        await door.until(lambda: len(door.gateway.routes.pools) == 1)
        (pool,) = door.gateway.routes.pools
        assert pool.replicas[0] is embed.replicas[0]
        assert pool.serving


async def test_a_request_under_way_ends_where_it_began(open_door: Callable[..., Any], tmp_path: Path) -> None:
    """Its model was taken out meanwhile: it is answered, and the connection closed after that."""
    release = asyncio.Event()

    async def hold(_: Any, __: Any) -> None:
        await release.wait()

    async with FakeWorker(before=hold) as worker, open_door(route(worker), **FAST) as door:
        await door.until_serving()
        call = asyncio.ensure_future(door.embed.Embed(REQUEST, timeout=20))
        await door.until(lambda: bool(worker.received))
        write(tmp_path / "routing.yaml", "embeddings: []")
        await door.until(lambda: not door.gateway.routes.pools)
        assert (await refused(door.embed.Embed(REQUEST))).status == "NOT_FOUND"
        assert door.gateway.routes.targets == {worker.target}
        release.set()
        assert len((await call).embeddings) == 1
        await door.until(lambda: not door.gateway.routes.targets)


async def test_a_model_that_is_added_is_served_and_listed(open_door: Callable[..., Any], tmp_path: Path) -> None:
    """And one that is taken out is unknown from then on, to callers and to health."""
    cards = [fake_card("fake"), fake_card("second")]
    async with FakeWorker(*cards) as worker, open_door(route(worker), **FAST) as door:
        await door.until_serving()
        watch = health_pb2_grpc.HealthStub(door.channel).Watch(health_pb2.HealthCheckRequest(service="model/fake"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        write(tmp_path / "routing.yaml", route(worker, model="second"))
        await door.until(lambda: [pool.alias for pool in door.gateway.routes.pools if pool.serving] == ["second"])
        listed = await door.models.ListModels(model_pb2.ListModelsRequest())
        assert [card.name for card in listed.models] == ["second"]
        await door.embed.Embed(embed_pb2.EmbedRequest(model="second", inputs=REQUEST.inputs))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()


async def test_a_key_works_as_soon_as_it_is_written_and_no_longer_than_that(open_door: Callable[..., Any], tmp_path: Path) -> None:
    """Without a restart of anything."""
    key = (("authorization", f"Bearer {KEY}"),)
    async with FakeWorker() as worker, open_door(route(worker), auth="{}", **FAST) as door:
        await door.until_serving()
        assert (await refused(door.embed.Embed(REQUEST, metadata=key))).status == "UNAUTHENTICATED"
        write(tmp_path / "auth.yaml", f"api_keys: [{KEY}]")
        await door.until(lambda: bool(door.gateway.reload.configuration.auth.api_keys))
        await door.embed.Embed(REQUEST, metadata=key)
        write(tmp_path / "auth.yaml", "api_keys: [another-key-of-a-test]")
        await door.until(lambda: 'router_config_reloads_total{outcome="applied"} 2.0' in door.telemetry.metrics.text().decode())
        assert (await refused(door.embed.Embed(REQUEST, metadata=key))).status == "UNAUTHENTICATED"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("routing", "embeddings: [{model: fake, upstraem: 1}]", "routing.yaml:1: embeddings[0].upstraem: unknown key"),
        ("routing", "embeddings: [", "routing.yaml:2:"),
        ("routing", "", "routing.yaml: is empty"),
        ("auth", "api_keys: [{name: no-key}]", "api_keys[0]: an API key needs"),
        ("rate_limits", "default: {capacity: -1, refill_rate: 1}", "default.capacity: "),
    ],
)
async def test_a_bad_file_changes_nothing_and_is_told(
    open_door: Callable[..., Any], tmp_path: Path, name: str, text: str, told: str
) -> None:
    """Neither it nor another that was edited with it; metric and readiness say why, until it is mended."""
    async with FakeWorker() as worker, FakeWorker() as other, open_door(route(worker), **FAST) as door:
        await door.until_serving()
        good = {one: (tmp_path / f"{one}.yaml").read_text() for one in ("routing", "auth", "rate_limits")}
        if name != "routing":
            write(tmp_path / "routing.yaml", route(other))
        write(tmp_path / f"{name}.yaml", text)
        await door.until(lambda: bool(door.gateway.reload.problem))
        state = await configuration(door)
        assert state["status"] == "refused"
        assert told in state["reason"]
        assert door.gateway.readiness.status == "ok"
        await door.embed.Embed(REQUEST)
        assert not other.received
        page = door.telemetry.metrics.text().decode()
        assert "router_config_last_reload_successful 0.0" in page
        assert 'router_config_reloads_total{outcome="refused"} 1.0' in page
        write(tmp_path / f"{name}.yaml", good[name])
        await door.until(lambda: not door.gateway.reload.problem)
        assert (await configuration(door))["status"] == "ok"
        assert "router_config_last_reload_successful 1.0" in door.telemetry.metrics.text().decode()


async def test_loose_ends_are_told_and_taken(open_door: Callable[..., Any], tmp_path: Path) -> None:
    """A key and limits for a model without a route, and limits for a caller without a key: no reason to refuse the files."""
    async with FakeWorker() as worker, open_door(route(worker), **FAST) as door:
        assert (await configuration(door))["loose_ends"] == []
        write(tmp_path / "auth.yaml", "api_keys: [{key: sk-hidden, name: alice, models: [fake, fake/fake]}]")
        write(tmp_path / "rate_limits.yaml", "per_api_key: {bob: {models: {gone: {tokens_per_minute: 1}}}}")
        await door.until(lambda: len(door.gateway.reload.loose_ends) == 3)
        state = await configuration(door)
        assert state["status"] == "ok"
        assert state["loose_ends"] == [
            "auth.yaml: alice may call fake/fake; no route has this as its `model`: correct it, or add the route",
            "rate_limits.yaml: entry 1 of per_api_key limits gone; no route has this as its `model`: correct it, or add the route",
            "rate_limits.yaml: entry 1 of per_api_key is no key of auth.yaml, and no name of one: correct it, or take it out",
        ]


async def test_routes_that_enable_nothing_are_taken_and_told(open_door: Callable[..., Any], tmp_path: Path) -> None:
    """Who writes {} means it. Readiness says why nothing is served, and forgets it with the next edit."""
    async with FakeWorker() as worker, open_door(route(worker), **FAST) as door:
        before = (tmp_path / "routing.yaml").read_text()
        write(tmp_path / "routing.yaml", "{}")
        await door.until(lambda: bool(door.gateway.reload.loose_ends))
        assert door.gateway.readiness.status == "unavailable"
        told = "routing.yaml: no model is enabled, so nothing can be served: add one to embeddings or rerank, or enable one that is there"
        assert (await configuration(door))["loose_ends"] == [told]
        write(tmp_path / "routing.yaml", before)
        await door.until(lambda: door.gateway.readiness.status == "ok" and not door.gateway.reload.loose_ends)


async def test_an_edit_that_takes_a_name_already_given_is_refused(open_door: Callable[..., Any], tmp_path: Path) -> None:
    """One name of EMBED_MODEL_MAPPING would be two models'. Nothing is connected to for it."""
    async with FakeWorker() as worker, open_door(route(worker), EMBED_MODEL_MAPPING={"ours": "fake"}, **FAST) as door:
        before = (tmp_path / "routing.yaml").read_text()
        other = f"{{model: ours, upstream: {{type: openai, url: 'http://127.0.0.1:{free_port()}'}}}}"
        write(tmp_path / "routing.yaml", before.replace("embeddings: [", f"embeddings: [{other}, "))
        await door.until(lambda: door.gateway.reload.problem == TAKEN)
        assert not door.gateway.routes._servers
        await door.embed.Embed(embed_pb2.EmbedRequest(model="ours", inputs=REQUEST.inputs))


async def test_a_given_name_that_leads_nowhere_is_told(open_door: Callable[..., Any], tmp_path: Path) -> None:
    """Workers read the same variable and may know the model: no reason to refuse a file."""
    async with FakeWorker() as worker, open_door(route(worker), EMBED_MODEL_MAPPING={"ours": "fake", "theirs": "gone"}, **FAST) as door:
        told = "EMBED_MODEL_MAPPING: 'theirs' stands for 'gone', which no route has as its name; there are: fake"
        assert (await configuration(door))["loose_ends"] == [told]
        write(tmp_path / "routing.yaml", "{}")
        await door.until(lambda: len(door.gateway.reload.loose_ends) == 3)
        assert door.gateway.reload.problem == ""


async def test_of_many_mistakes_some_are_told(open_door: Callable[..., Any], tmp_path: Path) -> None:
    """Logs and readiness are no place for a thousand lines."""
    async with FakeWorker() as worker, open_door(route(worker), **FAST) as door:
        write(tmp_path / "auth.yaml", "api_keys:\n" + 1000 * "  - {key: 1}\n")
        await door.until(lambda: bool(door.gateway.reload.problem))
        told = door.gateway.reload.problem.splitlines()
        assert told[0] == f"{tmp_path}/auth.yaml:2: api_keys[0].key: Input should be a valid string"
        assert told[5:] == ["and 995 more; `quadrate config check` has them all"]


async def test_a_file_that_is_gone_changes_nothing(open_door: Callable[..., Any], tmp_path: Path) -> None:
    """As between the two steps in which some editors save."""
    async with FakeWorker() as worker, open_door(route(worker), **FAST) as door:
        await door.until_serving()
        (tmp_path / "routing.yaml").rename(tmp_path / "away.yaml")
        await door.until(lambda: "cannot be read" in door.gateway.reload.problem)
        await door.embed.Embed(REQUEST)
        (tmp_path / "away.yaml").rename(tmp_path / "routing.yaml")
        await door.until(lambda: not door.gateway.reload.problem)


async def test_a_folder_that_is_exchanged_behind_a_link_is_an_edit(open_door: Callable[..., Any], tmp_path: Path) -> None:
    """Kubernetes shows a ConfigMap through `..data`, a link that it moves to another folder in one step."""
    async with FakeWorker() as before, FakeWorker() as after:
        for folder, worker in (("..1", before), ("..2", after)):
            (tmp_path / "map" / folder).mkdir(parents=True)
            (tmp_path / "map" / folder / "routing.yaml").write_text(route(worker))
        (tmp_path / "map" / "..data").symlink_to("..1")
        (tmp_path / "map" / "routing.yaml").symlink_to("..data/routing.yaml")
        async with open_door(route(before), **FAST) as door:
            await door.until_serving()
            (tmp_path / "routing.yaml").unlink()
            (tmp_path / "routing.yaml").symlink_to(tmp_path / "map" / "routing.yaml")
            await door.embed.Embed(REQUEST)
            (tmp_path / "map" / "..data_tmp").symlink_to("..2")
            os.rename(tmp_path / "map" / "..data_tmp", tmp_path / "map" / "..data")  # noqa: PTH104 - the step that kubelet takes
            await door.until(lambda: door.gateway.routes.targets == {after.target})
            await door.embed.Embed(REQUEST)
            assert (len(before.received), len(after.received)) == (1, 1)


async def test_without_an_interval_files_are_read_when_asked_for(open_door: Callable[..., Any], tmp_path: Path) -> None:
    """ROUTER_ROUTING_RELOAD_INTERVAL_SECONDS=0: an edit waits for the signal."""
    async with FakeWorker() as before, FakeWorker() as after, open_door(route(before), routing_reload_interval_seconds=0) as door:
        await door.until_serving()
        write(tmp_path / "routing.yaml", route(after))
        door.gateway.reload.ask()
        await door.until(lambda: door.gateway.routes.targets == {after.target})


async def test_a_call_with_the_old_connection_open_is_not_cut_off_by_many_edits(open_door: Callable[..., Any], tmp_path: Path) -> None:
    """Edits every few milliseconds, to and fro, under load: nothing fails, and nothing is left over."""
    async with FakeWorker() as one, FakeWorker() as other, open_door(route(one), **FAST) as door:
        await door.until_serving()
        async with Callers(door) as callers:
            for turn in range(6):
                write(tmp_path / "routing.yaml", (route(one), "broken: [", route(other), route(one, other), "", route(other, one))[turn])
                await callers.more(50)
                await door.gateway.reload.look(is_asked=True)
        await door.until(lambda: door.gateway.routes.targets == {one.target, other.target})
        with pytest.raises(grpc.aio.AioRpcError):
            await door.embed.Embed(embed_pb2.EmbedRequest(model="broken", inputs=REQUEST.inputs))
