"""What every answer says of itself, for the facades whose JSON is formed here: the same words as the native API's."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import orjson

from quadrate.v1 import options_pb2

if TYPE_CHECKING:
    from quadrate.v1.options_pb2 import Provenance, Timings

_PRECISIONS = {number: name for name, number in options_pb2.Precision.items()}
_DIGITS = 6
"""Of seconds: microseconds, and no digits of the float32 that carried them."""


def provenance(message: Provenance) -> orjson.Fragment:
    """Return where an answer came from, as JSON: revision, prompt, precision, provider, pooling, normalized (for embeddings)."""
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
    }
    if message.HasField("normalized"):
        found["normalized"] = message.normalized
    return orjson.Fragment(orjson.dumps(found))


def timings(message: Timings) -> dict[str, float]:
    """Return where the time went, in seconds: tokenising, queueing, inference, and all together."""
    return {
        "tokenize_seconds": round(message.tokenize_seconds, _DIGITS),
        "queue_seconds": round(message.queue_seconds, _DIGITS),
        "inference_seconds": round(message.inference_seconds, _DIGITS),
        "total_seconds": round(message.total_seconds, _DIGITS),
    }
