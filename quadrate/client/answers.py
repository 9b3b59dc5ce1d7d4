"""What calls give back: plain frozen values with numpy inside."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from quadrate.errors import InvalidArgument, Unavailable
from quadrate.pairs import PairLayout
from quadrate.v1 import model_pb2, options_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from quadrate.errors import QuadrateError
    from quadrate.v1 import embed_pb2, rerank_pb2


FLOAT32 = np.dtype("<f4")


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that the model read, special tokens and prompt included, and tokens that truncation cut."""

    tokens: int
    tokens_cut: int

    @classmethod
    def of(cls, message: options_pb2.Usage) -> Self:
        """Read it from the wire."""
        return cls(message.tokens, message.tokens_cut)

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.tokens + other.tokens, self.tokens_cut + other.tokens_cut)


@dataclass(frozen=True, slots=True)
class Provenance:
    """What made an answer. `precision` is `exact`, `fast`, `small`, or empty where the server does not say.

    `fingerprint` stands for the model's card and files, so far as vectors depend on them; empty where the server does not say.
    """

    revision: str
    prompt: str
    precision: str
    provider: str
    pooling: str
    normalized: bool
    fingerprint: str = ""

    @classmethod
    def of(cls, message: options_pb2.Provenance) -> Self:
        """Read it from the wire."""
        return cls(
            message.revision,
            message.prompt,
            _word(options_pb2.Precision, message.precision),
            message.provider,
            message.pooling,
            message.normalized,
            message.fingerprint,
        )

    def check_comparable(self, other: Provenance) -> None:
        """Raise Unavailable if vectors made in this and in the other way cannot be compared. Only the provider may differ."""
        if replace(self, provider=other.provider) != other:
            raise Unavailable("The model was exchanged while its answers came in, so that their vectors cannot be compared. Call again.")


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the server's time went, in seconds. Of several requests, the longest of each."""

    tokenize_seconds: float
    queue_seconds: float
    inference_seconds: float
    total_seconds: float

    @classmethod
    def of(cls, message: options_pb2.Timings) -> Self:
        """Read it from the wire."""
        return cls(message.tokenize_seconds, message.queue_seconds, message.inference_seconds, message.total_seconds)

    def __or__(self, other: Timings) -> Timings:
        return Timings(*(max(getattr(self, field.name), getattr(other, field.name)) for field in fields(Timings)))


@dataclass(frozen=True, slots=True, eq=False)
class SparseVector:
    """Weights of vocabulary entries: `token_ids` int32 [n], ascending, and `weights` float32 [n], greater than zero."""

    token_ids: NDArray[np.int32]
    weights: NDArray[np.float32]

    @classmethod
    def of(cls, message: embed_pb2.SparseVector) -> Self:
        """Read it from the wire."""
        return cls(np.array(message.token_ids, np.int32), np.array(message.weights, np.float32))

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """The embeddings of a list of texts.

    Args:
        vectors: Dense vectors, one row for each text, in the order of the texts: float32 [texts, dimensions], or as `value_type` says;
            `binary` and `ubinary` have eight values a byte. No columns if dense vectors were not asked for.
        sparse: A sparse vector for each text; empty if they were not asked for.
        multi_vectors: A matrix for each text, [rows, width], in the same value type; empty if they were not asked for.
        model: The model as it was asked for.
        usage: Tokens of all texts together.
        usages: Tokens of each text.
        provenance: What made them.
        timings: Where the time went; over several requests the longest of each stage.
    """

    vectors: NDArray[Any]
    sparse: tuple[SparseVector, ...]
    multi_vectors: tuple[NDArray[Any], ...]
    model: str
    usage: Usage
    usages: tuple[Usage, ...]
    provenance: Provenance
    timings: Timings

    @classmethod
    def of(cls, messages: Sequence[embed_pb2.EmbedResponse], dtype: np.dtype[Any] = FLOAT32) -> Self:
        """Join the answers to consecutive parts of one list, in the type of numbers that was asked for.

        Raises Unavailable if they were made in ways that cannot be compared, which happens when a model is exchanged in between.
        """
        provenances = [Provenance.of(message.provenance) for message in messages]
        for provenance in provenances[1:]:
            provenance.check_comparable(provenances[0])
        embeddings = [embedding for message in messages for embedding in message.embeddings]
        timings = Timings.of(messages[0].timings)
        for message in messages[1:]:
            timings |= Timings.of(message.timings)
        return cls(
            vectors=matrix(embeddings, dtype),
            sparse=tuple(SparseVector.of(embedding.sparse) for embedding in embeddings if embedding.HasField("sparse")),
            multi_vectors=tuple(multi_vector(one.multi_vector, dtype) for one in embeddings if one.HasField("multi_vector")),
            model=messages[0].model,
            usage=sum((Usage.of(message.usage) for message in messages), Usage(0, 0)),
            usages=tuple(Usage.of(embedding.usage) for embedding in embeddings),
            provenance=provenances[0],
            timings=timings,
        )

    def __len__(self) -> int:
        return len(self.vectors)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return iter(self.vectors)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:  # noqa: FBT001 - numpy's protocol
        return np.array(self.vectors, dtype=dtype, copy=copy)


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """One item of a stream: what was asked for of its text, or the error that it met.

    Args:
        id: What the caller named the item.
        vector: The dense vector, float32 [dimensions] or as `value_type` says. None if there is an error or it was not asked for.
        sparse: The sparse vector. None likewise.
        multi_vector: [rows, width]. None likewise.
        usage: Tokens of the text. None if there is an error.
        provenance: What made the vector; comparable in all items of a stream. None if there is an error.
        error: Why there is no vector. None if there is one.
    """

    id: Any
    vector: NDArray[Any] | None = None
    sparse: SparseVector | None = None
    multi_vector: NDArray[Any] | None = None
    usage: Usage | None = None
    provenance: Provenance | None = None
    error: QuadrateError | None = None

    @classmethod
    def of(cls, name: Any, message: embed_pb2.Embedding, provenance: Provenance, dtype: np.dtype[Any]) -> Self:
        """Read it from the wire."""
        return cls(
            name,
            vector=dense(message, dtype) if message.values or message.packed_values else None,
            sparse=SparseVector.of(message.sparse) if message.HasField("sparse") else None,
            multi_vector=multi_vector(message.multi_vector, dtype) if message.HasField("multi_vector") else None,
            usage=Usage.of(message.usage),
            provenance=provenance,
        )

    def value(self) -> NDArray[Any]:
        """Return the dense vector, or raise the error."""
        if self.vector is None:
            raise self.error or InvalidArgument("The item has no dense vector: outputs did not ask for one.", param="outputs")
        return self.vector


@dataclass(frozen=True, slots=True)
class Ranked:
    """A document's place. `index` is its position in the list that was given, `document` its text (None where ids were given)."""

    index: int
    relevance_score: float
    document: str | None
    usage: Usage


@dataclass(frozen=True, slots=True)
class Ranking:
    """The documents by relevance: best first, equal scores by index."""

    results: tuple[Ranked, ...]
    model: str
    usage: Usage
    provenance: Provenance
    timings: Timings
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, message: rerank_pb2.RerankResponse, documents: Sequence[str | Sequence[int]]) -> Self:
        """Read it from the wire; the documents' texts are the caller's own."""
        results = (
            Ranked(result.index, result.relevance_score, _text(documents[result.index]), Usage.of(result.usage))
            for result in message.results
        )
        return cls(
            results=tuple(results),
            model=message.model,
            usage=Usage.of(message.usage),
            provenance=Provenance.of(message.provenance),
            timings=Timings.of(message.timings),
            warnings=tuple(message.warnings),
        )

    def __iter__(self) -> Iterator[Ranked]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """The token ids of each text as the model reads it: special tokens and prompt included, after truncation."""

    ids: tuple[NDArray[np.int32], ...]
    usage: Usage
    usages: tuple[Usage, ...]

    @classmethod
    def of(cls, message: model_pb2.TokenizeResponse) -> Self:
        """Read it from the wire."""
        return cls(
            ids=tuple(np.array(tokenization.ids, dtype=np.int32) for tokenization in message.tokenizations),
            usage=Usage.of(message.usage),
            usages=tuple(Usage.of(tokenization.usage) for tokenization in message.tokenizations),
        )


@dataclass(frozen=True, slots=True)
class Model:
    """A model's card. The fields mean what they mean in `proto/quadrate/v1/model.proto`; words are in lower case."""

    name: str
    served_name: str
    task: Literal["embed", "rerank", ""]
    state: Literal["loading", "ready", "unavailable", "disabled", ""]
    state_reason: str
    description: str
    revision: str
    architecture: str
    dimensions: int | None
    matryoshka_dimensions: tuple[int, ...]
    max_tokens: int | None
    pooling: str
    normalized: bool | None
    prompts: dict[str, str]
    default_prompt_name: str
    truncation: str
    outputs: tuple[str, ...]
    precision: str
    provider: str
    license: str
    tokenizer_sha256: str
    vocabulary_size: int | None
    created: int | None
    pair: PairLayout | None
    instruction_template: str
    load_progress: float | None
    memory_mib: int | None
    activation: str
    fingerprint: str
    multi_vector_dimensions: int | None
    matryoshka_dimensions_from: int | None

    @classmethod
    def of(cls, message: model_pb2.Model) -> Self:
        """Read it from the wire."""
        values = {field.name: _field(message, field.name) for field in fields(cls)}
        values["pair"] = PairLayout.of(message.pair) if message.HasField("pair") else None
        values["task"] = _word(model_pb2.Task, message.task, "TASK_")
        values["state"] = _word(model_pb2.ModelState, message.state, "MODEL_STATE_")
        values["truncation"] = _word(options_pb2.Truncation, message.truncation)
        values["precision"] = _word(options_pb2.Precision, message.precision)
        values["outputs"] = tuple(_word(options_pb2.Output, output) for output in message.outputs)
        values["matryoshka_dimensions"] = tuple(message.matryoshka_dimensions)
        values["prompts"] = dict(message.prompts)
        return cls(**values)


def matrix(embeddings: Sequence[embed_pb2.Embedding], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the dense vectors of an answer: [embeddings, dimensions], without columns if there are none."""
    return np.stack([dense(embedding, dtype) for embedding in embeddings])


def dense(embedding: embed_pb2.Embedding, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return one dense vector: [dimensions]; empty if it was not asked for."""
    if dtype == FLOAT32:
        return np.array(embedding.values, FLOAT32)
    return np.frombuffer(embedding.packed_values, dtype)


def multi_vector(message: embed_pb2.MultiVector, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return one multi-vector: [rows, width]."""
    values = np.array(message.values, FLOAT32) if dtype == FLOAT32 else np.frombuffer(message.packed_values, dtype)
    return values.reshape(message.rows, message.width)


def _text(document: str | Sequence[int]) -> str | None:
    return document if isinstance(document, str) else None


def _field(message: model_pb2.Model, name: str) -> Any:
    descriptor = message.DESCRIPTOR.fields_by_name[name]
    return getattr(message, name) if not descriptor.has_presence or message.HasField(name) else None


def _word(enum: Any, number: int, prefix: str = "") -> str:
    """Return an enum's value as a word in lower case; empty for 0 and for numbers of a newer contract."""
    if number == 0 or number not in enum.values():
        return ""
    return str(enum.Name(number)).removeprefix(prefix).lower()
