"""The client, for asyncio. `quadrate.client.Client` is the same for everybody else."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Unpack

from quadrate.client import requests
from quadrate.client.answers import Embedded, Embeddings, Model, Ranking, Tokens
from quadrate.client.connection import Connection, Deadline
from quadrate.client.ingestion import Ingestion
from quadrate.client.progress import length, progress_bar
from quadrate.client.retries import Retries
from quadrate.client.source import Source
from quadrate.client.target import Target
from quadrate.config.tls import ClientTls, KeyPair
from quadrate.errors import InvalidArgument, QuadrateError
from quadrate.v1 import embed_pb2_grpc, model_pb2, model_pb2_grpc, rerank_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Sequence
    from pathlib import Path

    from quadrate.client.requests import Choices, Role, Text, Truncation
    from quadrate.v1 import embed_pb2

IdT = TypeVar("IdT")
PartT = TypeVar("PartT")
AnswerT = TypeVar("AnswerT")


class AsyncClient:
    """Calls a gateway or a worker. Use it with `async with`, or call `close`.

    Every method raises the classes of `quadrate.errors`: `ModelNotFound`, `ContextLengthExceeded`, `Overloaded` and so on.

    Args:
        target: `host:port`, `http://host:port`, or `https://host:port` for TLS. Without a port 8085, 80 and 443.
        api_key: Sent as `authorization: Bearer …`. None sends nothing.
        timeout_seconds: How long a whole call may take, retries included, unless the call says otherwise. None waits for ever.
        retries: What is tried again and when: only what is lost or refused for the moment, never beyond the deadline.
        texts_per_request: A longer list is split into requests of so many texts.
        requests_in_flight: So many of them are sent at once.
        priority: How its requests stand where others wait, too: `interactive` or `bulk`. None: streams are bulk, all else is not.
        certificates: A PEM file with the authorities to trust for TLS. None trusts those that grpc brings along.
        identity: PEM files of a certificate and its key, to show where the mesh asks its callers for one (mTLS).
    """

    def __init__(  # noqa: PLR0913 - a client has so many settings
        self,
        target: str = "localhost:8085",
        *,
        api_key: str | None = None,
        timeout_seconds: float | None = 60.0,
        retries: Retries | None = None,
        texts_per_request: int = 64,
        requests_in_flight: int = 8,
        priority: Literal["interactive", "bulk"] | None = None,
        certificates: Path | None = None,
        identity: tuple[Path, Path] | None = None,
    ) -> None:
        for name, value in (("texts_per_request", texts_per_request), ("requests_in_flight", requests_in_flight)):
            if value < 1:
                raise InvalidArgument(f"{name} is {value}; it must be 1 or more.", param=name)
        tls = ClientTls(certificates, None if identity is None else KeyPair(*identity))
        headers = {"authorization": None if api_key is None else f"Bearer {api_key}", "x-quadrate-priority": priority}
        metadata = tuple((name, value) for name, value in headers.items() if value is not None)
        self._connection = Connection(Target.parse(target), metadata=metadata, tls=tls, retries=retries or Retries())
        self._timeout_seconds = timeout_seconds
        self._texts_per_request = texts_per_request
        self._requests_in_flight = requests_in_flight

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. Calls in flight are cancelled."""
        await self._connection.close()

    async def embed(
        self, texts: str | Sequence[Text], *, model: str, timeout_seconds: float | None = None, **choices: Unpack[Choices]
    ) -> Embeddings:
        """Embed one text or a list of any length; the rows of the answer stand in the order of the texts.

        A long list goes out as several requests, several at once; one that is refused as too large goes out again as two halves. It is
        answered whole or the first failure is raised, with places told in terms of the whole list.

        Args:
            texts: Texts, or lists of token ids of the model's own tokenizer without special tokens.
            model: The alias or the served name.
            timeout_seconds: For the whole call. None takes the client's.
            **choices: What else may be said:

        Choices:
            role: `query` or `document`, for models that have a prompt for each.
            prompt: A prompt to put before each text, as it stands. Empty means none. Not with `role`.
            prompt_name: The name of one of the model's prompts.
            instruction: What is looked for, for models whose queries carry an instruction.
            truncation: `none` refuses what is too long, `left` and `right` cut it. None leaves it to the model's card.
            outputs: `dense`, `sparse`, `multi_vector`, or several of them, as the model's card lists them. Nothing means `dense`.
            value_type: Of dense vectors and multi-vectors: `float32`, `float16`, `int8`, `uint8`, `binary`, `ubinary`. int8 is
                round(16·√width·x) of vectors of length one; see `quadrate.vectors`.
            dimensions: The width to cut dense vectors to, for Matryoshka models.
            normalize: Whether dense vectors get length one. None leaves it to the model's card.
        """
        options = requests.EmbedOptions(model, **choices)
        deadline = self._deadline(timeout_seconds)

        async def one(part: tuple[int, Sequence[Text]]) -> list[embed_pb2.EmbedResponse]:
            start, some = part
            try:
                return [await self._connection.call(_embed, options.request(requests.inputs(some)), deadline)]
            except QuadrateError as error:
                if len(some) == 1 or error.code not in requests.TOO_LARGE:
                    raise requests.moved(error, start) from None
            half = len(some) // 2
            return [*await one((start, some[:half])), *await one((start + half, some[half:]))]

        parts = requests.parts(requests.as_list(texts), self._texts_per_request)
        answers = await _at_once(one, parts, self._requests_in_flight)
        return Embeddings.of(list(chain.from_iterable(answers)), requests.dtype(options.value_type))

    async def embed_stream(
        self,
        items: Iterable[tuple[IdT, Text]] | AsyncIterable[tuple[IdT, Text]],
        *,
        model: str,
        texts_per_message: int = 16,
        progress: bool = False,
        total: int | None = None,
        timeout_seconds: float | None = None,
        **choices: Unpack[Choices],
    ) -> AsyncGenerator[Embedded, None]:
        """Embed any number of texts, each under a name of the caller's, and yield the answers as they are ready, not in order.

        A text that cannot be embedded yields an `Embedded` with its error; the others go on. A connection that breaks is made again and
        nothing is lost or answered twice. If the model is exchanged meanwhile, the stream ends with Unavailable rather than mix vectors
        that cannot be compared. Items are read as far ahead as there is room; who takes answers slowly holds up the reading.

        Args:
            items: Pairs of a name (anything) and a text. A generator may block: it is read in a thread of its own.
            model: As in `embed`.
            texts_per_message: So many texts travel together, if they are there.
            progress: Draw a bar on standard error, if that is a terminal.
            total: How many items there will be, for the bar. Known by itself for lists.
            timeout_seconds: For the whole stream. None waits for ever.
            **choices: As in `embed`.
        """
        ingestion = Ingestion(
            self._connection,
            requests.EmbedOptions(model, **choices),
            Deadline.after(timeout_seconds),
            texts_per_group=texts_per_message,
            groups_in_flight=self._requests_in_flight,
        )
        expected = length(items) if total is None else total
        with progress_bar(shown=progress, total=expected, title=model) as advance:
            async with Source(items) as source, aclosing(ingestion.answers(source)) as answers:
                async for embedded in answers:
                    advance()
                    yield embedded

    async def rerank(  # noqa: PLR0913 - what the contract offers
        self,
        query: str,
        documents: Sequence[Text],
        *,
        model: str,
        top_n: int | None = None,
        max_tokens_per_doc: int | None = None,
        truncation: Truncation | None = None,
        raw_scores: bool | None = None,
        instruction: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Ranking:
        """Order documents by their relevance to a query: best first, equal scores by index.

        Args:
            query: What is looked for.
            documents: The candidates, at most as many as the route allows (50 unless configured).
            model: The alias or the served name.
            top_n: Only the best so many.
            max_tokens_per_doc: Cut each document to so many tokens.
            truncation: What happens to documents that are too long, as in `embed`.
            raw_scores: Scores without the model's activation.
            instruction: What relevance means, for models that take one.
            timeout_seconds: For the whole call. None takes the client's.
        """
        request = requests.rerank(
            query,
            documents,
            model=model,
            top_n=top_n,
            max_tokens_per_doc=max_tokens_per_doc,
            truncate=truncation,
            raw_scores=raw_scores,
            instruction=instruction,
        )
        return Ranking.of(await self._connection.call(_rerank, request, self._deadline(timeout_seconds)), documents)

    async def tokenize(
        self,
        texts: str | Sequence[Text],
        *,
        model: str,
        role: Role | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncation: Truncation | None = None,
        timeout_seconds: float | None = None,
    ) -> Tokens:
        """Return the ids that the model would read and the count that would be charged. Runs no model and charges nothing.

        The arguments mean what they mean in `embed`, except that a text which is too long is cut on the right unless `truncation` says
        otherwise.
        """
        request = model_pb2.TokenizeRequest(
            model=model,
            inputs=requests.inputs(requests.as_list(texts)),
            role=requests.role(role),
            prompt=prompt,
            prompt_name=prompt_name,
            truncation=requests.truncation(truncation),
        )
        return Tokens.of(await self._connection.call(_tokenize, request, self._deadline(timeout_seconds)))

    async def models(self, *, task: str | None = None, timeout_seconds: float | None = None) -> tuple[Model, ...]:
        """Return the models that can be called, ordered by name: all, or those for `embed` or `rerank`."""
        request = model_pb2.ListModelsRequest(task=requests.task(task))
        answer = await self._connection.call(_list_models, request, self._deadline(timeout_seconds))
        return tuple(Model.of(message) for message in answer.models)

    async def model(self, name: str, *, timeout_seconds: float | None = None) -> Model:
        """Return one model by alias or served name."""
        answer = await self._connection.call(_get_model, model_pb2.GetModelRequest(model=name), self._deadline(timeout_seconds))
        return Model.of(answer.model)

    def _deadline(self, timeout_seconds: float | None) -> Deadline:
        return Deadline.after(self._timeout_seconds if timeout_seconds is None else timeout_seconds)


def _embed(channel: Any) -> Any:
    return embed_pb2_grpc.EmbedServiceStub(channel).Embed


def _rerank(channel: Any) -> Any:
    return rerank_pb2_grpc.RerankServiceStub(channel).Rerank


def _tokenize(channel: Any) -> Any:
    return model_pb2_grpc.ModelServiceStub(channel).Tokenize


def _list_models(channel: Any) -> Any:
    return model_pb2_grpc.ModelServiceStub(channel).ListModels


def _get_model(channel: Any) -> Any:
    return model_pb2_grpc.ModelServiceStub(channel).GetModel


async def _at_once(function: Callable[[PartT], Awaitable[AnswerT]], parts: Iterable[PartT], most: int) -> list[AnswerT]:
    """Return `function` of each part, in order, with at most so many running. The first failure ends the others and is raised."""
    waiting = iter(enumerate(parts))
    answers: dict[int, AnswerT] = {}

    async def work() -> None:
        for place, part in waiting:
            answers[place] = await function(part)

    tasks = [asyncio.create_task(work()) for _ in range(most)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [answers[place] for place in range(len(answers))]
