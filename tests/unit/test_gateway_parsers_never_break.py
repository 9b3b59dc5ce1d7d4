"""Whatever comes as a body, the doors' parsers return work or raise an error that can be told."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.doors.cohere import read_rerank
from gateway.doors.cohere_embed import read_embed
from gateway.doors.openai import read_embedding
from gateway.work import check_contents
from quadrate.errors import QuadrateError

scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=8
)
EMBEDDING = ("model", "input", "encoding_format", "dimensions", "user", "input_type", "prompt_name", "truncate", "instruction")
COHERE = ("texts", "inputs", "images", "input_type", "embedding_types", "output_dimension", "max_tokens", "truncate", "content", "type")
RERANK = ("model", "query", "documents", "top_n", "top_k", "return_documents", "max_tokens_per_doc", "rank_fields", "instruction")


def bodies(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    """Give objects with some of the names, with values of any type."""
    return st.dictionaries(st.sampled_from(names) | st.text(max_size=3), values, max_size=8)


def refusal(read: Any, data: bytes) -> QuadrateError | None:
    """Read a body; return how it was refused, or None."""
    try:
        read(data)
    except QuadrateError as error:
        return error
    return None


def tells(read: Any, data: bytes) -> None:
    """Read a body; what is wrong must come as an error with a status and a sentence."""
    error = refusal(read, data)
    if error is not None:
        assert error.http_status == 400
        assert error.message.endswith(".")
        assert len(error.message) < 500


@given(bodies(*EMBEDDING))
@example({"model": "m", "input": [[], [1]]})
@example({"model": "m", "input": [None]})
@example({"model": "m", "input": [{}, []]})
def test_embedding_bodies(body: dict[str, Any]) -> None:
    """POST /v1/embeddings."""

    def read(data: bytes) -> None:
        work, _ = read_embedding(data)
        check_contents(work.contents, names="input", name=work.name, limit=2048)

    tells(read, orjson.dumps(body))


@given(bodies(*RERANK))
def test_rerank_bodies(body: dict[str, Any]) -> None:
    """POST /v1/rerank and /v2/rerank."""

    def read(data: bytes) -> None:
        work = read_rerank(data)
        check_contents(work.documents, names="documents", name=work.name, limit=50)

    tells(read, orjson.dumps(body))


@given(bodies(*COHERE))
@example({"model": "m", "input_type": "clustering", "inputs": [{"content": [{"type": "text", "text": None}]}]})
@example({"model": "m", "input_type": "clustering", "inputs": [{"content": [None]}, 5]})
@example({"model": "m", "input_type": "clustering", "texts": ["a"], "embedding_types": [["float"]]})
def test_coheres_embedding_bodies(body: dict[str, Any]) -> None:
    """POST /v2/embed."""

    def read(data: bytes) -> None:
        work = read_embed(data).work
        check_contents(work.contents, names=work.names, name=work.name, limit=2048)

    tells(read, orjson.dumps({"model": "m", "input_type": "search_query", **body}))


@given(st.binary(max_size=64))
def test_any_bytes(data: bytes) -> None:
    """What is no JSON at all."""
    tells(read_embedding, data)
    tells(read_rerank, data)
    tells(read_embed, data)


@given(bodies(*EMBEDDING), st.integers(0, 200), st.binary(min_size=1, max_size=3))
def test_good_bodies_with_a_few_bytes_changed(body: dict[str, Any], place: int, change: bytes) -> None:
    """What a broken client or proxy makes of a body."""
    data = orjson.dumps({"model": "m", "input": "cat", **body})
    tells(read_embedding, data[:place] + change + data[place + len(change) :])
