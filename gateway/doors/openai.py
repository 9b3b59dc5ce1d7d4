"""The OpenAI door: `POST /v1/embeddings` and `GET /v1/models` in that API's shapes, with fields of our own beside its fields."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from gateway.doors import body, cohere_embed, told
from gateway.work import EmbedWork, Reading
from quadrate.errors import EmptyInput, InvalidArgument
from quadrate.openai.v1 import openai_pb2
from quadrate.v1 import options_pb2

if TYPE_CHECKING:
    from google.api.httpbody_pb2 import HttpBody

    from gateway.admission import Admission
    from gateway.embedding import Embedding
    from gateway.models import Models
    from gateway.work import Content, Name
    from quadrate.server import Call
    from quadrate.v1.embed_pb2 import EmbedResponse
    from quadrate.v1.model_pb2 import Model

ENCODINGS = {"float": "float", "base64": "base64"}
TRUNCATIONS: dict[str, int] = {"left": options_pb2.LEFT, "right": options_pb2.RIGHT, **cohere_embed.TRUNCATIONS}
USES: dict[str, tuple[int, str]] = {
    "query": (options_pb2.QUERY, ""),
    "document": (options_pb2.DOCUMENT, ""),
    **cohere_embed.USES,
    "retrieval.query": (options_pb2.QUERY, ""),
    "retrieval.passage": (options_pb2.DOCUMENT, ""),
    "passage": (options_pb2.DOCUMENT, ""),
}
"""`input_type`, an extra field here, in the words of Quadrate, Cohere, Jina and NVIDIA: a role, or a purpose."""
_PLAIN = frozenset({"model", "input", "encoding_format"})
"""The fields of most requests: where there are no others, none need be looked for."""
_INPUT = "a string, an array of strings, an array of token ids, or an array of arrays of token ids"


class OpenAiService:
    """quadrate.openai.v1.OpenAiService."""

    descriptor = openai_pb2.DESCRIPTOR.services_by_name["OpenAiService"]

    def __init__(self, admission: Admission, embedding: Embedding, models: Models) -> None:
        self._admission = admission
        self._embedding = embedding
        self._models = models

    async def create_embedding(self, request: HttpBody, call: Call) -> HttpBody:
        """POST /v1/embeddings."""
        principal = await self._admission.admit(call)
        with call.trace.stage("parse"):
            work, encoding = read_embedding(request.data)
        answer = await self._embedding.embed(work, principal, call)
        with call.trace.stage("respond"):
            return told.http_body(form_embedding(answer, encoding))

    async def list_models(self, _: openai_pb2.ListModelsRequest, call: Call) -> HttpBody:
        """GET /v1/models."""
        cards = self._models.cards(await self._admission.admit(call))
        return told.http_body(orjson.dumps({"object": "list", "data": [form_model(card) for card in cards]}))

    async def retrieve_model(self, request: openai_pb2.RetrieveModelRequest, call: Call) -> HttpBody:
        """GET /v1/models/{model}."""
        principal = await self._admission.admit(call)
        card = self._models.card(request.model, principal)
        return told.http_body(orjson.dumps({**form_model(card), "id": request.model}))


def read_embedding(data: bytes) -> tuple[EmbedWork, str]:
    """Return what a body asks for, and the encoding it wants. Raises InvalidArgument, EmptyInput."""
    fields = body.read_object(data)
    model = body.required_text(fields, "model")
    if fields.get("input") is None:
        raise body.missing("input")
    contents, name = read_input(fields["input"])
    encoding = body.choice(fields, "encoding_format", ENCODINGS, "float")
    if _PLAIN.issuperset(fields):
        return EmbedWork(model=model, contents=contents, name=name, names="input"), encoding
    body.text(fields, "user")
    work = EmbedWork(
        model=model,
        contents=contents,
        name=name,
        names="input",
        reading=_reading(fields),
        dimensions=body.integer(fields, "dimensions"),
    )
    return work, encoding


def _reading(fields: dict[str, Any]) -> Reading:
    role, purpose = body.choice(fields, "input_type", USES, (0, ""))
    prompt_name = body.text(fields, "prompt_name")
    if prompt_name is not None and (role or purpose):
        raise InvalidArgument("prompt_name and input_type both choose a prompt. Keep one.", param="prompt_name")
    return Reading(
        role=role,
        prompt_name=prompt_name,
        instruction=body.text(fields, "instruction"),
        purpose=purpose,
        truncation=body.choice(fields, "truncate", TRUNCATIONS, 0),
    )


def read_input(value: Any) -> tuple[list[Content], Name]:
    """Return the contents that `input` holds in any of its four forms, and what each is called.

    Raises InvalidArgument that names the first item of a wrong type; EmptyInput.
    """
    if type(value) is str:
        return [value], _whole
    if type(value) is not list:
        raise body.wrong_type("input", _INPUT, value)
    if not value:
        raise EmptyInput("input is an empty array. Send at least one text.", param="input")
    kinds = set(map(type, value))
    if kinds == {str}:
        return value, _item
    if kinds == {int}:
        return [value], _whole
    if kinds != {list}:
        raise _mixed(value, kinds)
    for place, ids in enumerate(value):
        if not {int}.issuperset(map(type, ids)):
            raise _no_id(f"input[{place}]", ids)
    return value, _item


def form_embedding(answer: EmbedResponse, encoding: str) -> bytes:
    """Return the JSON of an answer: numbers as float32 prints them, or base64 of little-endian float32.

    OpenAI's shape, and ours besides: `usage.tokens_cut`, `tokens_cut` of each item that was cut, `provenance` and `timings`.
    """
    form = _base64 if encoding == "base64" else _floats
    data = [{"object": "embedding", "index": found.index, "embedding": form(found.values)} for found in answer.embeddings]
    if answer.usage.tokens_cut:
        for item, found in zip(data, answer.embeddings, strict=True):
            if found.usage.tokens_cut:
                item["tokens_cut"] = found.usage.tokens_cut
    tokens = answer.usage.tokens
    reply = {
        "object": "list",
        "data": data,
        "model": answer.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens, **told.usage(answer.usage)},
        "provenance": told.provenance(answer.provenance),
        "timings": told.timings(answer.timings),
    }
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


def form_model(card: Model) -> dict[str, Any]:
    """Return a model in OpenAI's shape."""
    return {"id": card.name, "object": "model", "created": card.created, "owned_by": card.served_name.partition("/")[0] or "quadrate"}


def _floats(values: Any) -> Any:
    return np.asarray(values, "<f4")


def _base64(values: Any) -> str:
    return base64.b64encode(_floats(values)).decode("ascii")


def _whole(_: int) -> str:
    return "input"


def _item(place: int) -> str:
    return f"input[{place}]"


def _mixed(value: list[Any], kinds: set[type]) -> InvalidArgument:
    """Return the error for the first item that does not go with those before it."""
    for place, item in enumerate(value):
        if type(item) not in (str, int, list):
            return body.wrong_type(f"input[{place}]", "a string, a token id or an array of token ids", item)
    place = next(place for place, item in enumerate(value) if type(item) is not type(value[0]))
    return InvalidArgument(
        f"input mixes {' and '.join(sorted(body.kind(kind()) for kind in kinds))} items, from input[{place}] on; it must be {_INPUT}.",
        param=f"input[{place}]",
        code="invalid_type",
    )


def _no_id(where: str, ids: list[Any]) -> InvalidArgument:
    place = next(place for place, item in enumerate(ids) if type(item) is not int)
    return body.wrong_type(f"{where}[{place}]", "a token id, an integer", ids[place])
