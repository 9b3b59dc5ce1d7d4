"""Where an answer came from and where its time went, as the REST facades tell it: the fields of the native API, under their names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quadrate.v1.options_pb2 import Precision

if TYPE_CHECKING:
    from quadrate.v1.options_pb2 import Provenance, Timings

_STAGES = ("tokenize_seconds", "queue_seconds", "inference_seconds", "total_seconds")
_MICROSECOND = 6


def provenance(message: Provenance) -> dict[str, Any]:
    """Return what made an answer; `precision` is `exact`, `fast` or `small`, and empty where the upstream does not say."""
    told = {
        "revision": message.revision,
        "prompt": message.prompt,
        "precision": Precision.Name(message.precision).lower() if message.precision else "",
        "provider": message.provider,
        "pooling": message.pooling,
    }
    return {**told, "normalized": message.normalized} if message.HasField("normalized") else told


def timings(message: Timings) -> dict[str, float]:
    """Return the stages' seconds, to the microsecond; a stage that did not happen is left out."""
    return {stage: round(getattr(message, stage), _MICROSECOND) for stage in _STAGES if message.HasField(stage)}
