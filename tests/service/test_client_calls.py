"""The client against a real server: order, retries, deadlines, streams that break, errors of single items."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from quadrate.client import AsyncClient, Client, Embedded, Retries
from quadrate.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    EmptyInput,
    InvalidArgument,
    ModelNotFound,
    Overloaded,
    QuadrateError,
    Unauthenticated,
    Unavailable,
)
from quadrate.health import Health
from quadrate.server import Call, Server
from quadrate.telemetry import Telemetry
from quadrate.testing.ports import free_port
from quadrate.v1 import embed_pb2, model_pb2, options_pb2, rerank_pb2
from tests.standstill import standstill

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

QUICK = Retries(attempts=4, first_wait_seconds=0.01)


class Mesh:
    """A server whose vector for a text is [its length, its first character], and whose failures are written down beforehand."""

    def __init__(self) -> None:
        self.failures: list[QuadrateError] = []
        """Raised by the next calls, one each."""
        self.embedded: list[embed_pb2.EmbedRequest] = []
        self.keys: list[str] = []
        self.priorities: list[str] = []
        self.running = 0
        self.most_running = 0
        self.wait_seconds = 0.0
        self.streams = 0
        self.answers_before_break: int | None = None
        """The next stream breaks after so many answers."""
        self.refusal: QuadrateError | None = None
        """Every stream is refused with it."""
        self.server = Server(
            telemetry=Telemetry.silent("embed"),
            health=Health(),
            services=[_Embed(self), _Rerank(self), _Models(self)],
            host="127.0.0.1",
            port=0,
            http_port=0,
            readiness=lambda: (True, {}),
            drain_seconds=0.0,
        )

    @property
    def target(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.server.port}"

    async def begin(self, call: Call) -> None:
        """Note a call, and fail if that is its turn."""
        self.keys.append(call.metadata.get("authorization", ""))
        self.priorities.append(call.metadata.get("x-quadrate-priority", ""))
        await asyncio.sleep(self.wait_seconds)
        if self.failures:
            raise self.failures.pop(0)


class _Embed:
    descriptor = embed_pb2.DESCRIPTOR.services_by_name["EmbedService"]

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    async def embed(self, request: embed_pb2.EmbedRequest, call: Call) -> embed_pb2.EmbedResponse:
        self._mesh.embedded.append(request)
        self._mesh.running += 1
        self._mesh.most_running = max(self._mesh.most_running, self._mesh.running)
        try:
            await self._mesh.begin(call)
            return _embedded(request)
        finally:
            self._mesh.running -= 1

    async def embed_stream(
        self, stream: AsyncIterator[embed_pb2.EmbedStreamRequest], call: Call
    ) -> AsyncIterator[embed_pb2.EmbedStreamResponse]:
        self._mesh.streams += 1
        if self._mesh.refusal is not None:
            raise self._mesh.refusal
        answered = 0
        async for item in stream:
            self._mesh.embedded.append(item.request)
            if answered == self._mesh.answers_before_break:
                self._mesh.answers_before_break = None
                raise Unavailable("The gateway is going away.")
            yield await self._answer(item, call)
            answered += 1

    async def _answer(self, item: embed_pb2.EmbedStreamRequest, call: Call) -> embed_pb2.EmbedStreamResponse:
        try:
            await self._mesh.begin(call)
            return embed_pb2.EmbedStreamResponse(id=item.id, response=_embedded(item.request))
        except QuadrateError as exc:
            error = options_pb2.Error(
                code=exc.status.value[0],
                message=exc.message,
                reason=exc.reason,
                param=exc.param or "",
                retryable=exc.retryable,
                retry_after_seconds=exc.retry_after_seconds,
            )
            return embed_pb2.EmbedStreamResponse(id=item.id, error=error)


def _embedded(request: embed_pb2.EmbedRequest) -> embed_pb2.EmbedResponse:
    revision = options_pb2.Provenance(revision="r2" if request.inputs and request.inputs[0].text == "exchange" else "r1")
    answer = embed_pb2.EmbedResponse(model=request.model, provenance=revision)
    for place, item in enumerate(request.inputs):
        if not item.text:
            raise EmptyInput(f"inputs[{place}] is empty.", param=f"inputs[{place}].text")
        answer.embeddings.add(index=place, values=[len(item.text), ord(item.text[0])], usage=options_pb2.Usage(tokens=1, tokens_cut=0))
    if not request.inputs:
        raise EmptyInput("inputs is empty: send at least one.", param="inputs")
    answer.usage.tokens = len(request.inputs)
    return answer


class _Rerank:
    descriptor = rerank_pb2.DESCRIPTOR.services_by_name["RerankService"]

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    async def rerank(self, request: rerank_pb2.RerankRequest, call: Call) -> rerank_pb2.RerankResponse:
        await self._mesh.begin(call)
        order = sorted(range(len(request.documents)), key=lambda place: -len(request.documents[place].text))
        answer = rerank_pb2.RerankResponse(model=request.model, warnings=["Document 0 was cut."])
        for place in order[: request.top_n or None]:
            answer.results.add(index=place, relevance_score=len(request.documents[place].text))
        return answer


class _Models:
    descriptor = model_pb2.DESCRIPTOR.services_by_name["ModelService"]

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    async def list_models(self, request: model_pb2.ListModelsRequest, _: Call) -> model_pb2.ListModelsResponse:
        cards = [model_pb2.Model(name="minilm", task=model_pb2.TASK_EMBED), model_pb2.Model(name="rr", task=model_pb2.TASK_RERANK)]
        return model_pb2.ListModelsResponse(models=[card for card in cards if request.task in (0, card.task)])

    async def get_model(self, request: model_pb2.GetModelRequest, _: Call) -> model_pb2.GetModelResponse:
        raise ModelNotFound(f"The model {request.model!r} does not exist.", param="model")

    async def tokenize(self, request: model_pb2.TokenizeRequest, _: Call) -> model_pb2.TokenizeResponse:
        answer = model_pb2.TokenizeResponse(model=request.model)
        for item in request.inputs:
            answer.tokenizations.add(ids=[101, *map(ord, item.text), 102], usage=options_pb2.Usage(tokens=len(item.text) + 2))
        return answer

    async def get_tokenizer(self, _: model_pb2.GetTokenizerRequest, __: Call) -> AsyncIterator[model_pb2.GetTokenizerResponse]:
        yield model_pb2.GetTokenizerResponse()


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    """A running server."""
    running = Mesh()
    await running.server.start()
    yield running
    await running.server.stop()


@pytest.fixture
async def client(mesh: Mesh) -> AsyncIterator[AsyncClient]:
    """A client of it that splits lists into fours and waits little."""
    async with AsyncClient(mesh.target, api_key="k1", texts_per_request=4, requests_in_flight=3, retries=QUICK, timeout_seconds=10) as made:
        yield made


async def test_a_long_list_is_split_and_keeps_its_order(mesh: Mesh, client: AsyncClient) -> None:
    """Twenty-two texts go out as six requests, at most three at once, and come back in order."""
    mesh.wait_seconds = 0.02
    texts = ["x" * size for size in range(1, 23)]
    answer = await client.embed(texts, model="minilm")
    assert answer.vectors.dtype == np.float32
    assert answer.vectors[:, 0].tolist() == list(range(1, 23))
    assert (len(mesh.embedded), mesh.most_running, answer.usage.tokens, len(answer.usages)) == (6, 3, 22, 22)
    assert set(mesh.keys) == {"Bearer k1"}


@pytest.mark.parametrize("code", ["answer_too_large", "too_many_tokens"])
async def test_requests_that_are_too_large_are_halved(mesh: Mesh, client: AsyncClient, code: str) -> None:
    """Until they fit; one text that is too large alone is refused by its place in the whole list."""
    mesh.failures = [InvalidArgument("Too large.", param="inputs", code=code)] * 2
    answer = await client.embed(["x" * size for size in range(1, 5)], model="minilm")
    assert answer.vectors[:, 0].tolist() == [1, 2, 3, 4]
    assert [len(request.inputs) for request in mesh.embedded] == [4, 2, 1, 1, 2]
    mesh.failures = [InvalidArgument("inputs[0] is too large.", param="inputs[0]", code=code)] * 3
    with pytest.raises(InvalidArgument, match=r"inputs\[0\] is too large") as caught:
        await client.embed(["a", "b", "c", "d"], model="minilm")
    assert caught.value.code == code


async def test_options_travel(mesh: Mesh, client: AsyncClient) -> None:
    """Each argument lands in its field; what was not said stays unset."""
    await client.embed("q", model="m", prompt="", truncation="left", dimensions=128, normalize=False)
    sent = mesh.embedded[0]
    assert (sent.model, sent.truncation, sent.dimensions, sent.normalize) == ("m", options_pb2.LEFT, 128, False)
    assert sent.HasField("prompt")
    assert not sent.HasField("prompt_name")


async def test_a_priority_goes_along_with_every_call(mesh: Mesh) -> None:
    """A client that says how its requests stand says so with each of them; one that does not leaves it to the server."""
    for priority in ("bulk", None):
        async with AsyncClient(mesh.target, priority=priority) as made:
            await made.embed(["one"], model="m")
            assert [one async for one in made.embed_stream([("name", "two")], model="m")]
    assert mesh.priorities == ["bulk", "bulk", "", ""]


async def test_lost_calls_are_tried_again(mesh: Mesh, client: AsyncClient) -> None:
    """Two failures that pass cost two waits and no more."""
    mesh.failures = [Unavailable("loading"), Overloaded("full", retry_after_seconds=0.05)]
    started = time.monotonic()
    answer = await client.embed("abc", model="minilm")
    assert answer.vectors.tolist() == [[3.0, 97.0]]
    assert len(mesh.embedded) == 3
    assert time.monotonic() - started >= 0.05


async def test_attempts_are_bounded(mesh: Mesh, client: AsyncClient) -> None:
    """After the last attempt the failure is raised as it is."""
    mesh.failures = [Unavailable("gone")] * 9
    with pytest.raises(Unavailable, match="gone"):
        await client.embed("abc", model="minilm")
    assert len(mesh.embedded) == QUICK.attempts


async def test_what_is_wrong_is_sent_once(mesh: Mesh, client: AsyncClient) -> None:
    """A refusal is raised at once, as its class, with the request id in a note."""
    mesh.failures = [ContextLengthExceeded("300 tokens; the limit is 256.", param="inputs[0].text")]
    with pytest.raises(ContextLengthExceeded, match="300 tokens") as caught:
        await client.embed("abc", model="minilm")
    assert len(mesh.embedded) == 1
    assert caught.value.__notes__[0].startswith("request id: ")


async def test_a_bad_text_is_named_by_its_place_in_the_whole_list(client: AsyncClient) -> None:
    """The second request's second text is the sixth of the list."""
    with pytest.raises(EmptyInput, match=r"inputs\[5\] is empty") as caught:
        await client.embed(["a", "b", "c", "d", "e", "", "g"], model="minilm")
    assert caught.value.param == "inputs[5].text"


async def test_an_empty_list_is_refused_by_the_server(client: AsyncClient) -> None:
    """It is not answered by guess: nobody here knows the width."""
    with pytest.raises(EmptyInput, match="at least one"):
        await client.embed([], model="minilm")


async def test_a_deadline_covers_the_whole_call(mesh: Mesh, client: AsyncClient) -> None:
    """Retries end with the caller's time, and no wait is begun that would go beyond it."""
    mesh.failures = [Overloaded("full", retry_after_seconds=30)]
    started = time.monotonic()
    with pytest.raises(Overloaded):
        await client.embed("abc", model="minilm", timeout_seconds=5)
    assert time.monotonic() - started < 2
    mesh.wait_seconds = 5
    with pytest.raises(DeadlineExceeded):
        await client.embed("abc", model="minilm", timeout_seconds=0.2)


async def test_nobody_there_is_unavailable() -> None:
    """A port without a server is told within the attempts, not after grpc's own patience."""
    async with AsyncClient(f"127.0.0.1:{free_port()}", retries=QUICK, timeout_seconds=10) as client:
        with pytest.raises(Unavailable):
            await client.embed("abc", model="minilm")


async def test_rerank_gives_the_callers_documents_back(client: AsyncClient) -> None:
    """Results name the place, the score and the text that was given."""
    ranking = await client.rerank("q", ["a", "ccc", "bb"], model="minilm-rerank", top_n=2)
    assert [(ranked.index, ranked.relevance_score, ranked.document) for ranked in ranking] == [(1, 3.0, "ccc"), (2, 2.0, "bb")]
    assert ranking.warnings == ("Document 0 was cut.",)


async def test_models_and_tokens(client: AsyncClient) -> None:
    """Cards by task, one card by name, ids with special tokens."""
    assert [card.name for card in await client.models()] == ["minilm", "rr"]
    assert [card.name for card in await client.models(task="rerank")] == ["rr"]
    with pytest.raises(ModelNotFound, match="'nope' does not exist"):
        await client.model("nope")
    tokens = await client.tokenize(["ab"], model="minilm")
    assert tokens.ids[0].tolist() == [101, 97, 98, 102]
    assert tokens.usages[0].tokens == 4


async def _all(answers: AsyncIterator[Embedded]) -> dict[Any, Embedded]:
    found: dict[Any, Embedded] = {}
    async for answer in answers:
        assert answer.id not in found, f"{answer.id} was answered twice"
        found[answer.id] = answer
    return found


async def test_a_stream_answers_every_item_under_its_name(mesh: Mesh, client: AsyncClient) -> None:
    """Names are the caller's own objects; one stream carries all."""
    items = [((place, "doc"), "x" * (place + 1)) for place in range(100)]
    found = await _all(client.embed_stream(items, model="minilm"))
    assert {name: float(answer.value()[0]) for name, answer in found.items()} == {(place, "doc"): place + 1.0 for place in range(100)}
    assert mesh.streams == 1


async def test_a_bad_item_costs_its_neighbours_nothing(client: AsyncClient) -> None:
    """An empty text and one that is no text have errors under their names; the other fourteen have vectors."""
    items = [(place, "" if place == 3 else "\ud800" if place == 5 else "fine") for place in range(16)]
    found = await _all(client.embed_stream(items, model="minilm"))
    assert {name: type(answer.error) for name, answer in found.items() if answer.error} == {3: EmptyInput, 5: InvalidArgument}
    assert sum(answer.vector is not None for answer in found.values()) == 14
    with pytest.raises(EmptyInput):
        found[3].value()


async def test_items_that_fail_for_the_moment_are_tried_again(mesh: Mesh, client: AsyncClient) -> None:
    """The stream goes on meanwhile, and a failure that does not pass is told under the name."""
    mesh.failures = [Overloaded("full", retry_after_seconds=0.02)] * 2
    found = await _all(client.embed_stream([(1, "a"), (2, "b")], model="minilm", texts_per_message=1))
    assert all(answer.error is None for answer in found.values())
    mesh.failures = [Overloaded("full", retry_after_seconds=0.001)] * QUICK.attempts
    found = await _all(client.embed_stream([(1, "a"), (2, "b")], model="minilm"))
    assert {type(answer.error) for answer in found.values()} == {Overloaded}


async def test_a_broken_stream_is_opened_again_and_nothing_is_lost(mesh: Mesh, client: AsyncClient) -> None:
    """What was on its way when the gateway went is sent once more."""
    mesh.answers_before_break = 7
    found = await _all(client.embed_stream(((place, f"text {place}") for place in range(60)), model="minilm", texts_per_message=2))
    assert sorted(found) == list(range(60))
    assert mesh.streams == 2


async def test_a_stream_that_cannot_be_had_raises(mesh: Mesh, client: AsyncClient) -> None:
    """Nobody there is the whole stream's failure."""
    await mesh.server.stop()
    with pytest.raises(Unavailable):
        await _all(client.embed_stream([(1, "a")], model="minilm"))


async def test_a_stream_that_is_refused_says_why(mesh: Mesh, client: AsyncClient) -> None:
    """The refusal is told even when it meets texts that are on their way."""
    mesh.refusal = Unauthenticated("This key is not known.")
    items = [(place, "text" * 500) for place in range(200)]
    for _ in range(20):
        with pytest.raises(Unauthenticated, match="not known"):
            await _all(client.embed_stream(items, model="minilm"))


async def test_a_stream_never_mixes_revisions(client: AsyncClient) -> None:
    """When the model is exchanged in the middle, the stream ends with an error; what came before stays good."""
    seen = []
    with pytest.raises(Unavailable, match="exchanged"):
        async for answer in client.embed_stream([(1, "a"), (2, "exchange"), (3, "b")], model="minilm", texts_per_message=1):
            seen.append(answer)  # noqa: PERF401 - a comprehension would lose what came before
    assert [(answer.id, answer.provenance.revision) for answer in seen if answer.provenance] == [(1, "r1")]


async def test_a_slow_caller_holds_up_the_source(mesh: Mesh, client: AsyncClient) -> None:
    """While nothing is taken, no more is read than fits into flight, however much there is."""
    read = 0

    async def endless() -> AsyncIterator[tuple[int, str]]:
        nonlocal read
        while True:
            yield read, "text"
            read += 1
            await asyncio.sleep(0)

    answers = client.embed_stream(endless(), model="minilm", texts_per_message=4)
    await anext(answers)
    assert await standstill(lambda: read, lambda: client.embed("text", model="minilm")) < 400
    await answers.aclose()


async def test_the_first_answer_does_not_wait_for_the_last_item(client: AsyncClient) -> None:
    """A source that trickles is answered as it trickles."""
    more = asyncio.Event()

    async def slow() -> AsyncIterator[tuple[int, str]]:
        yield 1, "a"
        await more.wait()
        yield 2, "b"

    answers = client.embed_stream(slow(), model="minilm")
    assert (await asyncio.wait_for(anext(answers), 5)).id == 1
    more.set()
    assert [answer.id async for answer in answers] == [2]


async def test_a_source_that_fails_is_told_after_what_it_gave(client: AsyncClient) -> None:
    """What was read before the failure is answered, then the failure is raised."""

    def broken() -> Iterator[tuple[int, str]]:
        yield 1, "a"
        raise OSError("the disk is gone")

    seen = []
    with pytest.raises(OSError, match="disk is gone"):
        async for answer in client.embed_stream(broken(), model="minilm"):
            seen.append(answer.id)  # noqa: PERF401 - a comprehension would lose what came before
    assert seen == [1]


async def test_no_items_are_no_answers(client: AsyncClient) -> None:
    """An empty source ends at once."""
    assert await _all(client.embed_stream([], model="minilm")) == {}


async def test_leaving_a_stream_early_leaves_nothing_behind(mesh: Mesh, client: AsyncClient) -> None:
    """After the first answer the caller goes; the client still works and no task of the stream is left."""
    before = asyncio.all_tasks()
    answers = client.embed_stream(((place, "text") for place in range(10_000)), model="minilm")
    await anext(answers)
    await answers.aclose()
    assert (await client.embed("abc", model="minilm")).vectors.shape == (1, 2)
    left = {task for task in asyncio.all_tasks() - before if "quadrate/client" in str(task.get_coro())}
    assert not left


async def test_the_blocking_client_is_the_same(mesh: Mesh) -> None:
    """Every method works without an event loop of the caller's, streams by plain iteration."""

    def use() -> None:
        with Client(mesh.target, api_key="k2", retries=QUICK) as client:
            assert client.embed(["ab", "c"], model="minilm").vectors.tolist() == [[2.0, 97.0], [1.0, 99.0]]
            assert client.rerank("q", ["a", "bb"], model="rr").results[0].document == "bb"
            assert [card.name for card in client.models()] == ["minilm", "rr"]
            assert sorted(answer.id for answer in client.embed_stream(zip("abc", "xyz", strict=True), model="minilm")) == ["a", "b", "c"]
            stream = client.embed_stream([(place, "text") for place in range(50)], model="minilm")
            next(stream)
            stream.close()
            with pytest.raises(ModelNotFound):
                client.model("nope")
        client.close()

    await asyncio.to_thread(use)
    assert set(mesh.keys) == {"Bearer k2"}


async def test_a_refused_key_is_raised_as_such(mesh: Mesh, client: AsyncClient) -> None:
    """A wrong key is no reason to try again."""
    mesh.failures = [Unauthenticated("This key is not known.")]
    with pytest.raises(Unauthenticated):
        await client.embed("a", model="minilm")
    assert len(mesh.embedded) == 1


async def test_an_interrupted_stream_ends_cleanly(mesh: Mesh) -> None:
    """Ctrl-C while waiting for an answer is a KeyboardInterrupt, and the client can be closed and the stream is gone."""

    async def asked() -> None:
        while not mesh.embedded:
            await asyncio.sleep(0.01)

    def use() -> None:
        mesh.wait_seconds = 60
        with Client(mesh.target) as client:
            interrupted = client._wait

            def interrupt_first(coroutine: Any) -> Any:
                client._wait = interrupted  # type: ignore[method-assign]
                future = asyncio.run_coroutine_threadsafe(coroutine, client._loop)
                asyncio.run_coroutine_threadsafe(asked(), client._loop).result()
                future.cancel()
                raise KeyboardInterrupt

            client._wait = interrupt_first  # type: ignore[method-assign]
            with pytest.raises(KeyboardInterrupt):
                next(client.embed_stream([(1, "a")], model="minilm"))

    await asyncio.wait_for(asyncio.to_thread(use), 10)
