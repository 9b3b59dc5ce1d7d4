"""A gateway over a real worker whose models come, are replaced and go meanwhile."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gateway.auth.principal import ANONYMOUS
from gateway.upstreams.errand import Errand
from quadrate.errors import Unavailable
from quadrate.server import Call
from quadrate.testing.model_folder import tiny_config, tiny_weights, write_tiny_model
from quadrate.testing.tokenizers import letter_tokenizer
from quadrate.testing.worker import FakeWorker
from quadrate.v1 import admin_pb2, embed_pb2, model_pb2, options_pb2, rerank_pb2
from tests.service.gateway.conftest import Door, refused, routing
from tests.service.workers.conftest import Running, running

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXT = "hello world"
HELLO = embed_pb2.EmbedRequest(model="tiny", inputs=[options_pb2.Input(text=TEXT)])


def write_catalogue(folder: Path, *, seed: int) -> Path:
    """Write a catalogue whose model `tiny` has weights of its own for each seed."""
    path = write_tiny_model(folder / f"tiny-{seed}", weights=tiny_weights(tiny_config(), seed=seed))
    if seed:  # and reads some words by their letters
        (path / "tokenizer.json").write_bytes(letter_tokenizer().replace(b'"hello"', b'"hallo"'))
    card = {"served_name": "tests/tiny", "task": "embed", "source": {"type": "folder", "path": str(path)}}
    file = folder / "models.yaml"
    file.write_text(json.dumps({"models": {"tiny": card}}))
    return file


def route(made: Running) -> str:
    """Return a routing file that leads to the worker."""
    upstream = f"{{type: grpc, url: 'grpc://127.0.0.1:{made.worker.server.port}'}}"
    return f"embeddings: [{{model: tiny, served_name: tests/tiny, upstream: {upstream}}}]\nrerank: []\n"


async def load(made: Running) -> None:
    """Load the model at the worker."""
    async for _ in made.admin.LoadModel(admin_pb2.LoadModelRequest(model="tiny")):
        pass


async def vector_of(made: Running) -> np.ndarray:
    """Return what the worker itself makes of TEXT."""
    return np.array((await made.embed.Embed(HELLO)).embeddings[0].values)


async def test_a_reload_loses_no_request_and_mixes_no_tokenizers(tmp_path: Path, open_door: Callable[..., Any]) -> None:
    """While callers ask through the gateway, weights and tokenizer change: none fails, and each answer is wholly the old or the new one."""
    async with running("embed", write_catalogue(tmp_path, seed=0), "tiny") as made, open_door(route(made)) as door:
        await door.until_serving()
        revisions, vectors = [_revision(made)], [await vector_of(made)]
        stop = asyncio.Event()
        answers: list[list[embed_pb2.EmbedResponse]] = [[] for _ in range(8)]

        async def ask(seen: list[embed_pb2.EmbedResponse]) -> None:
            while not stop.is_set():
                seen.append(await door.embed.Embed(HELLO))

        callers = [asyncio.create_task(ask(seen)) for seen in answers]
        await door.until(lambda: all(answers))
        write_catalogue(tmp_path, seed=1)
        await load(made)
        revisions.append(_revision(made))
        vectors.append(await vector_of(made))
        await door.until(lambda: all(seen[-1].provenance.revision == revisions[1] for seen in answers))
        stop.set()
        await asyncio.gather(*callers)
        assert revisions[0] != revisions[1]
        assert np.abs(vectors[0] - vectors[1]).max() > 0.01
        for seen in answers:
            places = [revisions.index(answer.provenance.revision) for answer in seen]
            assert places == sorted(places)
            for place, answer in zip(places, seen, strict=True):
                np.testing.assert_allclose(answer.embeddings[0].values, vectors[place], atol=1e-5)
        card = (await door.models.GetModel(model_pb2.GetModelRequest(model="tiny"))).model
        assert (card.revision, card.state) == (revisions[1], model_pb2.MODEL_STATE_READY)


async def test_a_model_that_is_unloaded_is_unavailable_until_it_is_back(tmp_path: Path, open_door: Callable[..., Any]) -> None:
    """The route is there, so that callers are told to try again rather than that there is no such model."""
    async with running("embed", write_catalogue(tmp_path, seed=0), "tiny") as made, open_door(route(made)) as door:
        await door.until_serving()
        await made.admin.UnloadModel(admin_pb2.UnloadModelRequest(model="tiny"))
        assert (await refused(door.embed.Embed(HELLO))).status == "UNAVAILABLE"
        await door.until(lambda: door.gateway.readiness.status == "unavailable")
        await load(made)
        await door.until_serving()
        assert (await door.embed.Embed(HELLO)).provenance.revision == _revision(made)


async def test_a_worker_that_has_just_lost_a_model_is_left(open_door: Callable[..., Any]) -> None:
    """A worker's NOT_FOUND is no caller's fault where a route names the model: another replica answers."""
    async with FakeWorker() as keeps, FakeWorker() as loses, open_door(routing(keeps, loses)) as door:
        await door.until_serving()
        loses.cards.clear()
        request = embed_pb2.EmbedRequest(model="fake", inputs=HELLO.inputs)
        for _ in range(20):
            assert len((await door.embed.Embed(request)).embeddings) == 1


async def test_cards_that_change_are_seen(open_door: Callable[..., Any], worker: FakeWorker) -> None:
    """A card that changes while its model serves is seen within two seconds, without a word from health."""
    async with open_door(routing(worker)) as door:
        await door.until_serving()
        worker.cards["fake"].revision = "sha256:111111111111"
        async with asyncio.timeout(2.5):
            while _revision_at(door) != "sha256:111111111111":
                await asyncio.sleep(0.01)


async def until_told(door: Door, said: str) -> None:
    """Wait until readiness tells this of an upstream that serves."""
    await door.until(lambda: line(door) == ("ok", said))


async def test_a_reload_that_failed_is_told_while_the_model_goes_on(open_door: Callable[..., Any], worker: FakeWorker) -> None:
    """Its line stays ok, for every request is answered, and says what the worker says; nothing of it is left once that is mended."""
    async with open_door(routing(worker)) as door:
        await door.until_serving()
        for said in ("it could not be loaded again: its files are gone", ""):
            worker.cards["fake"].state_reason = said
            await until_told(door, said)
        assert door.gateway.readiness.report()[1]["status"] == "ok"


def line(door: Door) -> tuple[str, str]:
    """Return what readiness says of the embedding model."""
    (found,) = [one for one in door.gateway.readiness.report()[1]["upstreams"] if one["name"].startswith("fake@")]
    return found["status"], found["reason"]


async def test_a_model_comes_to_a_running_mesh_and_goes(tmp_path: Path, open_door: Callable[..., Any]) -> None:
    """A card in the catalogue, a load at the worker, a route at the gateway: three edits and no restart; and back."""
    file = write_catalogue(tmp_path, seed=0)
    async with running("embed", file, "tiny") as made, open_door(route(made), routing_reload_interval_seconds=0.05) as door:
        await door.until_serving()
        before = route(made)
        catalogue = json.loads(file.read_text())
        catalogue["models"]["second"] = {**catalogue["models"]["tiny"], "served_name": "tests/second"}
        file.write_text(json.dumps(catalogue))
        async for _ in made.admin.LoadModel(admin_pb2.LoadModelRequest(model="second")):
            pass
        more = f"{{model: second, upstream: {{type: grpc, url: 'grpc://127.0.0.1:{made.worker.server.port}'}}}}"
        (tmp_path / "routing.yaml").write_text(before.replace("]", f", {more}]", 1))
        await door.until(lambda: [pool.alias for pool in door.gateway.routes.pools if pool.serving] == ["tiny", "second"])
        asked = embed_pb2.EmbedRequest(model="second", inputs=[options_pb2.Input(text=TEXT)])
        assert (await door.embed.Embed(asked)).embeddings[0].values == (await door.embed.Embed(HELLO)).embeddings[0].values
        (tmp_path / "routing.yaml").write_text(before)
        await door.until(lambda: [pool.alias for pool in door.gateway.routes.pools] == ["tiny"])
        await made.admin.UnloadModel(admin_pb2.UnloadModelRequest(model="second"))
        assert (await refused(door.embed.Embed(asked))).status == "NOT_FOUND"
        await door.embed.Embed(HELLO)


def _revision(made: Running) -> str:
    return made.worker.catalogue.engine("tiny").model.revision


def _revision_at(door: Door) -> str:
    pool = next(pool for pool in door.gateway.routes.pools if pool.alias == "fake")
    return pool.facts.card.revision


async def test_a_card_that_cannot_be_used_is_told_and_asked_again(open_door: Callable[..., Any], worker: FakeWorker) -> None:
    """A tokenizer that is not what the card says takes the replica out; when it is mended, it serves again by itself."""
    async with open_door(routing(worker)) as door:
        await door.until_serving()
        right = worker.cards["fake"].tokenizer_sha256
        worker.cards["fake"].tokenizer_sha256 = "0" * 64
        pool = next(pool for pool in door.gateway.routes.pools if pool.alias == "fake")
        await door.until(lambda: not pool.serving)
        assert "its tokenizer has the SHA-256" in pool.replicas[0].reason
        errand = Errand(method="embed", request=embed_pb2.EmbedRequest(), read_by=pool.facts, tokens=1, principal=ANONYMOUS)
        with pytest.raises(Unavailable):
            await pool.send(errand, Call("test", {}, "id", None, door.telemetry.traces.begin({})))
        worker.cards["fake"].tokenizer_sha256 = right
        await door.until_serving("fake")


async def test_ids_that_name_another_tokenizer_are_refused(door: Door, worker: FakeWorker) -> None:
    """Callers may say which tokenizer made their ids; another one's are refused at the gateway, retryable, and never read wrongly."""
    ids = options_pb2.TokenIds(ids=[5, 6])
    embed = embed_pb2.EmbedRequest(model="fake", inputs=[options_pb2.Input(token_ids=ids)], tokenizer_sha256="0" * 64)
    rerank = rerank_pb2.RerankRequest(
        model="fake-rerank", query_token_ids=ids, documents=[options_pb2.Input(token_ids=ids)], tokenizer_sha256="0" * 64
    )
    for call, request in ((door.embed.Embed, embed), (door.rerank.Rerank, rerank)):
        found = await refused(call(request))
        assert (found.status, found.param) == ("UNAVAILABLE", "tokenizer_sha256")
        assert "made by another tokenizer" in found.message
        request.tokenizer_sha256 = worker.cards["fake"].tokenizer_sha256
        await call(request)
    assert {request.tokenizer_sha256 for request in worker.received} == {worker.cards["fake"].tokenizer_sha256}
