"""The rerank wire, by Cohere's SDK, version 1 and 2, and in the shapes of Jina and LiteLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cohere
import httpx
import pytest
from cohere.core.api_error import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Mesh, Ranking


def indices(results: Any) -> list[int]:
    """Return the documents' places, best first."""
    return [result.index for result in results]


@pytest.fixture(scope="module")
def first(mesh: Mesh) -> Iterator[cohere.Client]:
    """Cohere's SDK, version 1 of the API."""
    with httpx.Client() as connection:
        yield cohere.Client(api_key="", base_url=mesh.url, httpx_client=connection)


@pytest.fixture(scope="module")
def second(mesh: Mesh) -> Iterator[cohere.ClientV2]:
    """Cohere's SDK, version 2 of the API."""
    with httpx.Client() as connection:
        yield cohere.ClientV2(api_key="", base_url=mesh.url, httpx_client=connection)


def test_version_1_reranks(first: cohere.Client, ranking: Ranking) -> None:
    """Strings in, documents back when asked for."""
    answer = first.rerank(model="minilm-rerank", query=ranking.query, documents=list(ranking.documents), return_documents=True)
    ranking.check([(result.index, result.relevance_score) for result in answer.results])
    assert [result.document.text for result in answer.results if result.document] == [ranking.documents[i] for i in indices(answer.results)]
    assert answer.id
    assert answer.meta is not None
    assert answer.meta.api_version is not None
    assert answer.meta.api_version.version == "1"


def test_version_1_reranks_objects(first: cohere.Client, ranking: Ranking) -> None:
    """Objects with `text` are the same documents; what else stands in them has no effect."""
    documents: Any = [{"text": text, "title": "a title"} for text in ranking.documents]
    answer = first.rerank(model="minilm-rerank", query=ranking.query, documents=documents, top_n=2)
    ranking.check([(result.index, result.relevance_score) for result in answer.results], top_n=2)
    assert all(result.document is None for result in answer.results)


def test_version_2_reranks(second: cohere.ClientV2, ranking: Ranking) -> None:
    """Version 2 has strings alone and never repeats them."""
    answer = second.rerank(model="minilm-rerank", query=ranking.query, documents=list(ranking.documents), top_n=3, max_tokens_per_doc=200)
    ranking.check([(result.index, result.relevance_score) for result in answer.results], top_n=3)
    assert answer.meta is not None
    assert answer.meta.billed_units is not None
    assert answer.meta.billed_units.search_units == 1


def test_cohere_raises_its_own_errors(second: cohere.ClientV2) -> None:
    """The SDK finds status and `message` where it looks for them."""
    with pytest.raises(cohere.BadRequestError) as refusal:
        second.rerank(model="minilm-rerank", query="a", documents=["b"], top_n=0)
    assert "top_n is 0" in str(refusal.value.body)
    with pytest.raises(ApiError) as unknown:
        second.rerank(model="nope", query="a", documents=["b"])
    assert unknown.value.status_code == 404


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"top_n": 2, "return_documents": True}, id="Jina"),
        pytest.param({"top_k": 2, "return_documents": True}, id="LiteLLM and Voyage"),
        pytest.param(
            {"top_n": 2, "top_k": 2, "rank_fields": ["text"], "return_documents": True, "max_chunks_per_doc": 10}, id="all at once"
        ),
    ],
)
def test_the_shapes_of_others_are_read(path: str, more: dict[str, Any], rest: httpx.Client, ranking: Ranking) -> None:
    """One superset of fields on both paths; `document` is always an object with `text`."""
    body = {
        "model": "minilm-rerank",
        "query": ranking.query,
        "documents": [ranking.documents[0], *({"text": text} for text in ranking.documents[1:])],
    }
    answer = rest.post(path, json={**body, **more})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    ranking.check([(result["index"], result["relevance_score"]) for result in found["results"]], top_n=2)
    assert [result["document"] for result in found["results"]] == [
        {"text": ranking.documents[result["index"]]} for result in found["results"]
    ]
    assert found["id"] == answer.headers["x-request-id"]
    assert found["model"] == "minilm-rerank"
    assert found["usage"]["total_tokens"] == found["meta"]["tokens"]["input_tokens"] > 0


def test_equal_documents_stand_by_index(rest: httpx.Client) -> None:
    """Ties are broken by place."""
    body = {"model": "minilm-rerank", "query": "a", "documents": ["same", "same", "same"]}
    found = rest.post("/v2/rerank", json=body).json()["results"]
    assert [result["index"] for result in found] == [0, 1, 2]
    assert len({result["relevance_score"] for result in found}) == 1


def test_long_documents_are_cut_and_named(rest: httpx.Client) -> None:
    """These APIs cut; the answer says which documents."""
    body = {"model": "minilm-rerank", "query": "a", "documents": ["short", "word " * 600, "x" * 5000]}
    found = rest.post("/v2/rerank", json=body).json()
    assert len(found["results"]) == 3
    assert found["meta"]["warnings"] == ["Documents 1, 2 were longer than the limit and cut; what was cut did not count towards the score."]
