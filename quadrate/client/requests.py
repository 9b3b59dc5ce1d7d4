"""Requests as the wire wants them, from what people pass."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, TypeVar

from quadrate.errors import InvalidArgument
from quadrate.v1 import embed_pb2, model_pb2, options_pb2, rerank_pb2
from quadrate.vectors import DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from quadrate.errors import QuadrateError

Text: TypeAlias = "str | Sequence[int]"
"""A text, or the token ids of one without special tokens."""
NumberT = TypeVar("NumberT")
Role = Literal["query", "document"]
Form = Literal["dense", "sparse", "multi_vector"]
ValueType = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
Truncation = Literal["none", "left", "right"]

MAX_CHARACTERS = 1 << 20
"""Characters in one request, unless a single text has more: at most 4 MiB of UTF-8, half of what the edge lets through."""
TOO_LARGE = frozenset({"answer_too_large", "too_many_tokens"})
"""Codes of refusals that fewer texts in a request do not meet: multi-vectors, and texts of many thousand tokens, add up."""

_ROLES: dict[str | None, options_pb2.Role] = {
    None: options_pb2.ROLE_UNSPECIFIED,
    "query": options_pb2.QUERY,
    "document": options_pb2.DOCUMENT,
}
_TASKS: dict[str | None, model_pb2.Task] = {
    None: model_pb2.TASK_UNSPECIFIED,
    "embed": model_pb2.TASK_EMBED,
    "rerank": model_pb2.TASK_RERANK,
}
_TRUNCATIONS: dict[str | None, options_pb2.Truncation] = {
    None: options_pb2.TRUNCATION_UNSPECIFIED,
    "none": options_pb2.NONE,
    "left": options_pb2.LEFT,
    "right": options_pb2.RIGHT,
}
_FORMS: dict[str | None, options_pb2.Output] = {
    "dense": options_pb2.DENSE,
    "sparse": options_pb2.SPARSE,
    "multi_vector": options_pb2.MULTI_VECTOR,
}
_VALUE_TYPES: dict[str | None, options_pb2.ValueType] = {
    None: options_pb2.VALUE_TYPE_UNSPECIFIED,
    "float32": options_pb2.FLOAT32,
    "float16": options_pb2.FLOAT16,
    "int8": options_pb2.INT8,
    "uint8": options_pb2.UINT8,
    "binary": options_pb2.BINARY,
    "ubinary": options_pb2.UBINARY,
}


class Choices(TypedDict, total=False):
    """How texts are to be embedded, as `embed` and `embed_stream` take it; see `AsyncClient.embed`."""

    role: Role | None
    prompt: str | None
    prompt_name: str | None
    instruction: str | None
    truncation: Truncation | None
    outputs: Form | Sequence[Form]
    value_type: ValueType | None
    dimensions: int | None
    normalize: bool | None


@dataclass(frozen=True, slots=True)
class EmbedOptions:
    """How texts are to be embedded; see `AsyncClient.embed`. Raises InvalidArgument for words that are not known."""

    model: str
    role: Role | None = None
    prompt: str | None = None
    prompt_name: str | None = None
    instruction: str | None = None
    truncation: Truncation | None = None
    outputs: Form | Sequence[Form] = ()
    value_type: ValueType | None = None
    dimensions: int | None = None
    normalize: bool | None = None

    def __post_init__(self) -> None:
        role(self.role)
        truncation(self.truncation)
        _choice(_VALUE_TYPES, self.value_type, "value_type")
        _outputs(self.outputs)

    def request(self, inputs: Sequence[options_pb2.Input]) -> embed_pb2.EmbedRequest:
        """Return the request for these inputs."""
        return embed_pb2.EmbedRequest(
            model=self.model,
            inputs=inputs,
            role=role(self.role),
            prompt=self.prompt,
            prompt_name=self.prompt_name,
            instruction=self.instruction,
            truncation=truncation(self.truncation),
            outputs=_outputs(self.outputs),
            value_type=_VALUE_TYPES[self.value_type],
            dimensions=self.dimensions,
            normalize=self.normalize,
        )


def dtype(word: ValueType | None) -> np.dtype[Any]:
    """Return what numpy calls a value type."""
    return DTYPES[_VALUE_TYPES[word]]


def _outputs(forms: Form | Sequence[Form]) -> list[options_pb2.Output]:
    """Return one form or several by their numbers. Raises InvalidArgument."""
    return [_choice(_FORMS, form, "outputs") for form in ([forms] if isinstance(forms, str) else forms)]


def role(word: str | None) -> options_pb2.Role:
    """Return the role of this name. Raises InvalidArgument."""
    return _choice(_ROLES, word, "role")


def truncation(word: str | None) -> options_pb2.Truncation:
    """Return the truncation of this name. Raises InvalidArgument."""
    return _choice(_TRUNCATIONS, word, "truncation")


def task(word: str | None) -> model_pb2.Task:
    """Return the task of this name. Raises InvalidArgument."""
    return _choice(_TASKS, word, "task")


def inputs(texts: Sequence[Text], *, name: str = "inputs") -> list[options_pb2.Input]:
    """Return texts or token ids as inputs. Raises InvalidArgument, naming the place, for what is neither or is no valid text."""
    return [one_input(text, param=f"{name}[{place}]") for place, text in enumerate(texts)]


def one_input(text: Text, *, param: str) -> options_pb2.Input:
    """Return one text or list of token ids as an input. Raises InvalidArgument."""
    try:
        if isinstance(text, str):
            return options_pb2.Input(text=text)
        return options_pb2.Input(token_ids=options_pb2.TokenIds(ids=text))
    except UnicodeEncodeError:
        raise InvalidArgument(f"{param} holds half a surrogate pair, which UTF-8 cannot carry. Clean the text.", param=param) from None
    except (TypeError, ValueError):
        raise InvalidArgument(f"{param} must be a text or a list of token ids, which are 32-bit integers.", param=param) from None


def as_list(texts: str | Sequence[Text]) -> Sequence[Text]:
    """Return one text as a list of one."""
    return [texts] if isinstance(texts, str) else texts


def rerank(
    query: str,
    documents: Sequence[Text],
    *,
    model: str,
    top_n: int | None,
    max_tokens_per_doc: int | None,
    truncate: Truncation | None,
    raw_scores: bool | None,
    instruction: str | None,
) -> rerank_pb2.RerankRequest:
    """Return the request that orders `documents`. Raises InvalidArgument."""
    one_input(query, param="query")
    return rerank_pb2.RerankRequest(
        model=model,
        query=query,
        documents=inputs(documents, name="documents"),
        top_n=top_n,
        max_tokens_per_doc=max_tokens_per_doc,
        truncation=truncation(truncate),
        raw_scores=raw_scores,
        instruction=instruction,
    )


def parts(texts: Sequence[Text], most: int) -> Iterator[tuple[int, Sequence[Text]]]:
    """Yield consecutive parts of a list with the place where each begins: at most so many texts and MAX_CHARACTERS each.

    An empty list is one empty part: it is the server that says what it thinks of it.
    """
    start, characters = 0, 0
    for place, text in enumerate(texts):
        size = len(text)
        if place > start and (place - start >= most or characters + size > MAX_CHARACTERS):
            yield start, texts[start:place]
            start, characters = place, 0
        characters += size
    yield start, texts[start:]


def moved(error: QuadrateError, start: int) -> QuadrateError:
    """Return an error about a part of a list in terms of the whole list: `inputs[2]` of a part from 100 is `inputs[102]`."""
    if start == 0:
        return error

    def shift(text: str) -> str:
        return re.sub(r"\binputs\[(\d+)\]", lambda match: f"inputs[{int(match[1]) + start}]", text)

    error.message = shift(error.message)
    error.args = (error.message,)
    error.param = shift(error.param) if error.param else error.param
    return error


def _choice(choices: dict[str | None, NumberT], word: str | None, name: str) -> NumberT:
    if word not in choices:
        allowed = ", ".join(repr(choice) for choice in choices if choice is not None)
        raise InvalidArgument(f"{name} is {word!r}; allowed: {allowed}.", param=name)
    return choices[word]
