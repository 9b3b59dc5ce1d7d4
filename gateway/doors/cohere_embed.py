"""The embed door: `POST /v2/embed` in the shape of Cohere's API, which its SDK calls as `ClientV2.embed`.

Vectors come from the worker as float32, and each of `embedding_types` is made of them here. What that API has and we have no use for is
taken and has no effect: `priority`. Images are refused.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from gateway.doors import body, told
from gateway.reading import name_cut
from gateway.work import EmbedWork, Reading
from quadrate.errors import EmptyInput, InvalidArgument
from quadrate.v1.options_pb2 import BINARY, DOCUMENT, FLOAT32, INT8, LEFT, NONE, QUERY, RIGHT, UBINARY, UINT8
from quadrate.vectors import CALIBRATED, convert

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gateway.work import Name
    from quadrate.v1.embed_pb2 import EmbedResponse

USES: dict[str, tuple[int, str]] = {
    "search_query": (QUERY, ""),
    "search_document": (DOCUMENT, ""),
    "classification": (0, "classification"),
    "clustering": (0, "clustering"),
}
"""`input_type`: the role, or the purpose, whose prompt of that name is used where a model has one."""
TRUNCATIONS: dict[str, int] = {"none": NONE, "start": LEFT, "end": RIGHT}
_BASE64 = "base64"
_TYPES: dict[str, int] = {"float": FLOAT32, "int8": INT8, "uint8": UINT8, "binary": BINARY, "ubinary": UBINARY, _BASE64: FLOAT32}


@dataclass(frozen=True, slots=True)
class Asked:
    """A body, read.

    Attributes:
        work: What is to be embedded.
        texts: The texts, which the answer repeats.
        types: The forms wanted, of `embedding_types`, each once.
    """

    work: EmbedWork
    texts: list[str]
    types: tuple[str, ...]


def read_embed(data: bytes) -> Asked:
    """Return what a body asks for. Raises InvalidArgument, EmptyInput."""
    fields = body.read_object(data)
    model = body.required_text(fields, "model")
    body.required_text(fields, "input_type")
    role, purpose = body.choice(fields, "input_type", USES, (0, ""))
    texts, name, names = _texts(fields)
    types = _types(fields.get("embedding_types"))
    work = EmbedWork(
        model=model,
        contents=texts,
        name=name,
        names=names,
        reading=Reading(role=role, purpose=purpose, truncation=body.choice(fields, "truncate", TRUNCATIONS, RIGHT)),
        max_tokens=body.integer(fields, "max_tokens"),
        dimensions=body.integer(fields, "output_dimension"),
        dimensions_name="output_dimension",
        normalize=True if any(_TYPES[kind] in CALIBRATED for kind in types) else None,
    )
    return Asked(work, texts, types)


def form_embed(answer: EmbedResponse, asked: Asked, *, request_id: str) -> bytes:
    """Return the JSON of an answer."""
    matrix = np.array([found.values for found in answer.embeddings], dtype="<f4")
    tokens = answer.usage.tokens
    meta: dict[str, Any] = {
        "api_version": {"version": "2"},
        "billed_units": {"input_tokens": tokens},
        "tokens": {"input_tokens": tokens},
    }
    cut = {place: found.usage.tokens_cut for place, found in enumerate(answer.embeddings) if found.usage.tokens_cut}
    if cut:
        meta["warnings"] = [f"{name_cut('Text', list(cut))} longer than the limit and cut; meta.tokens_cut says how much of each."]
        meta["tokens_cut"] = [cut.get(place, 0) for place in range(len(asked.texts))]
    reply = {
        "id": request_id,
        "response_type": "embeddings_by_type",
        "model": answer.model,
        "embeddings": {kind: _form(kind, matrix) for kind in asked.types},
        "texts": asked.texts,
        "meta": meta,
        "usage": {"total_tokens": tokens, **told.usage(answer.usage)},
        "provenance": told.provenance(answer.provenance),
        "timings": told.timings(answer.timings),
    }
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


def _form(kind: str, matrix: NDArray[np.float32]) -> Any:
    if kind == _BASE64:
        return [base64.b64encode(row.tobytes()).decode("ascii") for row in matrix]
    return convert(matrix, _TYPES[kind])


def _types(value: Any) -> tuple[str, ...]:
    if value is None or value == []:
        return ("float",)
    if type(value) is not list:
        raise body.wrong_type("embedding_types", "an array of strings", value)
    for place, kind in enumerate(value):
        if type(kind) is not str:
            raise body.wrong_type(f"embedding_types[{place}]", "a string", kind)
        if kind not in _TYPES:
            allowed = ", ".join(f"'{known}'" for known in _TYPES)
            raise InvalidArgument(f"embedding_types[{place}] must be one of {allowed}.", param=f"embedding_types[{place}]")
    return tuple(dict.fromkeys(value))


def _texts(fields: dict[str, Any]) -> tuple[list[str], Name, str]:
    """Return the texts, what each is called, and what all of them are."""
    if fields.get("images"):
        raise InvalidArgument("images are not served: no model here reads them. Send texts.", param="images")
    texts, inputs = fields.get("texts"), fields.get("inputs")
    if texts is not None and inputs is not None:
        raise InvalidArgument("texts and inputs are both set. Keep one.", param="inputs")
    if inputs is not None:
        return _of_inputs(_array("inputs", inputs)), _item_of("inputs"), "inputs"
    if texts is None:
        raise body.missing("texts")
    for place, text in enumerate(_array("texts", texts)):
        if type(text) is not str:
            raise body.wrong_type(f"texts[{place}]", "a string", text)
    return texts, _item_of("texts"), "texts"


def _of_inputs(inputs: list[Any]) -> list[str]:
    """Return the text of each input: its text contents, one a line."""
    found = []
    for place, item in enumerate(inputs):
        contents = item.get("content") if type(item) is dict else None
        if type(contents) is not list or not contents:
            raise body.wrong_type(f"inputs[{place}]", "an object with content, an array that is not empty", item)
        found.append("\n".join(_content(f"inputs[{place}].content[{part}]", content) for part, content in enumerate(contents)))
    return found


def _content(param: str, content: Any) -> str:
    if type(content) is not dict or content.get("type") != "text" or type(content.get("text")) is not str:
        raise InvalidArgument(f'{param} must be {{"type": "text", "text": …}}: no model here reads anything but text.', param=param)
    return str(content["text"])


def _array(name: str, value: Any) -> list[Any]:
    if type(value) is not list:
        raise body.wrong_type(name, "an array", value)
    if not value:
        raise EmptyInput(f"{name} is an empty array. Send at least one.", param=name)
    return value


def _item_of(names: str) -> Name:
    return lambda place: f"{names}[{place}]"
