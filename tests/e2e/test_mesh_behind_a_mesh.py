"""A mesh without models of its own, over another one by its REST side: `quadrate up` with a folder whose routes lead there."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import httpx
import pytest

from quadrate.config.shipped import shipped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Mesh, Ranking, Reference, StartMesh

KEY = "the-key-of-the-far-mesh"


@pytest.fixture(scope="module")
def near(start_mesh: StartMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """The mesh that is called; the one behind it wants a key."""
    folder = tmp_path_factory.mktemp("meshes")
    far_configs, near_configs = folder / "far", folder / "near"
    for configs in (far_configs, near_configs):
        shutil.copytree(shipped("configs"), configs)
    (far_configs / "auth.yaml").write_text(f"api_keys: [{KEY}]\n")
    with start_mesh("--config", str(far_configs)) as far:
        upstream = f"{{type: openai, url: '{far.url}', api_key_env: FAR_KEY"
        (near_configs / "routing.yaml").write_text(
            f"embeddings: [{{model: far, upstream: {upstream}, model: minilm}}}}]\n"
            f"rerank: [{{model: far-rerank, upstream: {upstream}, model: minilm-rerank}}}}]\n"
        )
        with start_mesh("--config", str(near_configs), environment={"FAR_KEY": KEY}) as near:
            yield near


def test_vectors_are_the_model_s(near: Mesh, reference: Reference) -> None:
    """Through two edges and two gateways; the tokens are those that the far one counted, and nothing is estimated."""
    answer = httpx.post(f"{near.url}/v1/embeddings", json={"model": "far", "input": reference.texts}, timeout=60).raise_for_status().json()
    reference.check([item["embedding"] for item in answer["data"]])
    assert answer["usage"]["prompt_tokens"] > 2 * len(reference.texts)
    assert "estimated" not in answer["usage"]


def test_documents_stand_as_the_model_orders_them(near: Mesh, ranking: Ranking) -> None:
    """With the model's own scores."""
    body = {"model": "far-rerank", "query": ranking.query, "documents": ranking.documents, "top_n": 3}
    answer = httpx.post(f"{near.url}/v2/rerank", json=body, timeout=60).raise_for_status().json()
    ranking.check([(result["index"], result["relevance_score"]) for result in answer["results"]], top_n=3)


def test_what_the_far_mesh_refuses_is_refused_here(near: Mesh) -> None:
    """A text that is too long is the caller's fault here, too, and its words are not repeated."""
    answer = httpx.post(f"{near.url}/v1/embeddings", json={"model": "far", "input": "secret " * 2000}, timeout=60)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert "secret" not in answer.text


def test_readiness_names_the_protocol_and_no_log_the_key(near: Mesh) -> None:
    """One line for each model."""
    upstreams = httpx.get(f"{near.url}/health/ready", timeout=10).json()["upstreams"]
    assert {(line["protocol"], line["status"]) for line in upstreams} == {("http", "ok")}
    assert KEY not in near.logs()
