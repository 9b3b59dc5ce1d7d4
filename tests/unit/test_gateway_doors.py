"""What the facades make of bodies, and of answers."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import orjson
import pytest

from gateway.doors.cohere import form_rerank, read_rerank
from gateway.doors.openai import form_embedding, read_embedding
from gateway.reading import name_cut
from quadrate.errors import EmptyInput, InvalidArgument, QuadrateError
from quadrate.v1 import embed_pb2, options_pb2, rerank_pb2


def embedding_body(**fields: Any) -> bytes:
    """Return a body for /v1/embeddings that is good but for `fields`; one that is ... is left out."""
    given = {"model": "minilm", "input": "hello", **fields}
    return orjson.dumps({name: value for name, value in given.items() if value is not ...})


def rerank_body(**fields: Any) -> bytes:
    """Return a body for /v1/rerank that is good but for `fields`; one that is ... is left out."""
    given = {"model": "m", "query": "q", "documents": ["a", "b"], **fields}
    return orjson.dumps({name: value for name, value in given.items() if value is not ...})


@pytest.mark.parametrize(
    ("value", "contents", "names"),
    [
        ("hello", ["hello"], ["input"]),
        (["a", "b"], ["a", "b"], ["input[0]", "input[1]"]),
        ([1, 2, 3], [[1, 2, 3]], ["input"]),
        ([[1, 2], [3]], [[1, 2], [3]], ["input[0]", "input[1]"]),
    ],
)
def test_input_has_four_forms(value: Any, contents: list[Any], names: list[str]) -> None:
    """A string, strings, token ids, lists of token ids; errors call them as the caller does."""
    work, encoding = read_embedding(embedding_body(input=value))
    assert list(work.contents) == contents
    assert [work.name(place) for place in range(len(contents))] == names
    assert encoding == "float"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": ...}, "model", "missing_required_parameter"),
        ({"model": None}, "model", "missing_required_parameter"),
        ({"model": 5}, "model", "invalid_type"),
        ({"input": ...}, "input", "missing_required_parameter"),
        ({"input": None}, "input", "missing_required_parameter"),
        ({"input": 5}, "input", "invalid_type"),
        ({"input": {"text": "a"}}, "input", "invalid_type"),
        ({"input": []}, "input", "empty_input"),
        ({"input": ["a", 1]}, "input[1]", "invalid_type"),
        ({"input": [1, "a"]}, "input[1]", "invalid_type"),
        ({"input": [1, True]}, "input[1]", "invalid_type"),
        ({"input": [1, 2.5]}, "input[1]", "invalid_type"),
        ({"input": ["a", None]}, "input[1]", "invalid_type"),
        ({"input": ["a", ["b"]]}, "input[1]", "invalid_type"),
        ({"input": [[1], [2, "x"]]}, "input[1][1]", "invalid_type"),
        ({"input": [[1], [2, 3.0]]}, "input[1][1]", "invalid_type"),
        ({"input": [[1], [[2]]]}, "input[1][0]", "invalid_type"),
        ({"input": [[1], "a"]}, "input[1]", "invalid_type"),
        ({"input": [{"text": "a"}]}, "input[0]", "invalid_type"),
        ({"encoding_format": "hex"}, "encoding_format", "invalid_value"),
        ({"encoding_format": 1}, "encoding_format", "invalid_type"),
        ({"dimensions": "8"}, "dimensions", "invalid_type"),
        ({"dimensions": 8.5}, "dimensions", "invalid_type"),
        ({"dimensions": 2**64}, "dimensions", "invalid_type"),
        ({"dimensions": 2**63}, "dimensions", "invalid_type"),
        ({"user": 7}, "user", "invalid_type"),
        ({"input_type": "image"}, "input_type", "invalid_value"),
        ({"truncate": "middle"}, "truncate", "invalid_value"),
        ({"truncate": True}, "truncate", "invalid_type"),
        ({"prompt_name": "query", "input_type": "query"}, "prompt_name", "invalid_value"),
    ],
)
def test_wrong_embedding_bodies_are_refused_by_name(fields: dict[str, Any], param: str, code: str) -> None:
    """The field at fault is named in OpenAI's terms."""
    # orjson writes no integer beyond 64 bits, as a caller might.
    data = embedding_body(**fields) if fields.get("dimensions") != 2**64 else b'{"model":"m","input":"a","dimensions":18446744073709551616}'
    with pytest.raises(InvalidArgument) as caught:
        read_embedding(data)
    assert (caught.value.param, caught.value.code) == (param, code)


@pytest.mark.parametrize(
    ("word", "role"),
    [
        ("query", options_pb2.QUERY),
        ("search_query", options_pb2.QUERY),
        ("SEARCH_DOCUMENT", options_pb2.DOCUMENT),
        ("passage", options_pb2.DOCUMENT),
        ("document", options_pb2.DOCUMENT),
    ],
)
def test_input_type_speaks_several_apis(word: str, role: int) -> None:
    """Cohere's, Jina's and NVIDIA's words mean our roles."""
    work, _ = read_embedding(embedding_body(input_type=word))
    assert work.reading.role == role


def test_unknown_fields_and_user_are_taken() -> None:
    """Clients send fields of other servers; what we do not know changes nothing."""
    work, encoding = read_embedding(embedding_body(user="me", whatever={"x": [1]}, encoding_format="base64", truncate="left", dimensions=4))
    assert (encoding, work.reading.truncation, work.dimensions) == ("base64", options_pb2.LEFT, 4)


def answer(*vectors: Any) -> embed_pb2.EmbedResponse:
    """Return an answer with these vectors."""
    found = embed_pb2.EmbedResponse(model="as sent", usage=options_pb2.Usage(tokens=9))
    for place, vector in enumerate(vectors):
        found.embeddings.add(index=place, values=vector)
    return found


def test_floats_are_printed_as_short_as_float32_allows() -> None:
    """0.1 as float32 prints as 0.1, not as the double it is near to; every value comes back bit for bit."""
    values = np.array([0.1, -1 / 3, 1e-30, 0.0], dtype=np.float32)
    data = form_embedding(answer(values.tolist()), "float")
    assert data.startswith(b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.1,')
    assert np.array_equal(np.float32(orjson.loads(data)["data"][0]["embedding"]), values)


def test_base64_is_little_endian_float32() -> None:
    """What the OpenAI SDK decodes."""
    values = np.array([0.5, -2.0, 3.25], dtype=np.float32)
    found = orjson.loads(form_embedding(answer(values.tolist(), (2 * values).tolist()), "base64"))
    assert [np.frombuffer(base64.b64decode(one["embedding"]), "<f4").tolist() for one in found["data"]] == [
        values.tolist(),
        (2 * values).tolist(),
    ]
    assert found["usage"] == {"prompt_tokens": 9, "total_tokens": 9, "tokens_cut": 0}


def test_documents_are_strings_or_objects() -> None:
    """Both may stand in one list; other keys of an object have no effect."""
    work = read_rerank(rerank_body(documents=["a", {"text": "b", "id": 7}]))
    assert list(work.documents) == ["a", "b"]
    assert [work.name(0), work.name(1)] == ["documents[0]", "documents[1].text"]
    assert work.cut_documents


@pytest.mark.parametrize(
    ("fields", "top_n"), [({}, None), ({"top_n": 3}, 3), ({"top_k": 4}, 4), ({"top_n": 2, "top_k": 2}, 2), ({"top_n": None}, None)]
)
def test_top_n_has_two_names(fields: dict[str, Any], top_n: int | None) -> None:
    """Either name, or both if they agree."""
    assert read_rerank(rerank_body(**fields)).top_n == top_n


def test_fields_of_the_other_apis_are_taken() -> None:
    """What has no meaning here changes nothing."""
    work = read_rerank(rerank_body(rank_fields=["text"], max_chunks_per_doc=10, priority=1, return_documents=True, max_tokens_per_doc=7))
    assert work.return_documents
    assert work.max_tokens_per_doc == 7


@pytest.mark.parametrize(
    ("fields", "param", "error"),
    [
        ({"model": ...}, "model", InvalidArgument),
        ({"query": ...}, "query", InvalidArgument),
        ({"query": ["q"]}, "query", InvalidArgument),
        ({"documents": ...}, "documents", InvalidArgument),
        ({"documents": "a"}, "documents", InvalidArgument),
        ({"documents": []}, "documents", EmptyInput),
        ({"documents": ["a", 5]}, "documents[1]", InvalidArgument),
        ({"documents": ["a", None]}, "documents[1]", InvalidArgument),
        ({"documents": [{"title": "x"}]}, "documents[0].text", InvalidArgument),
        ({"documents": [{"text": 5}]}, "documents[0].text", InvalidArgument),
        ({"top_n": "3"}, "top_n", InvalidArgument),
        ({"top_n": 2, "top_k": 3}, "top_k", InvalidArgument),
        ({"return_documents": "yes"}, "return_documents", InvalidArgument),
        ({"max_tokens_per_doc": 1.5}, "max_tokens_per_doc", InvalidArgument),
        ({"rank_fields": ["title", "text"]}, "rank_fields", InvalidArgument),
    ],
)
def test_wrong_rerank_bodies_are_refused_by_name(fields: dict[str, Any], param: str, error: type[QuadrateError]) -> None:
    """The field at fault is named."""
    with pytest.raises(error) as caught:
        read_rerank(rerank_body(**fields))
    assert caught.value.param == param


def test_rerank_answers_hold_what_every_api_reads() -> None:
    """Cohere's meta, Jina's usage, LiteLLM's document, and where it came from; warnings only if there are any."""
    found = rerank_pb2.RerankResponse(model="m", usage=options_pb2.Usage(tokens=12, tokens_cut=3))
    usage = options_pb2.Usage(tokens=7, tokens_cut=3)
    found.results.add(index=1, relevance_score=0.1, usage=usage, document=rerank_pb2.RerankedDocument(text=""))
    found.results.add(index=0, relevance_score=-11.5)
    found.provenance.MergeFrom(options_pb2.Provenance(revision="r", prompt="p", precision=options_pb2.EXACT, pooling="cross_encoder"))
    found.timings.inference_seconds = 0.25
    data = form_rerank(found, request_id="an-id", version="2", documents=101)
    assert b'"relevance_score":0.1,' in data  # as short as float32 allows
    answer = orjson.loads(data)
    assert answer["results"] == [
        {"index": 1, "relevance_score": 0.1, "usage": {"tokens": 7, "tokens_cut": 3}, "document": {"text": ""}},
        {"index": 0, "relevance_score": -11.5},
    ]
    assert answer["meta"] == {"api_version": {"version": "2"}, "billed_units": {"search_units": 2}, "tokens": {"input_tokens": 12}}
    assert (answer["id"], answer["model"], answer["usage"]) == ("an-id", "m", {"total_tokens": 12, "tokens_cut": 3})
    assert answer["provenance"]["pooling"] == "cross_encoder"
    assert answer["timings"]["inference_seconds"] == 0.25
    found.warnings.append("cut")
    assert orjson.loads(form_rerank(found, request_id="x", version="1", documents=1))["meta"]["warnings"] == ["cut"]


@pytest.mark.parametrize(
    ("places", "subject"),
    [([3], "Text 3 was"), ([0, 3], "Texts 0, 3 were"), (list(range(22)), f"Texts {', '.join(map(str, range(20)))} and 2 more were")],
)
def test_warnings_name_twenty_places_at_most(places: list[int], subject: str) -> None:
    """And say how many more there are."""
    assert name_cut("Text", places) == subject
