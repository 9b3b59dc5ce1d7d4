"""Models that are pulled, loaded, replaced and unloaded by the command, seen by clients of the mesh."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import pytest
import yaml

from quadrate.config.shipped import shipped
from quadrate.testing.model_folder import tiny_config, tiny_weights, write_tiny_model
from tests.e2e.conftest import flags
from tests.processes import eventually
from tests.service.hub_server import COMMIT, LATER, Hub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.conftest import Mesh, StartMesh

REPOSITORY = "stars/tiny"


def files_of(folder: Path) -> dict[str, bytes]:
    """Return what a hub would serve of a model's folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """Run a hub with a tiny model."""
    with Hub(REPOSITORY, files_of(write_tiny_model(tmp_path / "first"))) as running:
        yield running


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Write a configuration folder whose one model is the hub's, without a revision."""
    folder = tmp_path / "configs"
    shutil.copytree(shipped("configs"), folder)
    card = {"served_name": REPOSITORY, "task": "embed", "source": {"type": "hub", "repository": REPOSITORY}}
    route = {"model": "tiny", "served_name": REPOSITORY, "upstream": {"type": "grpc", "url": "grpc://localhost:7997"}}
    (folder / "models.yaml").write_text(yaml.safe_dump({"models": {"tiny": card}}))
    (folder / "routing.yaml").write_text(yaml.safe_dump({"embeddings": [route], "rerank": []}))
    return folder


@pytest.fixture
def environment(tmp_path: Path, hub: Hub) -> dict[str, str]:
    """Return the variables that lead to the hub and to folders of the test alone."""
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "QUADRATE_MODEL_STORE": str(tmp_path / "store")}


async def ask(http: httpx.AsyncClient, stop: asyncio.Event, seen: list[str]) -> None:
    """Ask for an embedding again and again, and note the revisions in order. Raises httpx.HTTPStatusError for a request that fails."""
    while not stop.is_set():
        answer = await http.post("/quadrate/v1/embed", json={"model": "tiny", "inputs": [{"text": "hello world"}]})
        answer.raise_for_status()
        seen.append(answer.json()["provenance"]["revision"])


async def test_a_hub_model_is_pulled_by_up_and_replaced_without_a_lost_request(
    start_mesh: StartMesh, hub: Hub, config: Path, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`up` locks what its routes need; a later pull and load change the revision under load, once for each caller and without an error."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with start_mesh("--config", str(config), environment=environment) as mesh:
        lock = json.loads((config / "models.lock.json").read_text())["models"]["tiny"]
        assert (lock["revision"], lock["repository"]) == (COMMIT, REPOSITORY)
        worker = mesh.target("embed")
        hub.commit = LATER
        hub.files = files_of(write_tiny_model(tmp_path / "second", weights=tiny_weights(tiny_config(), seed=1)))
        async with httpx.AsyncClient(base_url=mesh.url, timeout=10) as http:
            stop = asyncio.Event()
            answers: list[list[str]] = [[] for _ in range(4)]
            callers = [asyncio.create_task(ask(http, stop, seen)) for seen in answers]
            await eventually(lambda: all(answers), "nobody was answered")
            for arguments, said in (
                (("pull", "tiny", "--update"), f"tiny: {tmp_path / 'store' / 'stars--tiny' / LATER} ({LATER})"),
                (("load", "tiny", "--worker", worker), f"tiny at {worker}: ready, revision {LATER}, "),
            ):
                done = await asyncio.to_thread(mesh.command, "models", *arguments, "--config", str(config))
                assert done.returncode == 0, done.stderr
                assert said in done.stdout
            await eventually(lambda: all(seen[-1] == LATER for seen in answers), "the new revision does not answer")
            stop.set()
            await asyncio.gather(*callers)
            for seen in answers:
                assert [revision for place, revision in enumerate(seen) if not place or seen[place - 1] != revision] == [COMMIT, LATER]
            await asyncio.to_thread(_check_the_commands, mesh, worker, config)
            await eventually(lambda: _is_back(mesh), "the model did not come back")


def _is_back(mesh: Mesh) -> bool:
    return httpx.post(f"{mesh.url}/v1/embeddings", json={"model": "tiny", "input": "hello"}).status_code == 200


def _check_the_commands(mesh: Mesh, worker: str, config: Path) -> None:
    """List, show, unload and load again, and what callers see of it."""
    rows = json.loads(mesh.command("models", "list", "--worker", worker, "--json").stdout)["models"]
    assert [(row["alias"], row["state"], row["revision"]) for row in rows] == [("tiny", "ready", LATER)]
    assert "tiny" in mesh.command("models", "list", "--worker", worker).stdout
    shown = json.loads(mesh.command("models", "show", "tiny", "--worker", worker).stdout)
    assert (shown["revision"], shown["architecture"]) == (LATER, "bert")
    described = json.loads(mesh.command("models", "show", "tiny", "--config", str(config)).stdout)
    assert described["card"]["source"]["revision"] == LATER
    assert mesh.command("models", "unload", "tiny", "--worker", worker).stdout == f"tiny at {worker}: unloaded\n"
    body = {"model": "tiny", "input": "hello"}
    lost = httpx.post(f"{mesh.url}/v1/embeddings", json=body)
    assert lost.status_code == 503
    assert lost.json()["error"]["code"] == "unavailable"
    for target, said in ((mesh.target("gateway"), "it is no worker"), ("127.0.0.1:9", "no worker answers there")):
        refused = mesh.command("models", "unload", "tiny", "--worker", target)
        assert refused.returncode == 1
        assert said in refused.stderr
    again = mesh.command("models", "unload", "tiny", "--worker", worker)
    assert "has no model 'tiny' loaded. It has none." in again.stderr
    assert mesh.command("models", "load", "tiny", "--worker", worker, "--config", str(config)).returncode == 0


def test_up_says_why_a_hub_model_cannot_be_locked(
    config: Path, environment: dict[str, str], hub: Hub, free_ports: dict[str, int], tmp_path: Path
) -> None:
    """Where the lock cannot be written nothing is fetched and nothing started."""
    nowhere = tmp_path / "nowhere" / "lock.json"
    done = subprocess.run(
        [sys.executable, "-m", "quadrate.cli", "up", "--config", str(config), *flags(free_ports)],
        env={**os.environ, **environment, "XDG_STATE_HOME": str(tmp_path), "QUADRATE_MODELS_LOCK_PATH": str(nowhere)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert f"{nowhere}: cannot be written: No such file or directory" in done.stderr
    assert not hub.requests
