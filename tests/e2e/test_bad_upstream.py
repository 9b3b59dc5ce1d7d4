"""A server over HTTP that answers with what is no answer, behind the whole mesh."""

from __future__ import annotations

import asyncio
import shutil
import threading
from typing import TYPE_CHECKING

import httpx
import pytest

from quadrate.config.shipped import shipped
from quadrate.testing.http_upstream import HttpUpstream
from tests.processes import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quadrate.testing.http_upstream import Fault
    from tests.e2e.conftest import Mesh, StartMesh


@pytest.fixture(scope="module")
def server() -> Iterator[HttpUpstream]:
    """A server that answers rightly until it is told otherwise."""
    found: list[HttpUpstream] = []
    ready, end = threading.Event(), threading.Event()

    async def serve() -> None:
        async with HttpUpstream() as upstream:
            found.append(upstream)
            ready.set()
            await asyncio.to_thread(end.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield found[0]
    finally:
        end.set()
        thread.join()


@pytest.fixture(scope="module")
def mesh_before(server: HttpUpstream, start_mesh: StartMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh whose one model is that server's."""
    configs = tmp_path_factory.mktemp("bad") / "configs"
    shutil.copytree(shipped("configs"), configs)
    (configs / "routing.yaml").write_text(f"embeddings: [{{model: far, upstream: {{type: openai, url: '{server.url}'}}}}]\n")
    with start_mesh("--config", str(configs)) as mesh:
        yield mesh


@pytest.mark.parametrize("fault", ["page", "narrow", "not_a_number"])
async def test_callers_hear_502_and_not_what_another_try_would_say(server: HttpUpstream, mesh_before: Mesh, fault: Fault) -> None:
    """The edge does not ask again, and whoever comes while the server answers so hears the same."""
    with httpx.Client(base_url=mesh_before.url, timeout=30) as client:
        await eventually(lambda: client.get("/health/ready").status_code == httpx.codes.OK, "the server serves")
        server.fault = fault
        answers = [await asyncio.to_thread(client.post, "/v1/embeddings", json={"model": "far", "input": "a text"})]
        await eventually(lambda: client.get("/health/ready").status_code != httpx.codes.OK, "the server is away")
        answers += [await asyncio.to_thread(client.post, "/v1/embeddings", json={"model": "far", "input": "a text"})]
        server.fault = None
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_error"), answer.text
        assert "Tell the operator" in answer.json()["error"]["message"]
        assert not any(name.startswith(("x-envoy", "x-quadrate-http", "grpc-")) for name in answer.headers)
