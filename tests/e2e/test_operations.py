"""Health, metrics and the description, as operators and their machines read them."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml
from openapi_spec_validator import validate

from quadrate.config.shipped import shipped

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.conftest import Mesh

BODIES = {
    "/v1/embeddings": {"model": "minilm", "input": "hello"},
    "/v1/rerank": {"model": "minilm-rerank", "query": "a", "documents": ["b"]},
    "/v2/embed": {"model": "minilm", "texts": ["hello"], "input_type": "search_query", "embedding_types": ["float"]},
    "/v2/rerank": {"model": "minilm-rerank", "query": "a", "documents": ["b"]},
    "/quadrate/v1/embed": {"model": "minilm", "inputs": [{"text": "hello"}]},
    "/quadrate/v1/rerank": {"model": "minilm-rerank", "query": "a", "documents": [{"text": "b"}]},
    "/quadrate/v1/tokenize": {"model": "minilm", "inputs": [{"text": "hello"}]},
}
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def document() -> dict[str, Any]:
    """Return the description as it is written."""
    found: dict[str, Any] = yaml.safe_load(shipped("openapi.yaml").read_text(encoding="utf-8"))
    return found


def test_the_served_description_is_the_written_one(rest: httpx.Client) -> None:
    """GET /openapi.json is docs/openapi.yaml, and valid."""
    answer = rest.get("/openapi.json")
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.json() == document()
    validate(answer.json())


@pytest.mark.parametrize("path", sorted(document()["paths"]))
def test_every_described_operation_works_and_no_other_method_does(path: str, rest: httpx.Client) -> None:
    """Each operation answers 200, every other method of its path 405, with the described ones in `allow`."""
    described = {method.upper() for method in document()["paths"][path]}
    for method in METHODS:
        answer = rest.request(method, path.replace("{model}", "minilm"), json=BODIES.get(path))
        if method in described:
            assert answer.status_code == 200, answer.text
            assert "x-request-id" in answer.headers
            assert not {name for name in answer.headers if name.startswith(("grpc-", "x-envoy-"))}
        else:
            assert answer.status_code == 405, f"{method} {path}"
            assert set(answer.headers["allow"].split(", ")) - {"HEAD"} == described


def test_what_is_not_described_is_not_there(rest: httpx.Client) -> None:
    """Neighbours of the described paths are 404, in JSON."""
    for path in (
        "/",
        "/v1",
        "/v1/embed",
        "/v2/embeddings",
        "/v3/rerank",
        "/quadrate/v1/embeddings",
        "/quadrate/v2/embed",
        "/health",
        "/metrics/mesh",
    ):
        for method in ("GET", "POST"):
            answer = rest.request(method, path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), path


def test_readiness_names_every_upstream(rest: httpx.Client) -> None:
    """A line for each upstream of each model."""
    answer = rest.get("/health/ready").json()
    assert answer["status"] == "ok"
    assert sorted(line["name"].partition("@")[0] for line in answer["upstreams"]) == ["minilm", "minilm-rerank"]
    assert {(line["type"], line["status"], line["reason"]) for line in answer["upstreams"]} == {("grpc", "ok", "")}


@pytest.mark.parametrize("role", ["gateway", "embed", "rerank"])
def test_every_process_has_health_and_metrics_of_its_own(role: str, mesh: Mesh, require_program: Callable[[str], str]) -> None:
    """Each HTTP port answers, and promtool finds nothing wrong with the metrics."""
    base = f"http://{mesh.target(role, http=True)}"
    assert httpx.get(f"{base}/health/live").json() == {"status": "ok"}
    assert httpx.get(f"{base}/health/ready").status_code == 200
    metrics = httpx.get(f"{base}/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=")
    promtool(require_program, metrics.text)


def test_the_edge_gives_the_gateways_metrics_together(rest: httpx.Client, require_program: Callable[[str], str]) -> None:
    """What 8085 shows counts what was called, by model and by principal, and no key or text is in it."""
    rest.post("/v1/embeddings", json=BODIES["/v1/embeddings"])
    text = rest.get("/metrics").text
    promtool(require_program, text)
    assert "router_requests_total{" in text
    assert 'model="minilm"' in text
    assert "hello" not in text


def promtool(require_program: Callable[[str], str], text: str) -> None:
    """Assert that Prometheus' own tool has nothing to say about a page of metrics."""
    line = [require_program("promtool"), "check", "metrics"]
    done = subprocess.run(line, input=text, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
