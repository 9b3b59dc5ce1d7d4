"""Models that come, are replaced and go while a worker runs."""

from __future__ import annotations

import asyncio
import json
import threading
import weakref
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from quadrate.config.models import ModelCard
from quadrate.config.worker import EmbedSettings
from quadrate.runtime import engine, golden, store
from quadrate.testing.model_folder import tiny_config, tiny_weights, write_tiny_model
from quadrate.testing.tokenizers import letter_tokenizer
from quadrate.v1 import admin_pb2, embed_pb2, model_pb2, options_pb2
from quadrate.worker import loading
from tests.service.workers.conftest import Running, running

if TYPE_CHECKING:
    from pathlib import Path

HELLO = embed_pb2.EmbedRequest(model="tiny", inputs=[options_pb2.Input(text="hello")])
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def change(catalogue: Path, alias: str, **values: Any) -> None:
    """Change a card of the catalogue."""
    file = json.loads(catalogue.read_text())
    file["models"].setdefault(alias, {}).update(values)
    catalogue.write_text(json.dumps(file))


def another_revision(catalogue: Path, *, seed: int = 1, **changes: Any) -> Path:
    """Let the card of `tiny` name a folder with other weights."""
    path = write_tiny_model(catalogue.parent / f"tiny-{seed}", weights=tiny_weights(tiny_config(), seed=seed), **changes)
    change(catalogue, "tiny", source={"type": "folder", "path": str(path)})
    return path


async def golden_of(folder: Path, path: Path) -> golden.Golden:
    """Write golden vectors of what the model in `folder` gives."""
    file = json.loads((folder.parent / "models.yaml").read_text())["models"]["tiny"]
    card = ModelCard.model_validate({**file, "source": {"type": "folder", "path": str(folder)}, "golden": ""})
    stored = store.ensure("tiny", card)
    made = await golden.make(engine.load("tiny", card, stored, EmbedSettings(threads=1)), made_by="a test")
    golden.write(path, made)
    return made


async def load(made: Running, model: str = "tiny") -> list[model_pb2.Model]:
    """Load a model and return its card as it was told on the way."""
    return [step.model async for step in made.admin.LoadModel(admin_pb2.LoadModelRequest(model=model))]


async def unload(made: Running, model: str = "tiny") -> None:
    """Drop a model."""
    await made.admin.UnloadModel(admin_pb2.UnloadModelRequest(model=model))


async def card_of(made: Running, model: str = "tiny") -> model_pb2.Model:
    """Ask for a card."""
    return (await made.models.GetModel(model_pb2.GetModelRequest(model=model))).model


async def check(made: Running, name: str) -> int:
    """Ask for a health status."""
    return int((await made.health.Check(health_pb2.HealthCheckRequest(service=name))).status)


async def test_a_new_revision_takes_over_without_a_lost_request(catalogue: Path) -> None:
    """While 16 callers ask one request after another, a model is loaded again: none fails, each sees one change, the old one is freed."""
    async with running("embed", catalogue, "tiny") as made:
        old = (await card_of(made)).revision
        session = weakref.ref(made.worker.catalogue.engine("tiny").model.session)
        stop = asyncio.Event()

        async def ask(seen: list[str]) -> None:
            while not stop.is_set():
                seen.append((await made.embed.Embed(HELLO)).provenance.revision)

        answers: list[list[str]] = [[] for _ in range(16)]
        another_revision(catalogue)
        callers = [asyncio.create_task(ask(seen)) for seen in answers]
        while not all(answers):
            await asyncio.sleep(0.01)
        steps = await load(made)
        new = (await card_of(made)).revision
        while not all(seen[-1] == new for seen in answers):
            await asyncio.sleep(0.01)
        stop.set()
        await asyncio.gather(*callers)
        for seen in answers:
            changes = [revision for place, revision in enumerate(seen) if not place or seen[place - 1] != revision]
            assert changes == [old, new]
        assert new != old
        assert steps[-1].state == model_pb2.MODEL_STATE_READY
        assert not steps[-1].HasField("load_progress")
        assert all(step.state == model_pb2.MODEL_STATE_READY for step in steps)
        progress = [step.load_progress for step in steps[:-1]]
        assert progress == sorted(progress)
        while session() is not None:
            await asyncio.sleep(0.01)


async def test_what_a_replaced_model_has_begun_it_finishes(catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that runs while its model is replaced is answered by the old one, and only then is that closed."""
    async with running("embed", catalogue, "tiny") as made:
        session = made.worker.catalogue.engine("tiny").model.session
        gate, run, closed = threading.Event(), session.run, threading.Event()
        close = session.close

        def slow(*arguments: Any, **named: Any) -> Any:
            assert gate.wait(30)
            return run(*arguments, **named)

        monkeypatch.setattr(session, "run", slow)

        def closing() -> None:
            closed.set()
            close()

        monkeypatch.setattr(session, "close", closing)
        old = (await card_of(made)).revision
        begun = asyncio.ensure_future(made.embed.Embed(HELLO))
        while not made.worker.scheduler.busy(made.worker.catalogue.engine("tiny").lane):
            await asyncio.sleep(0.01)
        another_revision(catalogue)
        await load(made)
        assert (await made.embed.Embed(HELLO)).provenance.revision != old
        assert not closed.is_set()
        gate.set()
        assert (await begun).provenance.revision == old
        assert await asyncio.to_thread(closed.wait, 30)


async def test_a_load_that_fails_leaves_what_worked(catalogue: Path) -> None:
    """A damaged file, a card that does not fit and wrong golden vectors are told, and the old revision goes on answering."""
    async with running("embed", catalogue, "tiny") as made:
        before = await card_of(made)
        folder = another_revision(catalogue)
        weights = folder / "model.safetensors"
        whole = weights.read_bytes()
        golden_path = catalogue.parent / "golden.json"
        right = await golden_of(folder, golden_path)
        wrong = right.texts[0].model_copy(update={"dense": right.texts[1].dense})
        card: dict[str, Any] = {"golden": "golden.json", "max_tokens": None}
        trouble: list[tuple[str, bytes, dict[str, Any], golden.Golden]] = [
            ("not a whole safetensors file|does not lie whole", whole[:-100], card, right),
            ("max_tokens is 1000", whole, card | {"max_tokens": 1000}, right),
            ("text 1, dense: the cosine to the golden", whole, card, right.model_copy(update={"texts": (wrong, *right.texts[1:])})),
            ("is of revision sha256:0, and the model's", whole, card, right.model_copy(update={"revision": "sha256:0"})),
        ]
        for said, data, values, vectors in trouble:
            weights.write_bytes(data)
            change(catalogue, "tiny", **values)
            golden.write(golden_path, vectors)
            with pytest.raises(grpc.aio.AioRpcError, match=said) as caught:
                await load(made)
            assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
            now = await card_of(made)
            assert (now.state, now.revision) == (model_pb2.MODEL_STATE_READY, before.revision)
            assert now.state_reason.startswith("it could not be loaded again: ")
            assert (await made.embed.Embed(HELLO)).provenance.revision == before.revision
            assert await check(made, "model/tiny") == await check(made, "") == SERVING
        golden.write(golden_path, right)
        await load(made)
        assert (await card_of(made)).revision == right.revision


async def test_a_model_with_wrong_golden_vectors_is_not_served_from_the_start(catalogue: Path) -> None:
    """A worker whose only model does not match its golden vectors says why and leaves with the status of a wrong configuration."""
    folder = catalogue.parent / "plain"
    path = catalogue.parent / "golden.json"
    made_golden = await golden_of(folder, path)
    texts = tuple(text.model_copy(update={"dense": golden.packed(np.ones(32, np.float32))}) for text in made_golden.texts)
    golden.write(path, made_golden.model_copy(update={"texts": texts}))
    change(catalogue, "tiny", golden="golden.json")
    async with running("embed", catalogue, "tiny", wait=False) as made:
        await asyncio.wait_for(asyncio.gather(made.worker.loaded.wait(), made.worker.server.run()), 30)
        assert made.worker.status == 2
        assert "(and 9 more); the model is not served" in made.worker.catalogue.entry("tiny").reason


async def test_a_model_that_answers_with_no_numbers_is_not_served(catalogue: Path) -> None:
    """Weights that hold a NaN are told as such; the revision that answers right goes on."""
    async with running("embed", catalogue, "tiny") as made:
        before = (await card_of(made)).revision
        weights = tiny_weights(tiny_config())
        weights["encoder.layer.0.output.dense.bias"][0] = np.nan
        folder = write_tiny_model(catalogue.parent / "broken", weights=weights)
        change(catalogue, "tiny", source={"type": "folder", "path": str(folder)})
        with pytest.raises(grpc.aio.AioRpcError, match="numbers that are not finite"):
            await load(made)
        assert (await made.embed.Embed(HELLO)).provenance.revision == before


async def test_a_model_that_is_unloaded_is_gone_until_it_is_loaded(catalogue: Path) -> None:
    """After it was unloaded a model is NOT_FOUND and NOT_SERVING, its worker is unavailable without it; loading brings it back."""
    async with running("embed", catalogue, "tiny") as made:
        session = weakref.ref(made.worker.catalogue.engine("tiny").model.session)
        await unload(made)
        assert session() is None
        with pytest.raises(grpc.aio.AioRpcError, match="It serves none") as caught:
            await made.embed.Embed(HELLO)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        assert await check(made, "model/tiny") == await check(made, "") == NOT_SERVING
        assert made.worker.catalogue.readiness() == (False, {"status": "unavailable", "models": []})
        assert not (await made.models.ListModels(model_pb2.ListModelsRequest())).models
        with pytest.raises(grpc.aio.AioRpcError, match="has no model 'tiny' loaded"):
            await unload(made)
        await load(made)
        assert len((await made.embed.Embed(HELLO)).embeddings) == 1
        assert await check(made, "model/tiny") == await check(made, "") == SERVING


async def test_a_model_can_be_added(catalogue: Path) -> None:
    """A model that the settings do not name is loaded beside the others; one that is not in the catalogue is NOT_FOUND."""
    async with running("embed", catalogue, "tiny") as made:
        steps = await load(made, "raw")
        assert (steps[-1].name, steps[-1].state) == ("raw", model_pb2.MODEL_STATE_READY)
        answer = await made.embed.Embed(embed_pb2.EmbedRequest(model="tests/raw", inputs=HELLO.inputs))
        assert answer.provenance.pooling == "cls"
        for unknown in ("nothing", "late"):
            with pytest.raises(grpc.aio.AioRpcError, match="there are: tiny, matryoshka, prompted, raw") as caught:
                await load(made, unknown)
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        catalogue.write_text("models: {tiny: 1}")
        with pytest.raises(grpc.aio.AioRpcError, match=r"models\.yaml:1: models\.tiny"):
            await load(made, "raw")
        assert len((await made.embed.Embed(HELLO)).embeddings) == 1


async def test_a_failed_new_model_is_told_and_can_be_removed(catalogue: Path) -> None:
    """A model that was added and cannot be served is listed with the reason, and the others answer; unloading forgets it."""
    change(catalogue, "raw", max_tokens=1000)
    async with running("embed", catalogue, "tiny") as made:
        with pytest.raises(grpc.aio.AioRpcError, match="max_tokens is 1000"):
            await load(made, "raw")
        card = await card_of(made, "raw")
        assert card.state == model_pb2.MODEL_STATE_UNAVAILABLE
        assert "max_tokens is 1000" in card.state_reason
        assert made.worker.catalogue.readiness()[1]["status"] == "degraded"
        await unload(made, "raw")
        assert made.worker.catalogue.readiness()[1]["status"] == "ok"


async def test_loads_of_one_model_follow_each_other_and_unloading_ends_them(catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load that waits is joined; one that is under way is followed; unloading ends both kinds, and nothing of them stays."""
    gate, real = threading.Event(), engine.load
    builds: list[str] = []

    def slow(alias: str, *rest: Any) -> engine.Model:
        builds.append(alias)
        assert gate.wait(30)
        return real(alias, *rest)

    async with running("embed", catalogue, "tiny") as made:
        monkeypatch.setattr(engine, "load", slow)
        asked: list[str] = []
        begin = made.worker.loader.load
        monkeypatch.setattr(made.worker.loader, "load", lambda alias: (asked.append(alias), begin(alias))[1])
        first = asyncio.create_task(load(made))
        while not builds:
            await asyncio.sleep(0.01)
        others = [asyncio.create_task(load(made)) for _ in range(3)]
        while len(asked) < 4:
            await asyncio.sleep(0.01)
        gate.set()
        assert {task[-1].state for task in await asyncio.gather(first, *others)} == {model_pb2.MODEL_STATE_READY}
        assert len(builds) == 2
        gate.clear()
        loads = [asyncio.create_task(load(made)) for _ in range(2)]
        while len(builds) < 3 or len(asked) < 6:
            await asyncio.sleep(0.01)
        await unload(made)
        gate.set()
        for failure in await asyncio.gather(*loads, return_exceptions=True):
            assert isinstance(failure, grpc.aio.AioRpcError)
            assert "was unloaded while it loaded" in str(failure.details())
        assert await check(made, "model/tiny") == NOT_SERVING
        assert not made.worker.catalogue.entries
        await load(made)
        assert await check(made, "model/tiny") == SERVING


async def test_a_caller_who_leaves_does_not_stop_a_load(catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing the stream leaves the load going."""
    gate, real = threading.Event(), engine.load

    def slow(*arguments: Any) -> engine.Model:
        assert gate.wait(30)
        return real(*arguments)

    async with running("embed", catalogue, "tiny") as made:
        monkeypatch.setattr(engine, "load", slow)
        call = made.admin.LoadModel(admin_pb2.LoadModelRequest(model="raw"))
        first = await call.read()
        assert isinstance(first, admin_pb2.LoadModelResponse)
        assert first.model.state == model_pb2.MODEL_STATE_LOADING
        call.cancel()
        gate.set()
        while await check(made, "model/raw") != SERVING:
            await asyncio.sleep(0.01)


async def test_what_does_not_fit_the_budget_is_refused(catalogue: Path) -> None:
    """A model that would exceed the memory budget is refused with the numbers and the way out; after an unload it fits."""
    many = tiny_config(vocab_size=60_000)
    large = {alias: write_tiny_model(catalogue.parent / alias, weights=tiny_weights(many), vocab_size=60_000) for alias in ("raw", "large")}
    for alias, path in large.items():
        change(catalogue, alias, served_name=alias, task="embed", source={"type": "folder", "path": str(path)})
    async with running("embed", catalogue, "tiny", memory_budget_mib=12) as made:
        await load(made, "raw")
        assert (await card_of(made, "raw")).memory_mib == 7
        with pytest.raises(grpc.aio.AioRpcError, match=r"take about 7 MiB, and 5 of EMBED_MEMORY_BUDGET_MIB=12 are left .*raw 7") as caught:
            await load(made, "large")
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        with pytest.raises(grpc.aio.AioRpcError, match="Loading it again needs room for both; unload raw first"):
            await load(made, "raw")
        await unload(made, "raw")
        await load(made, "large")


async def test_ids_of_a_former_tokenizer_are_read_by_the_former_model_or_refused(catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token ids that name their tokenizer never meet another: the former model takes them for a while, then they are refused."""
    async with running("embed", catalogue, "tiny") as made:
        before = await card_of(made)
        ids = options_pb2.Input(token_ids=options_pb2.TokenIds(ids=[5, 6, 7]))
        request = embed_pb2.EmbedRequest(model="tiny", inputs=[ids], tokenizer_sha256=before.tokenizer_sha256)
        folder = another_revision(catalogue)
        (folder / "tokenizer.json").write_bytes(letter_tokenizer() + b"\n")
        monkeypatch.setattr(loading, "LINGER_SECONDS", 1.0)
        await load(made)
        after = await card_of(made)
        assert after.tokenizer_sha256 != before.tokenizer_sha256
        assert (await made.embed.Embed(request)).provenance.revision == before.revision
        assert (await made.embed.Embed(HELLO)).provenance.revision == after.revision
        while made.worker.catalogue.entry("tiny").former is not None:
            await asyncio.sleep(0.01)
        with pytest.raises(grpc.aio.AioRpcError, match="made by another tokenizer") as caught:
            await made.embed.Embed(request)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        request.tokenizer_sha256 = after.tokenizer_sha256
        assert (await made.embed.Embed(request)).provenance.revision == after.revision


async def test_a_new_revision_that_fails_when_it_runs_does_no_harm(catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A revision whose first runs raise, or do not end, is not served; the old one answers, and the worker stays."""
    real, gate = engine.load, threading.Event()

    def broken(*_: Any, **__: Any) -> Any:
        raise MemoryError("no room")

    def stuck(*_: Any, **__: Any) -> Any:
        assert gate.wait(30)
        raise MemoryError("too late")

    async with running("embed", catalogue, "tiny", stuck_seconds=0.1) as made:
        left = asyncio.create_task(made.worker.server.run())
        for run, said in ((broken, "raised MemoryError: no room"), (stuck, "takes longer than")):

            def harmed(*arguments: Any, run: Any = run) -> engine.Model:
                model = real(*arguments)
                monkeypatch.setattr(model.session, "run", run)
                return model

            monkeypatch.setattr(engine, "load", harmed)
            with pytest.raises(grpc.aio.AioRpcError, match=said):
                await load(made)
            assert len((await made.embed.Embed(HELLO)).embeddings) == 1
            assert await check(made, "model/tiny") == SERVING
        assert not left.done()
        gate.set()
        made.worker.server.ask_to_stop("the test is over")
        await left


async def test_a_stuck_session_fails_its_waiters_and_ends_the_worker(catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a run does not end, all who wait get UNAVAILABLE at once, the model is NOT_SERVING, and the process leaves for a new one."""
    gate = threading.Event()

    def stuck(*_: Any, **__: Any) -> Any:
        assert gate.wait(30)
        raise MemoryError("too late")

    async with running("embed", catalogue, "tiny", stuck_seconds=0.1) as made:
        ended = asyncio.create_task(made.worker.server.run())
        monkeypatch.setattr(made.worker.catalogue.engine("tiny").model.session, "run", stuck)
        detected = asyncio.Event()
        fail = made.worker.scheduler._on_failure

        def noted(lane: Any) -> None:
            detected.set()
            fail(lane)

        monkeypatch.setattr(made.worker.scheduler, "_on_failure", noted)
        calls = [asyncio.ensure_future(made.embed.Embed(HELLO)) for _ in range(8)]
        await asyncio.wait_for(detected.wait(), 10)
        failures = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 1)
        assert {failure.code() for failure in failures} == {grpc.StatusCode.UNAVAILABLE}  # type: ignore[union-attr]
        entry = made.worker.catalogue.entry("tiny")
        assert (entry.engine, entry.state) == (None, model_pb2.MODEL_STATE_UNAVAILABLE)
        assert "takes longer than" in entry.reason
        await asyncio.wait_for(ended, 10)
        assert made.worker.status == 70
        gate.set()
