"""A catalogue that is edited while a worker runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import aiohttp
import pytest

from quadrate.testing.model_folder import write_tiny_model
from quadrate.testing.ports import free_ports
from quadrate.v1 import model_pb2
from tests.service.workers.conftest import Running, running
from tests.service.workers.test_admin import HELLO, another_revision, card_of, change, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def configuration(made: Running) -> dict[str, str]:
    """Return what readiness says of the file."""
    url = f"http://127.0.0.1:{made.worker.server.http_port}/health/ready"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return dict((await answer.json())["configuration"])


def revision(made: Running) -> str:
    """Return the revision that answers."""
    return made.worker.catalogue.engine("tiny").model.revision


async def test_an_edited_card_takes_effect_without_a_failed_request(catalogue: Path) -> None:
    """The model answers by the former card until it does by the new one; another whose card is as it was is left alone."""
    async with running("embed", catalogue, "tiny", "raw") as made:
        before, raw = revision(made), made.worker.catalogue.engine("raw")
        another_revision(catalogue)
        made.worker.reload.ask()
        seen = []
        while revision(made) == before:
            seen.append((await made.embed.Embed(HELLO)).provenance.revision)
        assert set(seen) <= {before, revision(made)}
        assert (await made.embed.Embed(HELLO)).provenance.revision == revision(made)
        assert made.worker.catalogue.engine("raw") is raw
        assert await configuration(made) == {"status": "ok", "reason": ""}


async def test_an_edit_is_found_at_the_interval(catalogue: Path) -> None:
    """Without a signal."""
    async with running("embed", catalogue, "tiny") as made:
        await made.worker.reload.__aexit__()
        settings = made.worker.loader._settings.model_copy(update={"models_reload_interval_seconds": 0.05})
        async with type(made.worker.reload)(
            settings, made.worker.catalogue, made.worker.loader, task="embed", telemetry=made.worker._telemetry
        ):
            before = revision(made)
            another_revision(catalogue)
            await until(lambda: revision(made) != before)


async def test_a_bad_catalogue_changes_nothing_and_is_told(catalogue: Path) -> None:
    """Its reason stands in readiness and a metric until it is mended; what was good in the same edit waits for that."""
    async with running("embed", catalogue, "tiny") as made:
        before = revision(made)
        another_revision(catalogue)
        good = catalogue.read_text()
        catalogue.write_text(good.replace('"license"', '"licence"'))
        made.worker.reload.ask()
        await until(lambda: bool(made.worker.reload.problem))
        state = await configuration(made)
        assert state["status"] == "refused"
        assert "models.tiny.licence: unknown key (did you mean 'license'?)" in state["reason"]
        assert revision(made) == before
        assert (await made.embed.Embed(HELLO)).provenance.revision == before
        page = made.worker._telemetry.metrics.text().decode()
        assert "embed_config_last_reload_successful 0.0" in page
        assert 'embed_config_reloads_total{outcome="refused"} 1.0' in page
        catalogue.write_text(good)
        made.worker.reload.ask()
        await until(lambda: revision(made) != before)
        assert (await configuration(made))["status"] == "ok"


async def test_a_card_that_cannot_be_loaded_leaves_the_model_as_it_was(catalogue: Path) -> None:
    """The reason stands in its line of readiness; it is tried once, and again when the card is edited again."""
    async with running("embed", catalogue, "tiny") as made:
        before = revision(made)
        folder = another_revision(catalogue)
        away = folder.rename(folder.with_name("away"))
        made.worker.reload.ask()
        await until(lambda: "could not be loaded again" in made.worker.catalogue.entry("tiny").reason)
        assert (await made.embed.Embed(HELLO)).provenance.revision == before
        away.rename(folder)
        change(catalogue, "tiny", description="Mended.")
        made.worker.reload.ask()
        await until(lambda: revision(made) != before)
        assert (await card_of(made)).description == "Mended."


async def test_a_model_that_failed_is_tried_again_when_asked(catalogue: Path) -> None:
    """Its files are there now, and its card is as it was."""
    folder = write_tiny_model(catalogue.parent / "late-folder")
    change(catalogue, "raw", source={"type": "folder", "path": str(folder)})
    kept = catalogue.parent / "kept"
    shutil.move(folder, kept)
    async with running("embed", catalogue, "tiny", "raw") as made:
        assert made.worker.catalogue.entry("raw").state == model_pb2.MODEL_STATE_UNAVAILABLE
        shutil.move(kept, folder)
        made.worker.reload.ask()
        await until(lambda: made.worker.catalogue.entry("raw").state == model_pb2.MODEL_STATE_READY)


async def test_a_card_that_is_new_can_be_loaded_and_one_that_is_gone_is_served_on(catalogue: Path) -> None:
    """A model goes by being unloaded, not by being forgotten."""
    async with running("embed", catalogue, "tiny") as made:
        before = revision(made)
        text = catalogue.read_text()
        catalogue.write_text(text.replace('"tiny"', '"tinier"'))
        made.worker.reload.ask()
        await until(lambda: bool(made.worker.reload._missing))
        assert (await made.embed.Embed(HELLO)).provenance.revision == before
        catalogue.write_text(text)
        change(catalogue, "tinier", served_name="tests/tinier", task="embed", source=json.loads(text)["models"]["tiny"]["source"])
        await load(made, "tinier")
        assert made.worker.catalogue.entry("tests/tinier").state == model_pb2.MODEL_STATE_READY


@pytest.fixture
def process(catalogue: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A worker process that looks at its catalogue when asked, and the URL of its HTTP port."""
    (port,) = free_ports(1)
    settings = {
        "EMBED_MODEL_NAME": "tiny",
        "EMBED_PORT": "0",
        "EMBED_HTTP_PORT": str(port),
        "QUADRATE_MODELS_PATH": str(catalogue),
        "QUADRATE_MODELS_RELOAD_INTERVAL_SECONDS": "0",
    }
    with subprocess.Popen([sys.executable, "-m", "embed_worker"], env={**os.environ, **settings}, stdout=subprocess.DEVNULL) as process:
        yield process, f"http://127.0.0.1:{port}"
        process.kill()


async def until_text(url: str, text: str) -> None:
    """Wait until a page has a text."""
    async with asyncio.timeout(30), aiohttp.ClientSession() as session:
        while True:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                async with session.get(url) as answer:
                    if text in await answer.text():
                        return
            await asyncio.sleep(0.05)


async def test_sighup_has_the_catalogue_read(catalogue: Path, process: tuple[subprocess.Popen[bytes], str]) -> None:
    """A worker process loads by the new card, and goes on."""
    worker, url = process
    await until_text(f"{url}/health/ready", '"name":"tiny","status":"ok"')
    change(catalogue, "tiny", description="Edited.")
    worker.send_signal(signal.SIGHUP)
    await until_text(f"{url}/metrics", 'embed_config_reloads_total{outcome="applied"} 1.0')
    await until_text(f"{url}/health/ready", '"name":"tiny","status":"ok"')
    assert worker.poll() is None
