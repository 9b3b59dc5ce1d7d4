"""What is read of answers over HTTP, whatever they hold, and how texts are counted that no tokenizer is known for."""

from __future__ import annotations

import unicodedata

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.upstreams.http.dialect import candidates
from gateway.upstreams.http.exchange import Reply, _retry_after, failure
from gateway.upstreams.http.shapes import ShapeError, read_scores, read_vectors
from gateway.upstreams.http.tokenizers import UPPER_BOUND
from quadrate.cuts import cut, cut_text
from quadrate.errors import QuadrateError
from quadrate.testing.tokenizers import letter_tokenizer
from quadrate.tokenizer import TextTokenizer
from quadrate.v1.options_pb2 import LEFT, RIGHT

NAMES = ["data", "embedding", "index", "results", "score", "usage"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner),
    max_leaves=12,
)
WORDS = ["cat", "the", "mat", "xyz", "ab"]
READER = TextTokenizer.from_json(letter_tokenizer(), max_tokens=64)


@given(answer=JSON, count=st.integers(1, 3))
def test_no_answer_is_read_otherwise_than_whole(answer: object, count: int) -> None:
    """Whatever JSON comes, it gives so many finite vectors and scores, or ShapeError; never anything else."""
    data = orjson.dumps(answer, default=str)
    try:
        rows = read_vectors(data, count).rows
        assert rows.shape[0] == count
        assert np.isfinite(rows).all()
    except ShapeError:
        pass
    try:
        ranked = read_scores(data, count, None).ranked
        assert sorted(index for index, _ in ranked) == list(range(count))
    except ShapeError:
        pass


@given(order=st.permutations(range(5)))
def test_vectors_stand_by_their_index(order: list[int]) -> None:
    """In whatever order they came."""
    data = orjson.dumps({"data": [{"index": index, "embedding": [float(index), 1.0]} for index in order]})
    assert read_vectors(data, 5).rows[:, 0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("value", ["1.5", True, None, [1.0], {}, "NaN"])
def test_what_only_looks_like_a_number_is_none(value: object) -> None:
    """Words, true and null are not read as numbers, alone or among them."""
    for row in ([value], [1.0, value]):
        with pytest.raises(ShapeError):
            read_vectors(orjson.dumps({"data": [{"embedding": row}]}), 1)
    if value != [1.0]:
        with pytest.raises(ShapeError):
            read_scores(orjson.dumps({"results": [{"index": 0, "relevance_score": value}]}), 1, None)


def test_scores_stand_best_first_and_ties_by_index() -> None:
    """Under each of the names that servers have for them; more than were asked for are left out."""
    items = [{"index": 2, "relevance_score": 0.5}, {"index": 0, "relevance_score": 0.5}, {"index": 1, "relevance_score": 0.9}]
    for answer in ({"results": items}, {"data": items}, [{"index": item["index"], "score": item["relevance_score"]} for item in items]):
        assert [index for index, _ in read_scores(orjson.dumps(answer), 3, None).ranked] == [1, 0, 2]
    assert [index for index, _ in read_scores(orjson.dumps({"results": items}), 3, 1).ranked] == [1]


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"usage": {"total_tokens": 7}}, 7),
        ({"usage": {"prompt_tokens": 7}}, 7),
        ({"meta": {"tokens": {"input_tokens": 7}}}, 7),
        ({"usage": {"total_tokens": 0}}, None),
        ({"usage": {"total_tokens": -1}}, None),
        ({"usage": {"total_tokens": "7"}}, None),
        ({"usage": None, "meta": []}, None),
        ({}, None),
    ],
)
def test_a_count_is_taken_only_where_it_is_one(usage: dict[str, object], expected: int | None) -> None:
    """Infinity and OpenAI, Jina, Cohere; and servers that tell nothing of use."""
    answer = {"results": [{"index": 0, "relevance_score": 1.0}], **usage}
    assert read_scores(orjson.dumps(answer), 1, None).tokens == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://a:1", ["/v1/embeddings", "/embeddings"]),
        ("http://a:1/", ["/v1/embeddings", "/embeddings"]),
        ("https://a/v1", ["/v1/embeddings"]),
        ("https://a/openai/embeddings", ["/openai/embeddings"]),
    ],
)
def test_paths_are_those_of_the_servers_that_there_are(url: str, expected: list[str]) -> None:
    """OpenAI's at /v1, infinity's at the root, and whatever is written out."""
    assert [dialect.path for dialect in candidates(url, "embeddings")] == expected


@given(text=st.text(max_size=40))
def test_the_upper_bound_is_one(text: str) -> None:
    """It is never less than the bytes, nor than those of the text in any normal form, which tokenizers that read bytes count."""
    (ids,) = UPPER_BOUND.encode([text])
    count = UPPER_BOUND.count(ids)
    assert count >= len(READER.encode([text])[0]) + READER.special_count
    assert all(count >= len(unicodedata.normalize(form, text).encode()) for form in ("NFC", "NFD", "NFKC", "NFKD"))


@given(words=st.lists(st.sampled_from(WORDS), min_size=3, max_size=12), room=st.integers(1, 8), head=st.integers(0, 3))
def test_a_text_is_cut_where_its_ids_are(words: list[str], room: int, head: int) -> None:
    """What is left of it reads as what is left of them."""
    text = " ".join(words)
    (ids,) = READER.encode([text])
    spans = READER.spans(text)
    if len(ids) <= room:
        return
    for truncation in (LEFT, RIGHT):
        kept = cut(ids, room, truncation, head=head)
        left = cut_text(text, spans, room, truncation, head=head)
        if truncation == RIGHT:
            assert READER.encode([left])[0] == kept
        assert len(left) <= len(text)
        assert left.endswith(text[-1]) or truncation == RIGHT


@pytest.mark.parametrize("status", range(400, 600, 7))
def test_every_status_has_a_meaning_of_ours(status: int) -> None:
    """And its sentence holds nothing of the body."""
    found = failure(Reply(status, b'{"error": "secret"}'))
    assert isinstance(found, QuadrateError)
    assert "secret" not in found.message


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "3"}, 0.25),
        ({"retry-after": "99999999"}, 3600.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "nan"}, None),
        ({}, None),
    ],
)
def test_the_time_to_wait_is_read_in_each_of_its_forms(headers: dict[str, str], expected: float | None) -> None:
    """Seconds, milliseconds, a date; and nothing of what is none of them."""
    assert _retry_after(headers) == expected
