"""A worker's models, their states and its end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from embed_worker.service import services as embed_services
from quadrate.config.worker import EmbedSettings
from quadrate.errors import ConfigError
from quadrate.runtime import engine
from quadrate.telemetry import Telemetry
from quadrate.tokenizer import TextTokenizer
from quadrate.v1 import embed_pb2, model_pb2, options_pb2
from quadrate.worker import Worker
from tests.service.workers.conftest import running

if TYPE_CHECKING:
    from pathlib import Path

HELLO = embed_pb2.EmbedRequest(model="tiny", inputs=[options_pb2.Input(text="hello")])
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


async def check(made: Any, name: str) -> int:
    """Ask for a health status."""
    return int((await made.health.Check(health_pb2.HealthCheckRequest(service=name))).status)


async def test_ports_are_open_while_models_load(catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a model loads, the worker tells its card and its state, and calls get UNAVAILABLE; then it is SERVING."""
    gate = threading.Event()
    load = engine.load

    def slow(*arguments: Any) -> engine.Model:
        assert gate.wait(30)
        return load(*arguments)

    monkeypatch.setattr(engine, "load", slow)
    async with running("embed", catalogue, "tiny", wait=False) as made:
        card = (await made.models.GetModel(model_pb2.GetModelRequest(model="tiny"))).model
        assert (card.state, card.state_reason) == (model_pb2.MODEL_STATE_LOADING, "loading")
        with pytest.raises(grpc.aio.AioRpcError, match="does not answer yet") as caught:
            await made.embed.Embed(HELLO)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert await check(made, "") == await check(made, "model/tiny") == NOT_SERVING
        gate.set()
        await made.worker.loaded.wait()
        assert await check(made, "") == await check(made, "model/tiny") == await check(made, "quadrate.v1.EmbedService") == SERVING
        assert len((await made.embed.Embed(HELLO)).embeddings) == 1


async def test_the_card_of_a_model_says_how_it_is_served(catalogue: Path) -> None:
    """The card of a loaded model has what the catalogue and the files say; models are listed by name and task."""
    async with running("embed", catalogue, "tiny", "prompted", "matryoshka") as made:
        listed = (await made.models.ListModels(model_pb2.ListModelsRequest())).models
        none = (await made.models.ListModels(model_pb2.ListModelsRequest(task=model_pb2.TASK_RERANK))).models
        card = (await made.models.GetModel(model_pb2.GetModelRequest(model="tests/tiny"))).model
        pieces = [piece.chunk async for piece in made.models.GetTokenizer(model_pb2.GetTokenizerRequest(model="tiny"))]
        with pytest.raises(grpc.aio.AioRpcError, match="serves no embedding model"):
            await made.models.GetModel(model_pb2.GetModelRequest(model="nothing"))
    assert [model.name for model in listed] == ["matryoshka", "prompted", "tiny"]
    assert not none
    assert (card.name, card.served_name, card.license, card.architecture) == ("tiny", "tests/tiny", "Apache-2.0", "bert")
    assert (card.dimensions, card.max_tokens, card.pooling, card.normalized) == (32, 48, "mean", True)
    assert (card.state, card.precision, card.truncation) == (model_pb2.MODEL_STATE_READY, options_pb2.EXACT, options_pb2.NONE)
    assert list(card.outputs) == [options_pb2.DENSE]
    assert list(listed[0].matryoshka_dimensions) == [8, 16]
    assert dict(listed[1].prompts) == {"query": "query: ", "document": "passage: "}
    assert listed[1].truncation == options_pb2.RIGHT
    tokenizer = TextTokenizer.from_json(b"".join(pieces), max_tokens=card.max_tokens)
    assert (tokenizer.sha256, tokenizer.vocabulary_size) == (card.tokenizer_sha256, card.vocabulary_size)


async def test_a_model_that_cannot_be_served_does_not_take_the_others_along(catalogue: Path) -> None:
    """One model that cannot be served is told with the reason, readiness is degraded, and the other one answers."""
    async with running("rerank", catalogue, "late", "crossed") as made:
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{made.worker.server.http_port}/health/ready") as answer:
            report = await answer.json()
        assert answer.status == 200
        assert report["status"] == "degraded"
        assert [model["status"] for model in report["models"]] == ["unavailable", "ok"]
        assert "scoring cross_encoder needs a classifier" in report["models"][0]["reason"]
        assert await check(made, "model/crossed") == NOT_SERVING
        assert await check(made, "") == SERVING


async def test_a_library_that_raises_while_a_model_loads_ends_the_worker(catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a library raises while the only model loads, nobody is left to wait for it: the process leaves, to be started again."""

    def broken(*_: Any) -> engine.Model:
        raise RuntimeError("the disk has gone")

    monkeypatch.setattr(engine, "load", broken)
    async with running("embed", catalogue, "tiny", wait=False) as made:
        await asyncio.wait_for(asyncio.gather(made.worker.loaded.wait(), made.worker.server.run()), 10)
        assert made.worker.status == 70
        entry = made.worker.catalogue.entry("tiny")
        assert (entry.state, entry.reason) == (model_pb2.MODEL_STATE_UNAVAILABLE, "loading raised RuntimeError: the disk has gone")


async def test_a_session_that_breaks_ends_the_worker(catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that raises turns the model NOT_SERVING, tells its callers to try again, and ends the process with a status of its own."""
    async with running("embed", catalogue, "tiny") as made:
        loaded = made.worker.catalogue.engine("tiny")
        ended = asyncio.create_task(made.worker.server.run())

        def broken(*_: Any, **__: Any) -> Any:
            raise MemoryError("no room")

        monkeypatch.setattr(loaded.model.session, "run", broken)
        calls = await asyncio.gather(*(made.embed.Embed(HELLO) for _ in range(5)), return_exceptions=True)
        assert {call.code() for call in calls} == {grpc.StatusCode.UNAVAILABLE}  # type: ignore[union-attr]
        await asyncio.wait_for(ended, 10)
        assert made.worker.status == 70
        assert made.worker.catalogue.readiness()[1]["status"] == "unavailable"


async def test_answers_do_not_depend_on_who_else_asks(catalogue: Path) -> None:
    """Random requests at once, some of them cancelled: every answer is that of the text alone, and nothing is left waiting."""
    random = np.random.default_rng(4)
    words = ["cat", "dog", "the", "mat", "hello", "world", "sat", "on"]
    texts = [" ".join(random.choice(words, random.integers(1, 40))) for _ in range(30)]
    async with running("embed", catalogue, "tiny") as made:
        alone = {}
        for text in texts:
            answer = await made.embed.Embed(embed_pb2.EmbedRequest(model="tiny", inputs=[options_pb2.Input(text=text)]))
            alone[text] = np.array(answer.embeddings[0].values)

        async def ask() -> None:
            chosen = [str(text) for text in random.choice(texts, random.integers(1, 12))]
            call = made.embed.Embed(embed_pb2.EmbedRequest(model="tiny", inputs=[options_pb2.Input(text=text) for text in chosen]))
            if random.random() < 0.2:
                await asyncio.sleep(0)
                call.cancel()
                return
            answer = await call
            for text, entry in zip(chosen, answer.embeddings, strict=True):
                np.testing.assert_allclose(entry.values, alone[text], atol=1e-5)

        await asyncio.gather(*(ask() for _ in range(200)))
        while any(tokens for tokens, _ in made.worker.scheduler.queued().values()):
            await asyncio.sleep(0.01)


def test_models_that_are_not_in_the_catalogue_are_refused(catalogue: Path) -> None:
    """A model that is not in the catalogue, or is for another task, is refused before anything starts, with those there are."""
    for name in ("nothing", "late"):
        settings = EmbedSettings(model_name=(name,), port=0, http_port=0).model_copy(update={"models_path": catalogue})
        with pytest.raises(ConfigError, match="there are: tiny, matryoshka, prompted, raw"):
            Worker(settings, task="embed", services=embed_services, telemetry=Telemetry.silent("embed"))


async def test_more_names_can_be_given(catalogue: Path) -> None:
    """A mapping gives a model more names, and its target may be a served name."""
    async with running("embed", catalogue, "tiny", model_mapping={"ours": "tests/raw"}) as made:
        answer = await made.embed.Embed(embed_pb2.EmbedRequest(model="ours", inputs=[options_pb2.Input(text="hello")]))
        assert answer.model == "ours"
        assert answer.provenance.pooling == "cls"


async def start(catalogue: Path, **environment: str) -> asyncio.subprocess.Process:
    """Start `python -m embed_worker` on free ports."""
    settings = {"EMBED_PORT": "0", "EMBED_HTTP_PORT": "0", "EMBED_MODEL_NAME": "tiny", "QUADRATE_MODELS_PATH": str(catalogue)}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "embed_worker", env={**os.environ, **settings, **environment}, stdout=asyncio.subprocess.PIPE
    )


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"EMBED_DEVICE": "gpu"}, b"quadrate[gpu]"),
        ({"EMBED_PRECISION": "half"}, b"EMBED_PRECISION"),
        ({"EMBED_MODEL_NAME": "nothing"}, b"there are: tiny"),
        ({"QUADRATE_MODELS_PATH": "/nowhere.yaml"}, b"/nowhere.yaml"),
    ],
)
async def test_a_worker_that_cannot_be_as_told_does_not_start(catalogue: Path, environment: dict[str, str], said: bytes) -> None:
    """A worker that cannot be as it is told leaves at once with status 2 and one line that says why."""
    process = await start(catalogue, **environment)
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 2
    assert said in output
    assert b"Traceback" not in output


async def test_the_process_serves_and_leaves_when_told(catalogue: Path) -> None:
    """The process says when its model is ready, and SIGTERM ends it with status 0 and without a complaint."""
    process = await start(catalogue, EMBED_SESSION="null")
    assert process.stdout is not None
    lines = []
    while not lines or b"model ready" not in lines[-1]:
        lines.append(await asyncio.wait_for(process.stdout.readline(), 60))
        assert lines[-1], b"".join(lines)
    assert any(b"session is null" in line for line in lines)
    process.send_signal(signal.SIGTERM)
    rest, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    assert b"Traceback" not in rest
    assert b"ERROR" not in rest
