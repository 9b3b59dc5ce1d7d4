"""POST /v1/embeddings and GET /v1/models as the gateway serves them."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pytest

from quadrate.errors import ConfigError
from quadrate.openai.v1 import openai_pb2
from quadrate.testing.worker import WIDTH, fake_vector
from tests.service.gateway.conftest import refused, routing

if TYPE_CHECKING:
    from collections.abc import Callable

    from quadrate.testing.worker import FakeWorker
    from tests.service.gateway.conftest import Door


async def test_one_text_gets_openais_shape(door: Door, worker: FakeWorker) -> None:
    """One text gets one embedding in OpenAI's shape, under the model's name as sent, with the true count of tokens and what made it."""
    answer = await door.post(door.openai.CreateEmbedding, {"model": "fake/fake", "input": "hello world", "user": "u"})
    ids = list(worker.received[0].inputs[0].token_ids.ids)
    assert answer == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": answer["data"][0]["embedding"]}],
        "model": "fake/fake",
        "usage": {"prompt_tokens": 4, "total_tokens": 4, "tokens_cut": 0},
        "provenance": {
            "revision": "sha256:000000000000",
            "prompt": "",
            "precision": "EXACT",
            "provider": "FakeExecutionProvider",
            "pooling": "mean",
            "fingerprint": "0000000000000000",
            "normalized": True,
        },
        "timings": answer["timings"],
    }
    assert set(answer["timings"]) == {"tokenize_seconds", "queue_seconds", "inference_seconds", "total_seconds"}
    assert np.array_equal(np.float32(answer["data"][0]["embedding"]), fake_vector(ids))


async def test_every_form_of_input_gives_the_same_vectors(door: Door, worker: FakeWorker) -> None:
    """Text, texts, ids and lists of ids of the same text are read alike."""
    await door.post(door.openai.CreateEmbedding, {"model": "fake", "input": "hello world"})
    ids = list(worker.received[0].inputs[0].token_ids.ids)
    vectors = []
    for form in ("hello world", ["hello world"], ids, [ids]):
        answer = await door.post(door.openai.CreateEmbedding, {"model": "fake", "input": form, "encoding_format": "base64"})
        assert answer["usage"]["total_tokens"] == len(ids) + 2
        vectors.append(base64.b64decode(answer["data"][0]["embedding"]))
    assert set(vectors) == {fake_vector(ids).tobytes()}


async def test_a_list_is_answered_in_order(door: Door) -> None:
    """Answer i belongs to input i."""
    texts = ["hello", "the cat", "the dog sat on the mat"]
    answer = await door.post(door.openai.CreateEmbedding, {"model": "fake", "input": texts})
    singly = [(await door.post(door.openai.CreateEmbedding, {"model": "fake", "input": text}))["data"][0]["embedding"] for text in texts]
    assert [one["index"] for one in answer["data"]] == [0, 1, 2]
    assert [one["embedding"] for one in answer["data"]] == singly
    assert answer["usage"]["total_tokens"] == 3 + 4 + 8


async def test_what_goes_upstream_is_ids_alone(door: Door, worker: FakeWorker) -> None:
    """The worker gets ids under its own name for the model, its prompt switched off and nothing left to cut."""
    await door.post(door.openai.CreateEmbedding, {"model": "fake/fake", "input": ["hello", "cat"], "user": "someone"})
    (request,) = worker.received
    assert request.model == "fake"
    assert [list(item.token_ids.ids) for item in request.inputs] == [[4], [7]]
    assert request.HasField("prompt")
    assert request.prompt == ""
    assert request.truncation == 1


async def test_truncation_cuts_the_side_that_was_asked(door: Door, worker: FakeWorker) -> None:
    """`truncate: left` keeps the end, `right` the beginning; the charge is what was read."""
    text = "hello " * 40 + "cat " * 40
    for side, kept in (("left", [7] * 30), ("RIGHT", [4] * 30)):
        answer = await door.post(door.openai.CreateEmbedding, {"model": "fake", "input": text, "truncate": side})
        assert list(worker.received[-1].inputs[0].token_ids.ids) == kept
        assert answer["usage"]["prompt_tokens"] == 32


async def test_what_was_cut_is_told_by_item(door: Door) -> None:
    """Items that were cut say by how much, under Cohere's words for the sides, too; the others say nothing."""
    texts = ["cat " * 35, "cat", "cat " * 31]
    for side in ("right", "END", "start"):
        answer = await door.post(door.openai.CreateEmbedding, {"model": "fake", "input": texts, "truncate": side})
        assert [item.get("tokens_cut") for item in answer["data"]] == [5, None, 1]
        assert answer["usage"]["tokens_cut"] == 6


async def test_prompts_follow_the_role(open_door: Any) -> None:
    """`input_type` and `prompt_name` choose the card's prompt; token ids get none."""
    from quadrate.testing.worker import FakeWorker, fake_card  # noqa: PLC0415

    card = fake_card("fake", prompts={"query": "query: ", "document": "passage: "}, default_prompt_name="document")
    async with FakeWorker(card, fake_card("fake-rerank", 2)) as worker, open_door(routing(worker)) as door:
        await door.until_serving()
        for extra, first in (({}, 13), ({"input_type": "query"}, 12), ({"prompt_name": "query"}, 12), ({"input_type": "passage"}, 13)):
            await door.post(door.openai.CreateEmbedding, {"model": "fake", "input": "cat", **extra})
            assert list(worker.received[-1].inputs[0].token_ids.ids) == [first, 14, 7]
        await door.post(door.openai.CreateEmbedding, {"model": "fake", "input": [7], "input_type": "query"})
        assert list(worker.received[-1].inputs[0].token_ids.ids) == [7]
        failure = await refused(door.post(door.openai.CreateEmbedding, {"model": "fake", "input": "cat", "prompt_name": "poem"}))
        assert (failure.status, failure.param) == ("INVALID_ARGUMENT", "prompt_name")


def with_retired(worker: FakeWorker) -> str:
    """Return a routing file with one more model, which is switched off."""
    retired = "  - {model: retired, enabled: false, upstream: {type: grpc, url: 'grpc://127.0.0.1:1'}}\n"
    return routing(worker).replace("rerank:\n", f"{retired}rerank:\n")


BEYOND_64_BITS = b'{"model":"fake","input":"a","dimensions":99999999999999999999}'
BAD: dict[str, tuple[Any, str, str | None, str]] = {
    "empty string": ({"input": ""}, "INVALID_ARGUMENT", "input", "empty_input"),
    "blanks only": ({"input": " \n "}, "INVALID_ARGUMENT", "input", "empty_input"),
    "empty list": ({"input": []}, "INVALID_ARGUMENT", "input", "empty_input"),
    "empty list of ids": ({"input": [[]]}, "INVALID_ARGUMENT", "input[0]", "empty_input"),
    "empty among good": ({"input": ["cat", "", "dog"]}, "INVALID_ARGUMENT", "input[1]", "empty_input"),
    "blank among good": ({"input": ["cat", "\t"]}, "INVALID_ARGUMENT", "input[1]", "empty_input"),
    "too many": ({"input": ["cat"] * 2049}, "INVALID_ARGUMENT", "input", "too_many_inputs"),
    "too long": ({"input": "cat " * 31}, "INVALID_ARGUMENT", "input", "context_length_exceeded"),
    "one too long": ({"input": ["cat", "cat " * 31]}, "INVALID_ARGUMENT", "input[1]", "context_length_exceeded"),
    "too many ids": ({"input": [7] * 31}, "INVALID_ARGUMENT", "input", "context_length_exceeded"),
    "negative id": ({"input": [7, -1]}, "INVALID_ARGUMENT", "input", "invalid_value"),
    "id too large": ({"input": [[7], [100_000]]}, "INVALID_ARGUMENT", "input[1]", "invalid_value"),
    "id beyond 64 bits": (b'{"model":"fake","input":[99999999999999999999]}', "INVALID_ARGUMENT", "input[0]", "invalid_type"),
    "id beyond 63 bits": (b'{"model":"fake","input":[18446744073709551615]}', "INVALID_ARGUMENT", "input", "invalid_value"),
    "id not an integer": ({"input": [7, 1.5]}, "INVALID_ARGUMENT", "input[1]", "invalid_type"),
    "wrong type": ({"input": 5}, "INVALID_ARGUMENT", "input", "invalid_type"),
    "no model": (b'{"input":"cat"}', "INVALID_ARGUMENT", "model", "missing_required_parameter"),
    "empty model": ({"model": ""}, "NOT_FOUND", "model", "model_not_found"),
    "unknown model": ({"model": "gpt-9"}, "NOT_FOUND", "model", "model_not_found"),
    "model of the other task": ({"model": "fake-rerank"}, "NOT_FOUND", "model", "model_not_found"),
    "disabled model": ({"model": "retired"}, "NOT_FOUND", "model", "model_not_found"),
    "unknown encoding": ({"encoding_format": "int7"}, "INVALID_ARGUMENT", "encoding_format", "invalid_value"),
    "dimensions on a model that cannot": ({"dimensions": 4}, "INVALID_ARGUMENT", "dimensions", "invalid_value"),
    "dimensions too large": ({"dimensions": 99}, "INVALID_ARGUMENT", "dimensions", "invalid_value"),
    "dimensions 0": ({"dimensions": 0}, "INVALID_ARGUMENT", "dimensions", "invalid_value"),
    "dimensions beyond 64 bits": (BEYOND_64_BITS, "INVALID_ARGUMENT", "dimensions", "invalid_type"),
    "NUL": ({"input": ["cat", "do\0g"]}, "INVALID_ARGUMENT", "input[1]", "invalid_value"),
    "lone surrogate": (b'{"model":"fake","input":"\\ud83d"}', "INVALID_ARGUMENT", None, "invalid_json"),
    "invalid UTF-8": (b'{"model":"fake","input":"\xff"}', "INVALID_ARGUMENT", None, "invalid_json"),
    "malformed": (b'{"model":"fake",', "INVALID_ARGUMENT", None, "invalid_json"),
    "no body": (b"", "INVALID_ARGUMENT", None, "invalid_json"),
    "deep": (b"[" * 20_000, "INVALID_ARGUMENT", None, "invalid_json"),
    "duplicate key": (b'{"model":"fake","input":"cat","input":"dog"}', "INVALID_ARGUMENT", "input", "duplicate_key"),
    "unknown prompt": ({"prompt_name": "poem"}, "INVALID_ARGUMENT", "prompt_name", "invalid_value"),
}  # fmt: skip


@pytest.mark.parametrize("row", BAD.values(), ids=BAD.keys())
async def test_bad_input_is_refused_and_the_next_request_works(
    open_door: Callable[..., Any], worker: FakeWorker, row: tuple[Any, str, str | None, str]
) -> None:
    """Each row's status, type, param and code; nothing of it reached the worker, and a good request after it is served."""
    fields, status, param, code = row
    async with open_door(with_retired(worker)) as door:
        await door.until_serving("fake")
        body = fields if isinstance(fields, bytes) else {"model": "fake", "input": "cat", **fields}
        failure = await refused(door.post(door.openai.CreateEmbedding, body))
        assert (failure.status, failure.body["type"], failure.body["param"], failure.body["code"]) == (
            status,
            "invalid_request_error",
            param,
            code,
        )
        assert failure.reason == code.upper()
        assert failure.param == (param or "")
        assert failure.message == failure.body["message"]
        assert "x-request-id" in failure.trailers
        assert worker.received == []
        assert (await door.post(door.openai.CreateEmbedding, {"model": "fake", "input": "cat"}))["object"] == "list"


async def test_an_error_names_value_and_limit(door: Door) -> None:
    """A text of 33 tokens on a model of 32: both numbers and the way out."""
    failure = await refused(door.post(door.openai.CreateEmbedding, {"model": "fake", "input": "cat " * 31}))
    assert "33 tokens" in failure.message
    assert "at most 32" in failure.message
    assert "truncation" in failure.message


async def test_a_request_has_a_limit_on_tokens_in_all(open_door: Callable[..., Any], worker: FakeWorker) -> None:
    """ROUTER_SAFE_REQUEST_TOKEN_LIMIT counts all inputs, special tokens included."""
    async with open_door(routing(worker), safe_request_token_limit=9) as door:
        await door.until_serving()
        await door.post(door.openai.CreateEmbedding, {"model": "fake", "input": ["cat"] * 3})
        failure = await refused(door.post(door.openai.CreateEmbedding, {"model": "fake", "input": ["cat"] * 4}))
        assert (failure.param, failure.body["code"]) == ("input", "too_many_tokens")
        assert "12 tokens" in failure.message


async def test_full_width_may_be_asked_for(door: Door) -> None:
    """`dimensions` of the model's own width changes nothing on any model."""
    answer = await door.post(door.openai.CreateEmbedding, {"model": "fake", "input": "cat", "dimensions": WIDTH})
    assert len(answer["data"][0]["embedding"]) == WIDTH


async def test_models_are_listed_and_retrieved(door: Door) -> None:
    """Both names retrieve a model, slashes included; the id is repeated as asked."""
    listed = orjson.loads((await door.openai.ListModels(openai_pb2.ListModelsRequest())).data)
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["fake", "fake-rerank"]
    assert set(listed["data"][0]) == {"id", "object", "created", "owned_by"}
    for name in ("fake", "fake/fake", "fake/fake-rerank"):
        found = orjson.loads((await door.openai.RetrieveModel(openai_pb2.RetrieveModelRequest(model=name))).data)
        assert (found["id"], found["object"], found["owned_by"]) == (name, "model", "fake")
    failure = await refused(door.openai.RetrieveModel(openai_pb2.RetrieveModelRequest(model="no/such")))
    assert (failure.status, failure.body["code"], failure.body["param"]) == ("NOT_FOUND", "model_not_found", "model")


async def test_operators_give_models_more_names(open_door: Callable[..., Any], worker: FakeWorker) -> None:
    """EMBED_MODEL_MAPPING and RERANK_MODEL_MAPPING, for calls as for the catalogue, which lists a model once; keys know it by its alias."""
    names = {"EMBED_MODEL_MAPPING": {"ours": "fake", "again": "fake/fake"}, "RERANK_MODEL_MAPPING": {"judge": "fake-rerank"}}
    async with open_door(routing(worker), **names) as door:
        await door.until_serving()
        for name in ("ours", "again"):
            answer = await door.post(door.openai.CreateEmbedding, {"model": name, "input": "cat"})
            assert answer["model"] == name
        found = orjson.loads((await door.openai.RetrieveModel(openai_pb2.RetrieveModelRequest(model="judge"))).data)
        assert found["id"] == "judge"
        listed = orjson.loads((await door.openai.ListModels(openai_pb2.ListModelsRequest())).data)
        assert [model["id"] for model in listed["data"]] == ["fake", "fake-rerank"]
        assert (await refused(door.post(door.openai.CreateEmbedding, {"model": "judge", "input": "cat"}))).status == "NOT_FOUND"


async def test_a_name_that_is_another_models_is_refused(open_door: Callable[..., Any], worker: FakeWorker) -> None:
    """At the start. One that a route has beside a model that is a worker's own affair stays the route's."""
    upstream = f"upstream: {{type: grpc, url: 'grpc://{worker.target}'}}"
    file = f"embeddings: [{{model: fake, {upstream}}}, {{model: other, {upstream}}}]"
    with pytest.raises(ConfigError, match="EMBED_MODEL_MAPPING: 'fake' is the name of 'fake' already; choose another"):
        async with open_door(file, EMBED_MODEL_MAPPING={"fake": "other"}):
            pass
    async with open_door(file, EMBED_MODEL_MAPPING={"fake": "of-a-worker"}) as door:
        assert door.gateway.reload.loose_ends == ()


async def test_disabled_models_are_listed_only_if_configured(open_door: Callable[..., Any], worker: FakeWorker) -> None:
    """ROUTER_ALLOW_DISABLED_MODELS lists them; they cannot be called either way."""
    for allowed in (False, True):
        async with open_door(with_retired(worker), allow_disabled_models=allowed) as door:
            listed = orjson.loads((await door.openai.ListModels(openai_pb2.ListModelsRequest())).data)
            assert ("retired" in [model["id"] for model in listed["data"]]) == allowed
            assert all(model["created"] >= 1_700_000_000 for model in listed["data"])  # a model that nobody has loaded included
            assert (await refused(door.post(door.openai.CreateEmbedding, {"model": "retired", "input": "cat"}))).status == "NOT_FOUND"
