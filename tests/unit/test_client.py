"""The client's pure parts: addresses, back-off, splitting of lists, errors from statuses."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadrate import client
from quadrate.client import AsyncClient, Client, Retries, failures, requests
from quadrate.client.answers import Embedded, Embeddings, Model, Timings
from quadrate.client.blocking import Settings
from quadrate.client.progress import progress_bar
from quadrate.client.target import Target
from quadrate.errors import (
    ERRORS,
    DeadlineExceeded,
    EmptyInput,
    Internal,
    InvalidArgument,
    ModelNotFound,
    Overloaded,
    QuadrateError,
    QuotaExceeded,
    Unavailable,
    Unimplemented,
)
from quadrate.server import status
from quadrate.v1 import embed_pb2, model_pb2, options_pb2
from quadrate.vectors import DTYPES


@pytest.mark.parametrize(
    ("text", "address", "tls"),
    [
        ("localhost", "localhost:8085", False),
        ("localhost:8000", "localhost:8000", False),
        ("[::1]:8000", "[::1]:8000", False),
        ("http://mesh.example", "mesh.example:80", False),
        ("http://127.0.0.1:8085/", "127.0.0.1:8085", False),
        ("https://mesh.example", "mesh.example:443", True),
        ("grpcs://mesh.example:9443", "mesh.example:9443", True),
    ],
)
def test_addresses_are_read_as_people_write_them(text: str, address: str, *, tls: bool) -> None:
    """The scheme decides about TLS and the port where none is given."""
    target = Target.parse(text)
    assert (target.address, target.tls) == (address, tls)


@pytest.mark.parametrize("text", ["", "ftp://host", "host:port", "host:99999", "http://host/v1", "http://host?x=1", "http://"])
def test_an_address_that_cannot_be_called_is_refused(text: str) -> None:
    """The message says how to write one."""
    with pytest.raises(InvalidArgument, match="write host:port"):
        Target.parse(text)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    """Messages hold no secret."""
    with pytest.raises(InvalidArgument) as caught:
        Target.parse("http://user:secret@host:8085")
    assert "secret" not in str(caught.value)


def test_waits_double_up_to_the_longest() -> None:
    """The wait grows with each attempt and is then capped."""
    retries = Retries(attempts=6, first_wait_seconds=0.1, longest_wait_seconds=0.5)
    waits = [retries.wait_seconds(Unavailable("away"), attempt, draw=1.0) for attempt in range(1, 7)]
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.5, 0.5]) if waits.pop() is None else pytest.fail("six attempts have five waits")


@given(draw=st.floats(0, 1), attempt=st.integers(1, 4))
def test_jitter_spreads_over_half_of_the_wait(draw: float, attempt: int) -> None:
    """Never less than half of the wait, never more than all of it."""
    full = 0.1 * 2 ** (attempt - 1)
    wait = Retries().wait_seconds(Unavailable("away"), attempt, draw=draw)
    assert wait is not None
    assert full / 2 <= wait <= full * (1 + 1e-9)


@given(draw=st.floats(0, 1))
def test_a_server_that_names_a_wait_is_heard(draw: float) -> None:
    """The wait is never shorter than the server said, even above our longest."""
    wait = Retries(longest_wait_seconds=1.0).wait_seconds(Overloaded("full", retry_after_seconds=7.5), 1, draw=draw)
    assert wait is not None
    assert 7.5 <= wait <= 7.6


@pytest.mark.parametrize(
    "error", [InvalidArgument("no"), ModelNotFound("no"), Internal("no"), DeadlineExceeded("late"), Unimplemented("no")]
)
def test_what_does_not_pass_is_not_tried_again(error: QuadrateError) -> None:
    """Only what may succeed a moment later is worth another attempt; a deadline that is over is not."""
    assert Retries().wait_seconds(error, 1, draw=0.5) is None


def test_retries_need_one_attempt() -> None:
    """A call that is never sent makes no sense."""
    with pytest.raises(InvalidArgument, match="attempts is 0"):
        Retries(attempts=0)


@given(sizes=st.lists(st.integers(0, 40), max_size=60), most=st.integers(1, 9))
def test_parts_cover_a_list_in_order(sizes: list[int], most: int) -> None:
    """Joined, the parts are the list; none is larger than allowed, and each knows where it begins."""
    texts = ["x" * size for size in sizes]
    parts = list(requests.parts(texts, most))
    assert [text for _, part in parts for text in part] == texts
    assert all(len(part) <= most for _, part in parts)
    assert [start for start, _ in parts] == [sum(len(part) for _, part in parts[:place]) for place in range(len(parts))]


def test_parts_are_bounded_by_characters() -> None:
    """Long texts travel in fewer to a request; one that is too long for any bound travels alone."""
    half, huge = "x" * (requests.MAX_CHARACTERS // 2), "y" * (requests.MAX_CHARACTERS + 1)
    assert [len(part) for _, part in requests.parts([half, half, half, huge, "z"], 64)] == [2, 1, 1, 1]


def test_an_empty_list_is_one_empty_request() -> None:
    """The server says what it thinks of it, as it does for everybody."""
    assert list(requests.parts([], 64)) == [(0, [])]


def test_places_are_told_in_terms_of_the_whole_list() -> None:
    """A failure in the second request names the caller's place, in message and param."""
    error = requests.moved(EmptyInput("inputs[2].text is empty.", param="inputs[2].text"), 64)
    assert (str(error), error.message, error.param) == ("inputs[66].text is empty.", "inputs[66].text is empty.", "inputs[66].text")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("\ud800", "half a surrogate pair"), (3, "a text or a list of token ids"), ([2**40], "32-bit"), (["a"], "list of token ids")],
)
def test_what_is_no_text_is_refused_with_its_place(text: Any, sentence: str) -> None:
    """A text that cannot travel is refused before anything is sent."""
    with pytest.raises(InvalidArgument, match=sentence) as caught:
        requests.inputs(["fine", text])
    assert caught.value.param == "inputs[1]"


def test_token_ids_may_be_numpy() -> None:
    """Ids come from tokenizers as arrays as often as as lists."""
    assert list(requests.inputs([np.array([5, 6], dtype=np.int64)])[0].token_ids.ids) == [5, 6]  # type: ignore[list-item]


@pytest.mark.parametrize("option", [{"role": "passage"}, {"truncation": "END"}, {"value_type": "int4"}])
def test_unknown_words_are_refused_with_those_that_are_known(option: dict[str, Any]) -> None:
    """A typing error never becomes a silent default."""
    with pytest.raises(InvalidArgument, match="allowed: '"):
        requests.EmbedOptions("minilm", **option)


def _failure(code: grpc.StatusCode, message: str = "", **trailers: Any) -> grpc.aio.AioRpcError:
    metadata = grpc.aio.Metadata(*((key.replace("_", "-"), value) for key, value in trailers.items()))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, message, None)


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_comes_back_as_the_class_that_was_raised(error: type[QuadrateError]) -> None:
    """Server and client agree on class, message, param, wait and request id."""
    raised = error("A sentence.", param="inputs[0]", retry_after_seconds=1.25)
    details = status.details(raised, "quadrate.v1.EmbedService/Embed")
    back = failures.from_rpc(_failure(error.status, "A sentence.", grpc_status_details_bin=details, x_request_id="abc"))
    assert type(back) is error
    assert (back.message, back.param, back.retry_after_seconds, back.code) == ("A sentence.", "inputs[0]", 1.25, error.code)
    assert back.__notes__ == ["request id: abc"]


def test_a_reason_of_a_newer_server_keeps_its_name() -> None:
    """An unknown reason becomes its status's class under its own code."""
    raised = InvalidArgument("A sentence.", code="brand_new")
    back = failures.from_rpc(_failure(raised.status, grpc_status_details_bin=status.details(raised, "m")))
    assert (type(back), back.code, back.reason) == (InvalidArgument, "brand_new", "BRAND_NEW")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (grpc.StatusCode.UNKNOWN, Internal),
        (grpc.StatusCode.UNIMPLEMENTED, Unimplemented),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, InvalidArgument),
    ],
)
def test_statuses_without_details_become_the_nearest_class(code: grpc.StatusCode, kind: type[QuadrateError]) -> None:
    """What a proxy or grpc itself answers has no details; a message over grpc's size limit is no overload."""
    assert type(failures.from_rpc(_failure(code, "said by a proxy"))) is kind


def test_a_stream_lost_behind_a_proxy_may_be_tried_again() -> None:
    """Envoy resets a stream whose gateway was killed; grpc calls that INTERNAL, and it passes."""
    error = failures.from_rpc(_failure(grpc.StatusCode.INTERNAL, "Stream removed (RST_STREAM (Received RST_STREAM with error code 2))"))
    assert type(error) is Unavailable


def test_errors_in_a_stream_come_back_as_classes_too() -> None:
    """The error of one item is as good as that of a call."""
    item = options_pb2.Error(code=8, message="Later.", reason="RATE_LIMIT_EXCEEDED", param="", retryable=True, retry_after_seconds=2.0)
    error = failures.from_item(item)
    assert (type(error), error.retry_after_seconds, error.param) == (QuotaExceeded, 2.0, None)


def _answer(revision: str, seconds: float) -> embed_pb2.EmbedResponse:
    return embed_pb2.EmbedResponse(
        model="minilm",
        embeddings=[embed_pb2.Embedding(index=0, values=[seconds, 1.0], usage=options_pb2.Usage(tokens=3, tokens_cut=1))],
        usage=options_pb2.Usage(tokens=3, tokens_cut=1),
        provenance=options_pb2.Provenance(revision=revision, precision=options_pb2.EXACT),
        timings=options_pb2.Timings(queue_seconds=seconds, total_seconds=1 - seconds),
    )


def test_answers_to_parts_are_joined() -> None:
    """Rows in order, tokens summed, times the longest of each."""
    joined = Embeddings.of([_answer("r1", 0.25), _answer("r1", 0.5)])
    assert joined.vectors.dtype == np.float32
    assert joined.vectors.tolist() == [[0.25, 1.0], [0.5, 1.0]]
    assert (joined.usage.tokens, joined.usage.tokens_cut, len(joined.usages)) == (6, 2, 2)
    assert joined.timings == Timings(0.0, 0.5, 0.0, 0.75)
    assert joined.provenance.precision == "exact"
    assert np.asarray(joined).shape == (2, 2)


def test_parts_that_were_made_by_different_cards_are_not_joined() -> None:
    """The revision may be the same while a model is loaded again by an edited card."""
    first, second = _answer("r1", 0.25), _answer("r1", 0.5)
    second.provenance.fingerprint = "other"
    with pytest.raises(Unavailable, match="cannot be compared"):
        Embeddings.of([first, second])


def test_every_form_and_value_type_becomes_numpy() -> None:
    """Packed values in their own type, a sparse vector and a matrix for each text; what was not asked for is empty."""
    packed = options_pb2.INT8
    embedding = embed_pb2.Embedding(
        index=0,
        packed_values=bytes([1, 255, 3]),
        sparse=embed_pb2.SparseVector(token_ids=[3, 9], weights=[0.5, 0.25]),
        multi_vector=embed_pb2.MultiVector(rows=2, width=3, packed_values=bytes(range(6))),
    )
    found = Embeddings.of([embed_pb2.EmbedResponse(embeddings=[embedding] * 2)], DTYPES[packed])
    assert (found.vectors.dtype, found.vectors.tolist()) == (np.int8, [[1, -1, 3]] * 2)
    assert [(one.token_ids.tolist(), one.weights.tolist()) for one in found.sparse] == [([3, 9], [0.5, 0.25])] * 2
    assert [matrix.tolist() for matrix in found.multi_vectors] == [[[0, 1, 2], [3, 4, 5]]] * 2
    bare = embed_pb2.Embedding(sparse=embed_pb2.SparseVector(), multi_vector=embed_pb2.MultiVector(rows=1, width=2, values=[0.5, 1]))
    found = Embeddings.of([embed_pb2.EmbedResponse(embeddings=[bare])])
    assert found.vectors.shape == (1, 0)
    assert len(found.sparse[0]) == 0
    assert (found.multi_vectors[0].dtype, found.multi_vectors[0].tolist()) == (np.float32, [[0.5, 1.0]])
    item = Embedded.of("name", bare, found.provenance, DTYPES[options_pb2.FLOAT32])
    assert item.vector is None
    assert item.multi_vector is not None
    with pytest.raises(InvalidArgument, match="outputs did not ask"):
        item.value()


def test_words_become_the_contracts_numbers() -> None:
    """Outputs one by one or as a list, the value type, the instruction."""
    options = requests.EmbedOptions("m", outputs="sparse", value_type="ubinary", instruction="find")
    request = options.request([])
    assert list(request.outputs) == [options_pb2.SPARSE]
    assert (request.value_type, request.instruction) == (options_pb2.UBINARY, "find")
    both = requests.EmbedOptions("m", outputs=["dense", "multi_vector"]).request([])
    assert list(both.outputs) == [options_pb2.DENSE, options_pb2.MULTI_VECTOR]
    assert not both.value_type


def test_vectors_of_two_revisions_are_never_mixed() -> None:
    """A model that is exchanged in the middle of a list makes the call fail, retryably."""
    with pytest.raises(Unavailable, match="exchanged"):
        Embeddings.of([_answer("r1", 0.1), _answer("r2", 0.1)])


@pytest.mark.parametrize("total", [3, None])
def test_the_progress_bar_counts_on_a_terminal(
    total: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It draws on standard error, from the first moment on, whether the end is known or not."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_bar(shown=True, total=total, title="minilm") as advance:
        for _ in range(3):
            advance()
    drawn = capsys.readouterr()
    assert drawn.out == ""
    assert "minilm" in drawn.err
    assert f"3/{total or '?'}" in drawn.err


@pytest.mark.parametrize("shown", [True, False])
def test_the_progress_bar_is_silent_elsewhere(*, shown: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """A log file gets no bar."""
    with progress_bar(shown=shown, total=1, title="minilm") as advance:
        advance()
    assert capsys.readouterr().err.strip() == ""


def test_a_card_keeps_every_field() -> None:
    """Model has the fields of the contract's Model; what is unset is None, what is an enum is a word."""
    card = Model.of(model_pb2.Model(name="minilm", task=model_pb2.TASK_EMBED, state=model_pb2.MODEL_STATE_READY, dimensions=384))
    assert (card.name, card.task, card.state, card.dimensions, card.max_tokens, card.precision) == (
        "minilm",
        "embed",
        "ready",
        384,
        None,
        "",
    )
    assert {field.name for field in model_pb2.Model.DESCRIPTOR.fields} == set(Model.__slots__)


def test_both_clients_have_the_same_methods_and_settings() -> None:
    """The blocking client is the asynchronous one, method by method and setting by setting."""

    def public(kind: type) -> set[str]:
        return {name for name, _ in inspect.getmembers(kind, callable) if not name.startswith("_")}

    assert public(Client) == public(AsyncClient)
    parameters = inspect.signature(AsyncClient.__init__).parameters
    assert [name for name in parameters if name not in ("self", "target")] == list(Settings.__annotations__)


def test_every_public_name_exists_and_is_documented() -> None:
    """What is exported can be read about."""
    assert all(inspect.getdoc(getattr(client, name)) for name in client.__all__)
    assert get_type_hints(Retries) != {}
