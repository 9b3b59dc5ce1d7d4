"""Answers of the facades whose JSON is formed here, and what each says of itself: the same words as the native API's."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import orjson
from google.api.httpbody_pb2 import HttpBody

from quadrate.errors import InvalidArgument
from quadrate.server import lifecycle
from quadrate.v1 import options_pb2

if TYPE_CHECKING:
    from quadrate.v1.options_pb2 import Provenance, Timings, Usage

MAX_JSON_BYTES = lifecycle.MAX_ANSWER_BYTES - 1024
"""The largest body, with room for what wraps it."""
_PRECISIONS = {number: name for name, number in options_pb2.Precision.items()}
_DIGITS = 6
"""Of seconds: microseconds, and no digits of the float32 that carried them."""


def http_body(data: bytes) -> HttpBody:
    """Return an answer's JSON as the edge takes it. Raises InvalidArgument if it is more than one message carries."""
    if len(data) > MAX_JSON_BYTES:
        raise InvalidArgument(
            f"The answer would have {len(data)} bytes of JSON; at most {MAX_JSON_BYTES} are sent. Send fewer inputs in one request, or ask "
            "for base64, or for fewer types at once.",
            code="answer_too_large",
        )
    return HttpBody(content_type="application/json", data=data)


def provenance(message: Provenance) -> orjson.Fragment:
    """Return where an answer came from, as JSON: all that a Provenance has, `normalized` for embeddings alone."""
    return _provenance(message.SerializeToString())


@lru_cache(maxsize=256)
def _provenance(data: bytes) -> orjson.Fragment:
    """Return the JSON of a message; it is the same one for nearly all answers of a model."""
    message = options_pb2.Provenance.FromString(data)
    found: dict[str, Any] = {
        "revision": message.revision,
        "prompt": message.prompt,
        "precision": _PRECISIONS.get(message.precision, ""),
        "provider": message.provider,
        "pooling": message.pooling,
        "fingerprint": message.fingerprint,
    }
    if message.HasField("normalized"):
        found["normalized"] = message.normalized
    return orjson.Fragment(orjson.dumps(found))


def usage(message: Usage) -> dict[str, Any]:
    """Return what a usage says beside its tokens: how many were cut, and whether the count is an upper bound."""
    found: dict[str, Any] = {"tokens_cut": message.tokens_cut}
    return {**found, "estimated": True} if message.estimated else found


def timings(message: Timings) -> dict[str, float]:
    """Return where the time went, in seconds: tokenising, queueing, inference, and all together."""
    return {
        "tokenize_seconds": round(message.tokenize_seconds, _DIGITS),
        "queue_seconds": round(message.queue_seconds, _DIGITS),
        "inference_seconds": round(message.inference_seconds, _DIGITS),
        "total_seconds": round(message.total_seconds, _DIGITS),
    }
