"""The embed worker over a real channel."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from google.protobuf import json_format
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from quadrate.v1 import embed_pb2, model_pb2, options_pb2
from tests.service.workers.conftest import running
from tests.standstill import standstill

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


def request(*texts: str, model: str = "tiny", **changes: Any) -> embed_pb2.EmbedRequest:
    """Return a request to embed texts."""
    return embed_pb2.EmbedRequest(model=model, inputs=[options_pb2.Input(text=text) for text in texts], **changes)


def vectors(answer: embed_pb2.EmbedResponse) -> np.ndarray:
    """Return an answer's vectors as a matrix."""
    return np.array([entry.values for entry in answer.embeddings], np.float32)


def reason(error: grpc.aio.AioRpcError) -> tuple[str, str]:
    """Return the reason and the parameter that an error carries."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    return info.reason, info.metadata.get("param", "")


async def test_an_answer_says_everything_of_itself(catalogue: Path) -> None:
    """An answer has a vector and the tokens of each input, where it came from and where the time went."""
    async with running("embed", catalogue, "tiny") as made:
        answer = await made.embed.Embed(request("hello world", "cat"))
    assert answer.model == "tiny"
    assert [entry.index for entry in answer.embeddings] == [0, 1]
    assert [entry.usage.tokens for entry in answer.embeddings] == [4, 3]
    assert (answer.usage.tokens, answer.usage.tokens_cut) == (7, 0)
    np.testing.assert_allclose(np.linalg.norm(vectors(answer), axis=1), 1.0, atol=1e-6)
    assert answer.provenance.revision.startswith("sha256:")
    assert len(answer.provenance.fingerprint) == 16
    assert (answer.provenance.provider, answer.provenance.pooling) == ("CPUExecutionProvider", "mean")
    assert (answer.provenance.precision, answer.provenance.normalized, answer.provenance.prompt) == (options_pb2.EXACT, True, "")
    timings = answer.timings
    assert 0 < timings.inference_seconds <= timings.total_seconds
    assert timings.queue_seconds >= 0
    assert timings.tokenize_seconds > 0


async def test_token_ids_and_the_served_name_say_the_same(catalogue: Path) -> None:
    """Token ids without special tokens are read as their text is; the served name means the alias, and the answer repeats it."""
    async with running("embed", catalogue, "tiny") as made:
        tokens = await made.models.Tokenize(model_pb2.TokenizeRequest(model="tiny", inputs=[options_pb2.Input(text="the cat sat")]))
        ids = list(tokens.tokenizations[0].ids)
        named = embed_pb2.EmbedRequest(model="tests/tiny", inputs=[options_pb2.Input(token_ids=options_pb2.TokenIds(ids=ids[1:-1]))])
        by_ids, by_text = await made.embed.Embed(named), await made.embed.Embed(request("the cat sat"))
    assert by_ids.model == "tests/tiny"
    assert tokens.usage.tokens == by_text.usage.tokens == 5
    np.testing.assert_allclose(vectors(by_ids), vectors(by_text), atol=1e-6)


async def test_no_prompt_is_told_of_ids(catalogue: Path) -> None:
    """None is put before them."""
    item = options_pb2.Input(token_ids=options_pb2.TokenIds(ids=[7]))
    async with running("embed", catalogue, "prompted") as made:
        answer = await made.embed.Embed(embed_pb2.EmbedRequest(model="prompted", inputs=[item], role=options_pb2.QUERY))
    assert not answer.provenance.prompt


async def test_prompts_are_chosen_by_role_by_name_or_given(catalogue: Path) -> None:
    """A role, a prompt's name and the prompt itself come to the same vector, and the answer names what was put before the text."""
    async with running("embed", catalogue, "prompted") as made:
        ways = [
            request("cat", model="prompted", role=options_pb2.QUERY),
            request("cat", model="prompted", prompt_name="query"),
            request("cat", model="prompted", prompt="query: "),
            request("query: cat", model="prompted"),
        ]
        answers = [await made.embed.Embed(way) for way in ways]
        document = await made.embed.Embed(request("cat", model="prompted", role=options_pb2.DOCUMENT))
    assert [answer.provenance.prompt for answer in answers] == ["query: ", "query: ", "query: ", ""]
    for answer in answers[1:]:
        np.testing.assert_allclose(vectors(answer), vectors(answers[0]), atol=1e-6)
    assert np.abs(vectors(document) - vectors(answers[0])).max() > 0.01


async def test_truncation_is_refused_or_done_where_asked(catalogue: Path) -> None:
    """NONE refuses a long input by count and limit; LEFT and RIGHT keep the end and the beginning, and say what was cut."""
    long = " ".join(["cat"] * 30 + ["dog"] * 30)
    async with running("embed", catalogue, "tiny", "prompted") as made:
        with pytest.raises(grpc.aio.AioRpcError, match=r"inputs\[1\]\.text has 62 tokens.*at most 48") as caught:
            await made.embed.Embed(request("cat", long))
        assert reason(caught.value) == ("CONTEXT_LENGTH_EXCEEDED", "inputs[1].text")
        right = await made.embed.Embed(request(long, truncation=options_pb2.RIGHT))
        left = await made.embed.Embed(request(long, truncation=options_pb2.LEFT))
        kept = await made.embed.Embed(request(" ".join(["cat"] * 30 + ["dog"] * 16), " ".join(["cat"] * 16 + ["dog"] * 30)))
        by_card = await made.embed.Embed(request(long, model="prompted"))
    assert (right.usage.tokens, right.usage.tokens_cut) == (48, 14)
    assert by_card.usage.tokens_cut == 14
    np.testing.assert_allclose(np.concatenate([vectors(right), vectors(left)]), vectors(kept), atol=1e-6)


async def test_raw_vectors_and_matryoshka_widths(catalogue: Path) -> None:
    """`normalize` overrules the card; `dimensions` cuts first and then brings back to length one."""
    async with running("embed", catalogue, "tiny", "raw", "matryoshka") as made:
        unit = vectors(await made.embed.Embed(request("hello")))
        raw_answer = await made.embed.Embed(request("hello", normalize=False))
        made_unit = vectors(await made.embed.Embed(request("hello", model="raw", normalize=True)))
        as_card = await made.embed.Embed(request("hello", model="raw"))
        cut = vectors(await made.embed.Embed(request("hello", model="matryoshka", dimensions=8)))
        whole = vectors(await made.embed.Embed(request("hello", model="tiny", dimensions=32)))
    raw = vectors(raw_answer)
    assert not raw_answer.provenance.normalized
    assert not as_card.provenance.normalized
    np.testing.assert_allclose(raw / np.linalg.norm(raw), unit, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(made_unit), 1.0, atol=1e-6)
    assert np.linalg.norm(vectors(as_card)) != pytest.approx(1.0, abs=0.01)
    np.testing.assert_allclose(cut, raw[:, :8] / np.linalg.norm(raw[:, :8]), atol=1e-6)
    np.testing.assert_allclose(whole, unit, atol=1e-6)


IDS = options_pb2.TokenIds
REFUSALS = [
    (request(), "INVALID_ARGUMENT", "EMPTY_INPUT", "inputs"),
    (request("hello", ""), "INVALID_ARGUMENT", "EMPTY_INPUT", "inputs[1].text"),
    (request("hello", " \t "), "INVALID_ARGUMENT", "EMPTY_INPUT", "inputs[1].text"),
    (request("a\0b"), "INVALID_ARGUMENT", "INVALID_VALUE", "inputs[0].text"),
    (request(*["a"] * 2049), "INVALID_ARGUMENT", "TOO_MANY_INPUTS", "inputs"),
    (embed_pb2.EmbedRequest(model="tiny", inputs=[options_pb2.Input()]), "INVALID_ARGUMENT", "EMPTY_INPUT", "inputs[0]"),
    (
        embed_pb2.EmbedRequest(model="tiny", inputs=[options_pb2.Input(token_ids=IDS())]),
        "INVALID_ARGUMENT",
        "EMPTY_INPUT",
        "inputs[0].token_ids",
    ),
    (
        embed_pb2.EmbedRequest(model="tiny", inputs=[options_pb2.Input(token_ids=IDS(ids=[-1]))]),
        "INVALID_ARGUMENT",
        "INVALID_VALUE",
        "inputs[0].token_ids",
    ),
    (
        embed_pb2.EmbedRequest(model="tiny", inputs=[options_pb2.Input(token_ids=IDS(ids=[5, 99_999]))]),
        "INVALID_ARGUMENT",
        "INVALID_VALUE",
        "inputs[0].token_ids",
    ),
    (request("hello", model="nothing"), "NOT_FOUND", "MODEL_NOT_FOUND", "model"),
    (request("hello", model="late"), "NOT_FOUND", "MODEL_NOT_FOUND", "model"),
    (request("hello", dimensions=8), "INVALID_ARGUMENT", "INVALID_VALUE", "dimensions"),
    (request("hello", dimensions=0), "INVALID_ARGUMENT", "INVALID_VALUE", "dimensions"),
    (request("hello", model="matryoshka", dimensions=9), "INVALID_ARGUMENT", "INVALID_VALUE", "dimensions"),
    (request("hello", outputs=[options_pb2.SPARSE]), "INVALID_ARGUMENT", "INVALID_VALUE", "outputs"),
    (request("hello", outputs=[options_pb2.DENSE, options_pb2.MULTI_VECTOR]), "INVALID_ARGUMENT", "INVALID_VALUE", "outputs"),
    (request("hello", value_type=options_pb2.INT8, normalize=False), "INVALID_ARGUMENT", "INVALID_VALUE", "value_type"),
    (request("hello", instruction="find cats"), "INVALID_ARGUMENT", "INVALID_VALUE", "instruction"),
    (request("hello", role=options_pb2.QUERY, prompt="a"), "INVALID_ARGUMENT", "INVALID_VALUE", "prompt"),
    (request("hello", role=options_pb2.QUERY, prompt_name="a"), "INVALID_ARGUMENT", "INVALID_VALUE", "prompt_name"),
    (request("hello", prompt_name="nothing"), "INVALID_ARGUMENT", "INVALID_VALUE", "prompt_name"),
    (request("hello", prompt="a\0"), "INVALID_ARGUMENT", "INVALID_VALUE", "prompt"),
    (embed_pb2.EmbedRequest.FromString(request("a").SerializeToString() + b"\x18\x09"), "INVALID_ARGUMENT", "INVALID_VALUE", "role"),
    (embed_pb2.EmbedRequest.FromString(request("a").SerializeToString() + b"\x30\x09"), "INVALID_ARGUMENT", "INVALID_VALUE", "truncation"),
]


async def test_what_cannot_be_served_is_refused_and_the_next_request_works(catalogue: Path) -> None:
    """Each wrong request gets its status, reason and parameter, and the next good one is answered."""
    async with running("embed", catalogue, "tiny", "matryoshka") as made:
        for wrong, status, expected, param in REFUSALS:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await made.embed.Embed(wrong)
            said = (caught.value.code().name, *reason(caught.value))
            assert said == (status, expected, param), json_format.MessageToJson(wrong)[:200]
            assert len((await made.embed.Embed(request("hello"))).embeddings) == 1


async def test_many_inputs_come_back_in_order(catalogue: Path) -> None:
    """2,048 inputs of mixed length come back in order, each as it is alone."""
    words = ["cat", "dog sat", "the cat sat on the mat", "hello world the dog"]
    async with running("embed", catalogue, "tiny") as made:
        answer = await made.embed.Embed(request(*(words[place % 4] for place in range(2048))))
        alone = np.concatenate([vectors(await made.embed.Embed(request(word))) for word in words])
    assert len(answer.embeddings) == 2048
    np.testing.assert_allclose(vectors(answer), alone[np.arange(2048) % 4], atol=1e-5)


async def test_a_stream_answers_each_request_under_its_id(catalogue: Path) -> None:
    """A stream answers every request under its id; one that fails is answered by its error, and the stream goes on."""

    async def requests() -> AsyncIterator[embed_pb2.EmbedStreamRequest]:
        for place in range(300):
            text = "" if place == 7 else "hello" if place % 2 else "the cat sat on the mat"
            yield embed_pb2.EmbedStreamRequest(id="x" * 300 if place == 9 else f"item {place}", request=request(text))

    async with running("embed", catalogue, "tiny") as made:
        answers = {answer.id: answer async for answer in made.embed.EmbedStream(requests())}
        single = vectors(await made.embed.Embed(request("hello")))
    assert len(answers) == 300
    failed = {name[:7]: answer.error for name, answer in answers.items() if answer.HasField("error")}
    assert failed["item 7"].reason == "EMPTY_INPUT"
    assert failed["item 7"].param == "inputs[0].text"
    assert failed["xxxxxxx"].param == "id"
    assert len(failed) == 2
    np.testing.assert_allclose(vectors(answers["item 1"].response), single, atol=1e-5)


async def test_the_first_answer_of_a_stream_does_not_wait_for_the_last_request(catalogue: Path) -> None:
    """A stream answers its first request while the second is not there yet, and a reader who stops stops the worker's reading."""
    sent = 0
    reading = asyncio.Event()

    async def requests() -> AsyncIterator[embed_pb2.EmbedStreamRequest]:
        nonlocal sent
        yield embed_pb2.EmbedStreamRequest(id="first", request=request("hello"))
        await reading.wait()
        big = request(*["the cat sat on the mat"] * 512)
        for place in range(5000):
            sent += 1
            yield embed_pb2.EmbedStreamRequest(id=str(place), request=big)

    async with running("embed", catalogue, "tiny") as made:
        call = made.embed.EmbedStream(requests())
        first = await call.read()
        assert first.id == "first"
        reading.set()
        taken = await standstill(lambda: sent, lambda: made.embed.Embed(request("hello")))
        assert taken < 1500  # what the transports hold both ways
        call.cancel()
        assert len((await made.embed.Embed(request("hello"))).embeddings) == 1
