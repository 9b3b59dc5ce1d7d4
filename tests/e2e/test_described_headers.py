"""The headers of answers over REST are those that docs/openapi.yaml describes, route by route."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from quadrate.config.shipped import shipped

if TYPE_CHECKING:
    import httpx

DESCRIBED: dict[str, dict[str, Any]] = yaml.safe_load(shipped("openapi.yaml").read_text(encoding="utf-8"))["paths"]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"model": "minilm", "input": "TEXT"},
    "/v2/embed": {"model": "minilm", "input_type": "search_document", "texts": ["TEXT"]},
    "/v1/rerank": {"model": "minilm-rerank", "query": "cats", "documents": ["TEXT"]},
    "/v2/rerank": {"model": "minilm-rerank", "query": "cats", "documents": ["TEXT"]},
    "/quadrate/v1/embed": {"model": "minilm", "inputs": [{"text": "TEXT"}]},
    "/quadrate/v1/rerank": {"model": "minilm-rerank", "query": "cats", "documents": [{"text": "TEXT"}]},
    "/quadrate/v1/tokenize": {"model": "minilm", "inputs": [{"text": "TEXT"}]},
}
COMPUTED = set(BODIES) - {"/quadrate/v1/tokenize"}
CACHE = "x-quadrate-cache"


def told(text: str, body: Any) -> Any:
    """Return a body with a text in its place."""
    if isinstance(body, dict):
        return {name: told(text, value) for name, value in body.items()}
    return [told(text, value) for value in body] if isinstance(body, list) else body.replace("TEXT", text)


def test_every_route_that_takes_a_body_is_asked_here() -> None:
    """One that is added is added here, too."""
    assert set(BODIES) == {path for path, operations in DESCRIBED.items() if "post" in operations}


@pytest.mark.parametrize("path", BODIES)
def test_what_an_answer_says_of_the_cache_is_described(rest: httpx.Client, path: str) -> None:
    """The first answer to a text says nothing of the cache, the second that it was known, on each route that computes; and on no other."""
    described = {name.lower() for name in DESCRIBED[path]["post"]["responses"]["200"].get("headers", {})}
    body = told(f"A text of its own, {uuid.uuid4()}.", BODIES[path])
    answers = [rest.post(path, json=body) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert [answer.headers.get(CACHE) for answer in answers] == [None, "hit" if path in COMPUTED else None]
    assert (CACHE in described) == (path in COMPUTED)
    ours = {name for answer in answers for name in answer.headers if name.startswith("x-") and not name.startswith("x-envoy-")}
    assert ours <= described | {"x-request-id"}, f"not described: {sorted(ours - described)}"
