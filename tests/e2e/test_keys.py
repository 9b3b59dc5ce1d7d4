"""Keys as an operator gives, changes and takes them, at a mesh that runs all the while."""

from __future__ import annotations

import datetime as dt
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import cohere
import httpx
import openai
import pytest
from openai import OpenAI

from quadrate.client import Client
from quadrate.config.shipped import shipped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.e2e.conftest import Mesh, StartMesh

SOON_SECONDS = 20.0
"""An edited file is read within a second here."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration folder that nobody has a key in yet, and nobody is served without."""
    found = tmp_path_factory.mktemp("configs")
    shutil.copytree(shipped("configs"), found, dirs_exist_ok=True)
    (found / "auth.yaml").write_text("# Ours.\napi_keys: []\nallow_anonymous_without_api_keys: false # never\n")
    return found


@pytest.fixture(scope="module")
def mesh(start_mesh: StartMesh, folder: Path) -> Iterator[Mesh]:
    """A mesh that reads edited files soon and keeps its metrics to itself."""
    environment = {"ROUTER_ROUTING_RELOAD_INTERVAL_SECONDS": "0.2", "EDGE_EXPOSE_METRICS": "false"}
    with start_mesh("--config", str(folder), environment=environment) as found:
        yield found


def quadrate(mesh: Mesh, folder: Path, *arguments: str) -> str:
    """Run `quadrate keys` on the folder and return what it prints on stdout."""
    done = mesh.command("keys", *arguments, "--config", str(folder))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def ask(mesh: Mesh, key: str, path: str = "/v1/models") -> int:
    """Return the status of a request with a key."""
    return httpx.get(f"{mesh.url}{path}", headers={"x-api-key": key}, timeout=30).status_code


def soon(holds: Callable[[], bool]) -> None:
    """Wait until the gateway has read the file."""
    until = time.monotonic() + SOON_SECONDS
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_key_opens_the_mesh_from_its_making_to_its_revocation(mesh: Mesh, folder: Path) -> None:
    """Without a restart, and with the file's own words left in it."""
    assert ask(mesh, "guess") == 401
    key = quadrate(mesh, folder, "new", "alice")
    soon(lambda: ask(mesh, key) == 200)
    with OpenAI(base_url=f"{mesh.url}/v1", api_key=key, max_retries=0) as sdk:
        assert len(sdk.embeddings.create(model="minilm", input="hello").data[0].embedding) == 384
    with Client(mesh.edge, api_key=key) as client:
        assert client.embed(["hello"], model="minilm").vectors.shape == (1, 384)
    with httpx.Client() as connection:
        answer = cohere.ClientV2(api_key=key, base_url=mesh.url, httpx_client=connection).rerank(
            model="minilm-rerank", query="a", documents=["b", "c"]
        )
        assert len(answer.results) == 2
    quadrate(mesh, folder, "revoke", "alice")
    soon(lambda: ask(mesh, key) == 401)
    with OpenAI(base_url=f"{mesh.url}/v1", api_key=key, max_retries=0) as sdk, pytest.raises(openai.AuthenticationError) as refused:
        sdk.models.list()
    assert refused.value.code == "invalid_api_key"
    assert (folder / "auth.yaml").read_text() == "# Ours.\napi_keys: []\nallow_anonymous_without_api_keys: false # never\n"


def test_a_key_changes_over_without_a_refused_request(mesh: Mesh, folder: Path) -> None:
    """Old and new are good at the same time; then the old one goes by its digits, and the caller's name stays."""
    old = quadrate(mesh, folder, "new", "bob")
    soon(lambda: ask(mesh, old) == 200)
    new = quadrate(mesh, folder, "new", "bob", "--rotate", "--overlap", "1h")
    soon(lambda: ask(mesh, new) == 200)
    assert ask(mesh, old) == 200
    digits = quadrate(mesh, folder, "list").splitlines()[1].split()[1]
    quadrate(mesh, folder, "revoke", digits)
    soon(lambda: ask(mesh, old) == 401)
    assert ask(mesh, new) == 200
    metrics = httpx.get(f"http://{mesh.target('gateway', http=True)}/metrics", timeout=30).text
    assert 'principal="bob"' in metrics


def test_a_key_ends_when_its_time_has_come(mesh: Mesh, folder: Path) -> None:
    """To the second, without an edit; and it is told apart from one that is wrong."""
    ends = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=8)
    key = quadrate(mesh, folder, "new", "guest", "--expires", ends.isoformat())
    soon(lambda: ask(mesh, key) == 200)
    soon(lambda: ask(mesh, key) == 403)
    assert 0 <= (dt.datetime.now(dt.UTC) - ends).total_seconds() < 5
    answer = httpx.get(f"{mesh.url}/v1/models", headers={"authorization": f"Bearer {key}"}, timeout=30)
    assert answer.json()["error"]["code"] == "api_key_expired"


def test_grpcurl_lists_services_with_a_key(mesh: Mesh, folder: Path, require_program: Callable[[str], str]) -> None:
    """-H goes with reflection, too."""
    key = quadrate(mesh, folder, "new", "curious", "--task", "embed")
    soon(lambda: ask(mesh, key) == 200)
    line = [require_program("grpcurl"), "-plaintext"]
    refused = subprocess.run([*line, mesh.edge, "list"], capture_output=True, text=True, check=False, timeout=30)
    assert "API key" in refused.stderr
    listed = subprocess.run(
        [*line, "-H", f"authorization: Bearer {key}", mesh.edge, "list"], capture_output=True, text=True, check=False, timeout=30
    )
    assert "quadrate.v1.EmbedService" in listed.stdout.split()


def test_metrics_are_for_those_inside(mesh: Mesh) -> None:
    """EDGE_EXPOSE_METRICS=false: an unknown path at the edge, whatever the method; health stays, and the gateway's own port has them."""
    for method in ("GET", "HEAD", "POST"):
        answer = httpx.request(method, f"{mesh.url}/metrics", timeout=30)
        assert answer.status_code == 404
        assert method == "HEAD" or answer.json()["error"]["code"] == "not_found"
    assert httpx.get(f"{mesh.url}/health/ready", timeout=30).status_code == 200
    assert "router_requests_total" in httpx.get(f"http://{mesh.target('gateway', http=True)}/metrics", timeout=30).text
