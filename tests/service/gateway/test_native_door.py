"""quadrate.v1 as the gateway serves it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

from quadrate.config.auth import digest
from quadrate.errors import Overloaded
from quadrate.testing.tokenizers import letter_tokenizer
from quadrate.testing.worker import MAX_TOKENS, WIDTH, FakeWorker, fake_card, fake_embedding, fake_vector
from quadrate.v1 import embed_pb2, model_pb2, options_pb2, rerank_pb2
from tests.service.gateway.conftest import KEY, refused, routing

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.service.gateway.conftest import Door


def request(*texts: str, model: str = "fake", **fields: Any) -> embed_pb2.EmbedRequest:
    """Return a request."""
    return embed_pb2.EmbedRequest(model=model, inputs=[options_pb2.Input(text=text) for text in texts], **fields)


async def test_an_answer_says_everything(door: Door) -> None:
    """Vectors, usage by input and in all, provenance, timings, and the model as it was named."""
    answer = await door.embed.Embed(request("hello world", "cat", model="fake/fake"))
    assert answer.model == "fake/fake"
    assert [one.index for one in answer.embeddings] == [0, 1]
    assert np.array_equal(np.float32(answer.embeddings[1].values), fake_vector([7]))
    assert [one.usage.tokens for one in answer.embeddings] == [4, 3]
    assert (answer.usage.tokens, answer.usage.tokens_cut) == (7, 0)
    assert answer.provenance.HasField("normalized")
    assert answer.provenance.revision
    assert 0 < answer.timings.tokenize_seconds < answer.timings.total_seconds < 5


async def test_prompts_are_put_before_texts_and_told(open_door: Callable[..., Any]) -> None:
    """A prompt of the request, of a name or of a role; empty means none; two ways at once are refused."""
    card = fake_card("fake", prompts={"query": "query: "}, default_prompt_name="query")
    async with FakeWorker(card, fake_card("fake-rerank", model_pb2.TASK_RERANK)) as worker, open_door(routing(worker)) as door:
        await door.until_serving()
        rows: list[tuple[dict[str, Any], str, list[int]]] = [
            ({}, "query: ", [12, 14, 7]),
            ({"prompt": ""}, "", [7]),
            ({"prompt": "the "}, "the ", [6, 7]),
            ({"prompt_name": "query"}, "query: ", [12, 14, 7]),
            ({"role": options_pb2.QUERY}, "query: ", [12, 14, 7]),
            ({"role": options_pb2.DOCUMENT}, "", [7]),
        ]
        for fields, prompt, ids in rows:
            answer = await door.embed.Embed(request("cat", **fields))
            assert answer.provenance.prompt == prompt
            assert list(worker.received[-1].inputs[0].token_ids.ids) == ids
        of_ids = embed_pb2.EmbedRequest(model="fake", inputs=[options_pb2.Input(token_ids=options_pb2.TokenIds(ids=[7]))])
        assert not (await door.embed.Embed(of_ids)).provenance.prompt
        for fields in ({"prompt": "x", "role": options_pb2.QUERY}, {"prompt": "x", "prompt_name": "query"}, {"prompt": "a\0"}):
            assert (await refused(door.embed.Embed(request("cat", **fields)))).param == "prompt"
        failure = await refused(door.embed.Embed(request("cat", prompt_name="query", role=options_pb2.QUERY)))
        assert failure.param == "prompt_name"


async def test_what_was_cut_is_told(door: Door) -> None:
    """By input and in all."""
    answer = await door.embed.Embed(request("cat " * 35, "cat", truncation=options_pb2.RIGHT))
    assert [one.usage.tokens_cut for one in answer.embeddings] == [5, 0]
    assert (answer.usage.tokens, answer.usage.tokens_cut) == (MAX_TOKENS + 3, 5)


async def test_a_cut_on_the_left_spares_the_prompt(door: Door, worker: FakeWorker) -> None:
    """The end of the text is what is kept, behind the prompt, as with a prompt before a text that fits."""
    text = "hello " * 20 + "cat " * 20
    answer = await door.embed.Embed(request(text, prompt="query: ", truncation=options_pb2.LEFT))
    fitting = await door.embed.Embed(request("hello " * 8 + "cat " * 20, prompt="query: "))
    assert answer.usage.tokens_cut == 12
    assert answer.embeddings[0].values == fitting.embeddings[0].values
    counted = await door.models.Tokenize(
        model_pb2.TokenizeRequest(model="fake", inputs=[options_pb2.Input(text=text)], prompt="query: ", truncation=options_pb2.LEFT)
    )
    assert list(counted.tokenizations[0].ids)[1:-1] == list(worker.received[0].inputs[0].token_ids.ids)


async def test_ids_are_cut_from_their_first_on(door: Door, worker: FakeWorker) -> None:
    """No prompt was put before them, so none is spared, even if they begin like it."""
    given = [12, 14, *[6, 7] * 20]  # `query`, `:` and words
    item = options_pb2.Input(token_ids=options_pb2.TokenIds(ids=given))
    await door.embed.Embed(embed_pb2.EmbedRequest(model="fake", inputs=[item], prompt="query: ", truncation=options_pb2.LEFT))
    read = list(worker.received[-1].inputs[0].token_ids.ids)
    assert read == given[2 - MAX_TOKENS :]


async def test_a_cards_own_truncation_holds_unless_the_request_says_otherwise(open_door: Callable[..., Any]) -> None:
    """A card may say that long inputs are cut."""
    card = fake_card("fake", truncation=options_pb2.RIGHT)
    async with FakeWorker(card, fake_card("fake-rerank", model_pb2.TASK_RERANK)) as worker, open_door(routing(worker)) as door:
        await door.until_serving()
        assert (await door.embed.Embed(request("cat " * 35))).usage.tokens_cut == 5
        failure = await refused(door.embed.Embed(request("cat " * 35, truncation=options_pb2.NONE)))
        assert failure.reason == "CONTEXT_LENGTH_EXCEEDED"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"outputs": [options_pb2.SPARSE]}, "outputs"),
        ({"outputs": [options_pb2.DENSE, options_pb2.MULTI_VECTOR]}, "outputs"),
        ({"outputs": [77]}, "outputs"),
        ({"value_type": options_pb2.INT8, "normalize": False}, "value_type"),
        ({"value_type": 77}, "value_type"),
        ({"instruction": "find cats"}, "instruction"),
    ],
)
async def test_what_a_model_does_not_give_is_refused_not_ignored(
    door: Door, worker: FakeWorker, fields: dict[str, Any], param: str
) -> None:
    """400 and a sentence, before anything is sent to a worker."""
    failure = await refused(door.embed.Embed(request("cat", **fields)))
    assert (failure.status, failure.param) == ("INVALID_ARGUMENT", param)
    assert worker.received == []


THREE = [options_pb2.DENSE, options_pb2.SPARSE, options_pb2.MULTI_VECTOR]


@pytest.mark.parametrize("value_type", [number for number in options_pb2.ValueType.values() if number])
async def test_every_form_comes_through(open_door: Callable[..., Any], value_type: int) -> None:
    """Dense, sparse and multi-vector in one answer, in each value type, bit for bit as the worker gave them."""
    async with FakeWorker(fake_card("fake", outputs=THREE), fake_card("fake-rerank", model_pb2.TASK_RERANK)) as worker:
        async with open_door(routing(worker)) as door:
            await door.until_serving()
            answer = await door.embed.Embed(request("hello cat cat", outputs=THREE, value_type=value_type))
        assert len(worker.received) == 1
    ids = list(worker.received[0].inputs[0].token_ids.ids)
    wanted = fake_embedding(embed_pb2.EmbedRequest(outputs=THREE, value_type=value_type), ids, WIDTH)
    (found,) = answer.embeddings
    assert (found.values, found.packed_values, found.sparse, found.multi_vector) == (
        wanted.values,
        wanted.packed_values,
        wanted.sparse,
        wanted.multi_vector,
    )
    assert found.multi_vector.rows == 3


async def test_a_model_without_dense_vectors_says_what_it_gives(open_door: Callable[..., Any]) -> None:
    """Asking for nothing in particular means DENSE, on every door."""
    card = fake_card("fake", outputs=[options_pb2.SPARSE])
    del card.outputs[0]
    async with FakeWorker(card, fake_card("fake-rerank", model_pb2.TASK_RERANK)) as worker, open_door(routing(worker)) as door:
        await door.until_serving()
        failures = [
            await refused(door.embed.Embed(request("cat"))),
            await refused(door.post(door.openai.CreateEmbedding, {"model": "fake", "input": "cat"})),
            await refused(door.post(door.cohere.EmbedV2, {"model": "fake", "texts": ["cat"], "input_type": "search_query"})),
        ]
        assert {(failure.status, failure.param) for failure in failures} == {("INVALID_ARGUMENT", "outputs")}
        assert all("outputs SPARSE" in failure.message for failure in failures)
        answer = await door.embed.Embed(request("cat", outputs=[options_pb2.SPARSE]))
        assert len(answer.embeddings[0].sparse.token_ids) == 1
        assert not answer.embeddings[0].values


async def test_an_instruction_goes_before_queries(open_door: Callable[..., Any]) -> None:
    """Into the model's own template; documents have none, and it excludes the other ways to choose a prompt."""
    card = fake_card("fake", instruction_template="query: {instruction} ", prompts={"query": "query: ", "document": "passage: "})
    async with FakeWorker(card, fake_card("fake-rerank", model_pb2.TASK_RERANK)) as worker, open_door(routing(worker)) as door:
        await door.until_serving()
        answer = await door.embed.Embed(request("cat", instruction="{instruction} dog", role=options_pb2.QUERY))
        assert answer.provenance.prompt == "query: {instruction} dog "
        body = {"model": "fake", "input": "cat", "instruction": "dog"}
        assert (await door.post(door.openai.CreateEmbedding, body))["provenance"]["prompt"] == "query: dog "
        for fields in ({"role": options_pb2.DOCUMENT}, {"prompt": "x"}, {"prompt_name": "query"}):
            assert (await refused(door.embed.Embed(request("cat", instruction="dog", **fields)))).param == "instruction"
        for wrong in ("", "a\0"):
            assert (await refused(door.embed.Embed(request("cat", instruction=wrong)))).param == "instruction"
        failure = await refused(door.post(door.openai.CreateEmbedding, {**body, "input_type": "document"}))
        assert failure.param == "instruction"


@pytest.mark.parametrize("widths", [{"dimensions": 4096}, {"dimensions": 8, "multi_vector_dimensions": 4096}])
async def test_multi_vectors_that_json_cannot_carry_are_refused_on_rest_alone(
    open_door: Callable[..., Any], widths: dict[str, int]
) -> None:
    """The edge writes at most 64 MiB; gRPC takes them, and so does a smaller value type. It is the rows' width that counts."""
    card = fake_card("fake", outputs=[options_pb2.MULTI_VECTOR], max_tokens=8192, **widths)
    async with FakeWorker(card, fake_card("fake-rerank", model_pb2.TASK_RERANK)) as worker, open_door(routing(worker)) as door:
        await door.until_serving()
        big = request("cat " * 1500, outputs=[options_pb2.MULTI_VECTOR])
        over_rest = (("x-envoy-original-path", "/quadrate/v1/embed"),)
        failure = await refused(door.embed.Embed(big, metadata=over_rest))
        assert (failure.reason, failure.param) == ("ANSWER_TOO_LARGE", "inputs")
        assert worker.received == []
        big.value_type = options_pb2.BINARY
        assert (await door.embed.Embed(big, metadata=over_rest)).embeddings[0].multi_vector.rows == 1500


async def test_multi_vectors_of_narrow_rows_are_not_refused_for_their_dense_vectors(open_door: Callable[..., Any]) -> None:
    """A model may be wide and give narrow rows."""
    card = fake_card("fake", outputs=[options_pb2.MULTI_VECTOR], max_tokens=8192, dimensions=4096, multi_vector_dimensions=8)
    async with FakeWorker(card, fake_card("fake-rerank", model_pb2.TASK_RERANK)) as worker, open_door(routing(worker)) as door:
        await door.until_serving()
        long = request("cat " * 1500, outputs=[options_pb2.MULTI_VECTOR])
        answer = await door.embed.Embed(long, metadata=(("x-envoy-original-path", "/quadrate/v1/embed"),))
        assert (answer.embeddings[0].multi_vector.rows, answer.embeddings[0].multi_vector.width) == (1500, 8)


@pytest.mark.parametrize(
    ("bad", "reason", "param"),
    [
        (embed_pb2.EmbedRequest(model="fake"), "EMPTY_INPUT", "inputs"),
        (embed_pb2.EmbedRequest(model="fake", inputs=[options_pb2.Input()]), "EMPTY_INPUT", "inputs[0].text"),
        (request("cat", ""), "EMPTY_INPUT", "inputs[1].text"),
        (request("cat", "a\0"), "INVALID_VALUE", "inputs[1].text"),
        (request("cat", model=""), "MISSING_REQUIRED_PARAMETER", "model"),
        (request("cat", model="fake-rerank"), "MODEL_NOT_FOUND", "model"),
        (request("cat", dimensions=-1), "INVALID_VALUE", "dimensions"),
        (request(*["cat"] * 2049), "TOO_MANY_INPUTS", "inputs"),
        (request("cat", truncation=77), "INVALID_VALUE", "truncation"),
        (request("cat", role=77), "INVALID_VALUE", "role"),
        (embed_pb2.EmbedRequest(model="fake", inputs=[options_pb2.Input(token_ids={"ids": []})]), "EMPTY_INPUT", "inputs[0].token_ids"),
        (embed_pb2.EmbedRequest(model="fake", inputs=[options_pb2.Input(token_ids={"ids": [-1]})]), "INVALID_VALUE", "inputs[0].token_ids"),
    ],
)
async def test_bad_messages_are_refused_by_name(door: Door, worker: FakeWorker, bad: Any, reason: str, param: str) -> None:
    """As on REST, in the contract's own field names."""
    failure = await refused(door.embed.Embed(bad))
    assert (failure.reason, failure.param) == (reason, param)
    assert worker.received == []
    await door.embed.Embed(request("cat"))


async def test_dimensions_go_to_models_that_were_trained_for_them(open_door: Callable[..., Any]) -> None:
    """A width of the card's list is served; others are refused with the list."""
    card = fake_card("fake", matryoshka_dimensions=[2, 4])
    async with FakeWorker(card, fake_card("fake-rerank", model_pb2.TASK_RERANK)) as worker, open_door(routing(worker)) as door:
        await door.until_serving()
        for width in (2, 4, WIDTH):
            assert len((await door.embed.Embed(request("cat", dimensions=width))).embeddings[0].values) == width
        failure = await refused(door.embed.Embed(request("cat", dimensions=3)))
        assert "2, 4, 8" in failure.message


async def test_models_that_were_trained_for_all_widths_are_asked_for_any(open_door: Callable[..., Any]) -> None:
    """From the least of the card on."""
    card = fake_card("fake", matryoshka_dimensions_from=3)
    async with FakeWorker(card, fake_card("fake-rerank", model_pb2.TASK_RERANK)) as worker, open_door(routing(worker)) as door:
        await door.until_serving()
        for width in (3, 5, WIDTH):
            assert len((await door.embed.Embed(request("cat", dimensions=width))).embeddings[0].values) == width
        assert "any from 3 to 8" in (await refused(door.embed.Embed(request("cat", dimensions=2)))).message


async def test_models_are_told_with_their_state(door: Door) -> None:
    """Cards ordered by name, by both names, filtered by task."""
    answer = await door.models.ListModels(model_pb2.ListModelsRequest())
    assert [(card.name, card.state) for card in answer.models] == [("fake", 2), ("fake-rerank", 2)]
    answer = await door.models.ListModels(model_pb2.ListModelsRequest(task=model_pb2.TASK_RERANK))
    assert [card.name for card in answer.models] == ["fake-rerank"]
    found = (await door.models.GetModel(model_pb2.GetModelRequest(model="fake/fake"))).model
    assert (found.name, found.dimensions, found.max_tokens) == ("fake", WIDTH, MAX_TOKENS)
    assert (await refused(door.models.GetModel(model_pb2.GetModelRequest(model="no/such")))).status == "NOT_FOUND"
    assert (await refused(door.models.GetModel(model_pb2.GetModelRequest()))).param == "model"


async def test_tokenize_counts_what_embed_charges(door: Door, worker: FakeWorker) -> None:
    """The ids with special tokens, and the same count as embedding; a long text is cut, as nothing else was asked."""
    texts = ["hello world", "cat " * 35]
    inputs = [options_pb2.Input(text=text) for text in texts]
    answer = await door.models.Tokenize(model_pb2.TokenizeRequest(model="fake", inputs=inputs))
    assert list(answer.tokenizations[0].ids) == [2, 4, 5, 3]
    assert [one.usage.tokens_cut for one in answer.tokenizations] == [0, 5]
    embedded = await door.embed.Embed(request(*texts, truncation=options_pb2.RIGHT))
    assert answer.usage == embedded.usage
    assert len(worker.received) == 1


async def test_tokenize_refuses_what_is_no_truncation(door: Door) -> None:
    """As embed does."""
    request = model_pb2.TokenizeRequest(model="fake", inputs=[options_pb2.Input(text="cat")], truncation=55)  # type: ignore[arg-type]
    assert (await refused(door.models.Tokenize(request))).param == "truncation"


async def test_the_tokenizer_is_handed_on(door: Door) -> None:
    """Byte for byte as the worker has it."""
    pieces = [piece.chunk async for piece in door.models.GetTokenizer(model_pb2.GetTokenizerRequest(model="fake"))]
    found = b"".join(pieces)
    assert found == letter_tokenizer()
    card = (await door.models.GetModel(model_pb2.GetModelRequest(model="fake"))).model
    assert card.tokenizer_sha256 == hashlib.sha256(found).hexdigest()


async def test_deadline_request_id_and_trace_travel_on(door: Door, worker: FakeWorker) -> None:
    """The worker sees the caller's remaining time, its request id and its trace."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    metadata = (("x-request-id", "caller-7"), ("traceparent", f"00-{trace}-b7ad6b7169203331-01"))
    await door.embed.Embed(request("cat"), timeout=7, metadata=metadata)
    (call,) = worker.calls
    assert call.request_id == "caller-7"
    assert call.metadata["traceparent"].startswith(f"00-{trace}-")
    assert "b7ad6b7169203331" not in call.metadata["traceparent"]
    left = call.remaining_seconds()
    assert left is not None
    assert 3 < left < 8, "gRPC rounds a little"


async def test_workers_learn_whose_request_it_is(open_door: Callable[..., Any], worker: FakeWorker) -> None:
    """By the relay and by calls of their own, workers learn the caller's name: the key's, whatever the caller says it is."""
    auth = f"api_keys: [{{name: Müller & Co, sha256: {digest(KEY)}}}]\nallow_anonymous_without_api_keys: true"
    async with open_door(routing(worker), auth=auth) as door:
        await door.until_serving()
        key, claimed = ("authorization", f"Bearer {KEY}"), ("x-quadrate-tenant", "somebody-else")
        await door.embed.Embed(request("cat"), metadata=(key, claimed))
        await door.embed.Embed(request("cat"), metadata=(claimed,))
        documents = [options_pb2.Input(text="dog")]
        await door.rerank.Rerank(rerank_pb2.RerankRequest(model="fake-rerank", query="cat", documents=documents), metadata=(key, claimed))
    assert [call.standing.tenant for call in worker.calls] == ["M%C3%BCller%20%26%20Co", "anonymous", "M%C3%BCller%20%26%20Co"]


async def test_a_call_without_a_deadline_gets_the_configured_one(open_door: Callable[..., Any], worker: FakeWorker) -> None:
    """ROUTER_REQUEST_TIMEOUT_SECONDS."""

    async def wait_for_ever(_: Any, __: Any) -> None:
        await asyncio.Event().wait()

    async with open_door(routing(worker), request_timeout_seconds=0.2) as door:
        await door.until_serving()
        worker.before = wait_for_ever
        started = time.monotonic()
        assert (await refused(door.embed.Embed(request("cat")))).status == "DEADLINE_EXCEEDED"
        assert time.monotonic() - started < 3


async def test_a_caller_that_leaves_cancels_the_workers_call(door: Door, worker: FakeWorker) -> None:
    """Work whose caller has gone is not done."""
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def wait(_: Any, __: Any) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    worker.before = wait
    call = door.embed.Embed(request("cat"))
    task = asyncio.ensure_future(call)
    await asyncio.wait_for(begun.wait(), 5)
    call.cancel()
    await asyncio.wait_for(cancelled.wait(), 5)
    with pytest.raises((asyncio.CancelledError, grpc.aio.AioRpcError)):
        await task


async def test_a_workers_refusal_comes_through(door: Door, worker: FakeWorker) -> None:
    """Its reason, its sentence and the time to wait."""

    async def overloaded(_: Any, __: Any) -> None:
        raise Overloaded("The queue is full. Try again in 2 seconds.", retry_after_seconds=2)

    worker.before = overloaded
    failure = await refused(door.embed.Embed(request("cat")))
    assert (failure.status, failure.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert failure.message == "The queue is full. Try again in 2 seconds."
    assert failure.trailers["retry-after"] == "2"
    assert len(worker.received) == 1


async def test_keys_are_asked_for_on_every_service(
    open_door: Callable[..., Any], worker: FakeWorker, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without a key, with a wrong one, with a good one, with one for another model; and no key is in the log."""
    auth = f"api_keys: [{KEY}, {{name: reader, sha256: {digest('reader-key')}, models: [fake-rerank]}}]"
    async with open_door(routing(worker), auth=auth) as door:
        await door.until_serving()
        good, wrong, reader = ((("authorization", f"Bearer {key}"),) for key in (KEY, "wrong-key", "reader-key"))
        for call in (
            lambda **options: door.embed.Embed(request("cat"), **options),
            lambda **options: door.models.ListModels(model_pb2.ListModelsRequest(), **options),
            lambda **options: door.post(door.openai.CreateEmbedding, {"model": "fake", "input": "cat"}, **options),
        ):
            failure = await refused(call())
            assert (failure.status, failure.reason) == ("UNAUTHENTICATED", "MISSING_API_KEY")
            assert (await refused(call(metadata=wrong))).reason == "INVALID_API_KEY"
            await call(metadata=good)
        failure = await refused(door.post(door.cohere.RerankV2, b"not even JSON"))
        assert failure.status == "UNAUTHENTICATED", "keys are asked for before a body is read"
        assert (await refused(door.embed.Embed(request("cat"), metadata=reader))).status == "PERMISSION_DENIED"
        listed = await door.models.ListModels(model_pb2.ListModelsRequest(), metadata=reader)
        assert [card.name for card in listed.models] == ["fake-rerank"]
        metrics = door.telemetry.metrics.text().decode()
    assert f'principal="key-{digest(KEY)[:8]}"' in metrics
    written = metrics + "".join(capfd.readouterr())
    assert not any(key in written for key in (KEY, "wrong-key", "reader-key"))
