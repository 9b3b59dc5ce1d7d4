"""`POST /v2/embed` over a fake worker."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from quadrate.testing.worker import MAX_TOKENS, WIDTH, FakeWorker, fake_card, fake_vector
from quadrate.v1 import model_pb2, options_pb2
from quadrate.vectors import convert
from tests.service.gateway.conftest import refused, routing

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.service.gateway.conftest import Door

TEXTS = ["hello", "cat dog"]
BODY: dict[str, Any] = {"model": "fake", "input_type": "search_document", "texts": TEXTS}
KINDS = {"int8": options_pb2.INT8, "uint8": options_pb2.UINT8, "binary": options_pb2.BINARY, "ubinary": options_pb2.UBINARY}


async def test_all_embedding_types_come_from_one_request(door: Door, worker: FakeWorker) -> None:
    """Each type is a list of one vector for each text; base64 is little-endian float32."""
    body = {**BODY, "embedding_types": ["float", *KINDS, "base64", "float"], "priority": 3}
    answer = await door.post(door.cohere.EmbedV2, body)
    (request,) = worker.received
    wanted = np.stack([fake_vector(item.token_ids.ids) for item in request.inputs])
    found = answer["embeddings"]
    assert list(found) == ["float", *KINDS, "base64"]
    assert np.array_equal(np.array(found["float"], np.float32), wanted)
    assert np.array_equal([np.frombuffer(base64.b64decode(text), "<f4") for text in found["base64"]], wanted)
    for name, kind in KINDS.items():
        assert found[name] == convert(wanted, kind).tolist()
    assert answer["texts"] == TEXTS
    assert answer["response_type"] == "embeddings_by_type"
    assert answer["meta"] == {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 7}, "tokens": {"input_tokens": 7}}
    assert answer["usage"] == {"total_tokens": 7, "tokens_cut": 0}
    assert answer["provenance"]["revision"] == "sha256:000000000000"
    assert set(answer["timings"]) == {"tokenize_seconds", "queue_seconds", "inference_seconds", "total_seconds"}


@pytest.mark.parametrize("types", [None, [], ["float"]])
async def test_float_is_what_comes_unless_said(door: Door, types: Any) -> None:
    """Also for null and for an empty list."""
    assert list((await door.post(door.cohere.EmbedV2, {**BODY, "embedding_types": types}))["embeddings"]) == ["float"]


async def test_the_input_type_chooses_the_prompt(open_door: Callable[..., Any]) -> None:
    """The roles' prompts; a prompt named like the purpose where the model has one, otherwise its default."""
    prompts = {"query": "query: ", "document": "passage: ", "clustering": "cat "}
    card = fake_card("fake", prompts=prompts, default_prompt_name="document")
    async with FakeWorker(card, fake_card("fake-rerank", model_pb2.TASK_RERANK)) as worker, open_door(routing(worker)) as door:
        await door.until_serving()
        for word, prompt in (
            ("search_query", "query: "),
            ("search_document", "passage: "),
            ("clustering", "cat "),
            ("classification", "passage: "),
        ):
            assert (await door.post(door.cohere.EmbedV2, {**BODY, "input_type": word}))["provenance"]["prompt"] == prompt
            body = {"model": "fake", "input": "cat", "input_type": word}
            assert (await door.post(door.openai.CreateEmbedding, body))["provenance"]["prompt"] == prompt


async def test_inputs_may_be_lists_of_text_contents(door: Door, worker: FakeWorker) -> None:
    """Several contents of one input are read one a line."""
    contents = [[{"type": "text", "text": "hello"}], [{"type": "text", "text": "cat"}, {"type": "text", "text": "dog"}]]
    body = {**BODY, "texts": None, "inputs": [{"content": content} for content in contents]}
    answer = await door.post(door.cohere.EmbedV2, body)
    assert answer["texts"] == ["hello", "cat\ndog"]
    assert len(worker.received[0].inputs) == 2


async def test_long_texts_are_cut_at_the_end_unless_said(door: Door, worker: FakeWorker) -> None:
    """Cohere cuts the end by default, the start or nothing if asked; what was cut is told for each text."""
    body = {**BODY, "texts": ["hello " * 20 + "cat " * 15, "cat"]}
    for said, first, last in (({}, 4, 7), ({"truncate": "END"}, 4, 7), ({"truncate": "START"}, 4, 7)):
        answer = await door.post(door.cohere.EmbedV2, {**body, **said})
        ids = list(worker.received[-1].inputs[0].token_ids.ids)
        assert (len(ids), ids[0], ids[-1]) == (MAX_TOKENS - 2, first, last)
        assert ids.count(7) == (15 if said.get("truncate") == "START" else 10)
        assert answer["meta"]["tokens_cut"] == [5, 0]
        assert answer["meta"]["warnings"] == ["Text 0 was longer than the limit and cut; meta.tokens_cut says how much of each."]
        assert answer["usage"]["tokens_cut"] == 5
    failure = await refused(door.post(door.cohere.EmbedV2, {**body, "truncate": "NONE"}))
    assert (failure.reason, failure.param) == ("CONTEXT_LENGTH_EXCEEDED", "texts[0]")


async def test_answers_that_no_message_could_carry_are_refused(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """As what they are, not as a worker that is overloaded; so on the OpenAI route."""
    monkeypatch.setattr("gateway.doors.told.MAX_JSON_BYTES", 500)
    for call, body in ((door.cohere.EmbedV2, BODY), (door.openai.CreateEmbedding, {"model": "fake", "input": ["cat"] * 50})):
        failure = await refused(door.post(call, body))
        assert (failure.status, failure.reason) == ("INVALID_ARGUMENT", "ANSWER_TOO_LARGE")


async def test_max_tokens_limits_each_text(door: Door, worker: FakeWorker) -> None:
    """Special tokens count; a limit above the model's own changes nothing."""
    body = {**BODY, "texts": ["hello " * 9, "cat"]}
    answer = await door.post(door.cohere.EmbedV2, {**body, "max_tokens": 6})
    assert [len(item.token_ids.ids) for item in worker.received[-1].inputs] == [4, 1]
    assert answer["meta"]["tokens_cut"] == [5, 0]
    failure = await refused(door.post(door.cohere.EmbedV2, {**body, "max_tokens": 6, "truncate": "NONE"}))
    assert "texts[0] has 11 tokens" in failure.message
    assert "at most 6" in failure.message
    assert "tokens_cut" not in (await door.post(door.cohere.EmbedV2, {**body, "max_tokens": 100_000}))["meta"]


async def test_output_dimension_goes_to_models_trained_for_it(open_door: Callable[..., Any], worker: FakeWorker) -> None:
    """Errors call it as the caller does."""
    card = fake_card("fake", matryoshka_dimensions=[2, 4])
    async with FakeWorker(card, fake_card("fake-rerank", model_pb2.TASK_RERANK)) as trained, open_door(routing(trained)) as door:
        await door.until_serving()
        answer = await door.post(door.cohere.EmbedV2, {**BODY, "output_dimension": 4, "embedding_types": ["float", "ubinary"]})
        assert [len(vector) for vector in answer["embeddings"]["float"]] == [4, 4]
        assert (await refused(door.post(door.cohere.EmbedV2, {**BODY, "output_dimension": 3}))).param == "output_dimension"
    async with open_door(routing(worker)) as door:
        await door.until_serving()
        assert "output_dimension 4" in (await refused(door.post(door.cohere.EmbedV2, {**BODY, "output_dimension": 4}))).message


async def test_int8_asks_for_vectors_of_length_one(open_door: Callable[..., Any]) -> None:
    """A model whose vectors have any length gives those of length one, in all types of that request."""
    card = fake_card("fake")
    card.normalized = False
    async with FakeWorker(card, fake_card("fake-rerank", model_pb2.TASK_RERANK)) as worker, open_door(routing(worker)) as door:
        await door.until_serving()
        await door.post(door.cohere.EmbedV2, {**BODY, "embedding_types": ["int8", "float"]})
        assert worker.received[-1].normalize
        await door.post(door.cohere.EmbedV2, {**BODY, "embedding_types": ["binary"]})
        assert not worker.received[-1].HasField("normalize")


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"model": None}, "model", "missing_required_parameter"),
        ({"input_type": None}, "input_type", "missing_required_parameter"),
        ({"input_type": "image"}, "input_type", "invalid_value"),
        ({"texts": None}, "texts", "missing_required_parameter"),
        ({"texts": "cat"}, "texts", "invalid_type"),
        ({"texts": []}, "texts", "empty_input"),
        ({"texts": ["cat", ""]}, "texts[1]", "empty_input"),
        ({"texts": ["cat", 5]}, "texts[1]", "invalid_type"),
        ({"texts": ["cat", "a\0"]}, "texts[1]", "invalid_value"),
        ({"texts": ["cat"] * 2049}, "texts", "too_many_inputs"),
        ({"images": ["data:image/png;base64,aaaa"]}, "images", "invalid_value"),
        ({"inputs": [{"content": [{"type": "text", "text": "a"}]}]}, "inputs", "invalid_value"),
        ({"texts": None, "inputs": []}, "inputs", "empty_input"),
        ({"texts": None, "inputs": ["cat"]}, "inputs[0]", "invalid_type"),
        ({"texts": None, "inputs": [{"content": []}]}, "inputs[0]", "invalid_type"),
        ({"texts": None, "inputs": [{"content": [{"type": "image_url"}]}]}, "inputs[0].content[0]", "invalid_value"),
        ({"texts": None, "inputs": [{"content": [{"type": "text", "text": ""}]}]}, "inputs[0]", "empty_input"),
        ({"embedding_types": "float"}, "embedding_types", "invalid_type"),
        ({"embedding_types": ["float", "int4"]}, "embedding_types[1]", "invalid_value"),
        ({"embedding_types": [5]}, "embedding_types[0]", "invalid_type"),
        ({"truncate": "MIDDLE"}, "truncate", "invalid_value"),
        ({"max_tokens": 2}, "max_tokens", "invalid_value"),
        ({"max_tokens": -1}, "max_tokens", "invalid_value"),
        ({"max_tokens": "9"}, "max_tokens", "invalid_type"),
        ({"output_dimension": WIDTH + 1}, "output_dimension", "invalid_value"),
        ({"model": "fake-rerank"}, "model", "model_not_found"),
    ],
)
async def test_wrong_bodies_are_refused_by_name_and_the_next_one_works(
    door: Door, worker: FakeWorker, change: dict[str, Any], param: str, code: str
) -> None:
    """In Cohere's own field names, before anything is sent to a worker."""
    failure = await refused(door.post(door.cohere.EmbedV2, {**BODY, **change}))
    assert (failure.param, failure.body["code"]) == (param, code)
    assert worker.received == []
    await door.post(door.cohere.EmbedV2, BODY)
