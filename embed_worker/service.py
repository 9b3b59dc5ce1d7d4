"""EmbedService of a worker: reads the request, runs it, writes the answer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from embed_worker.answers import respond
from quadrate.errors import InvalidArgument, Unimplemented
from quadrate.inputs import MAX_INPUTS
from quadrate.runtime.packing import Reading
from quadrate.server.relay import RelayService
from quadrate.server.streams import in_order_of_completion
from quadrate.v1 import embed_pb2, options_pb2
from quadrate.v1.options_pb2 import DENSE, FLOAT32, OUTPUT_UNSPECIFIED, VALUE_TYPE_UNSPECIFIED, Output, ValueType
from quadrate.worker.models import pooling_name
from quadrate.worker.reading import card_truncation, check_inputs, read, resolve_prompt, resolve_truncation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from numpy.typing import NDArray

    from quadrate.config.worker import EmbedSettings
    from quadrate.runtime.engine import Model, Result
    from quadrate.server import Call
    from quadrate.worker.catalogue import Catalogue


class EmbedService:
    """Serves the catalogue's models."""

    descriptor = embed_pb2.DESCRIPTOR.services_by_name["EmbedService"]

    def __init__(self, catalogue: Catalogue, settings: EmbedSettings) -> None:  # noqa: ARG002 - every service is made alike
        self._catalogue = catalogue

    async def embed(self, request: embed_pb2.EmbedRequest, call: Call) -> bytes:
        """Return the serialised EmbedResponse. Raises QuadrateError."""
        arrived = time.perf_counter()
        engine = self._catalogue.engine(request.model)
        model = engine.model
        call.log.update(model=model.alias, inputs=len(request.inputs))
        _check(request, model)
        prompt = resolve_prompt(model, request)
        truncation = resolve_truncation(request.truncation, card_truncation(model))
        with call.trace.stage("tokenise"):
            readings = await read(request.inputs, model.tokenizer, names="inputs", prompt=prompt, truncation=truncation)
        call.log["tokens"] = readings.tokens
        tokenized = time.perf_counter()
        normalize = request.normalize if request.HasField("normalize") else model.facts.normalize
        whole = not request.HasField("dimensions")
        output = "unit" if normalize and whole else "pooled"
        result = await engine.run(list(map(Reading.of, readings.ids)), [output], deadline=call.deadline, trace=call.trace)
        with call.trace.stage("respond"):
            vectors = result.rows[output]
            rows = vectors if whole else cut(vectors, request.dimensions, normalize=normalize)
            timings = _timings(result, tokenize_seconds=tokenized - arrived, total_seconds=time.perf_counter() - arrived)
            provenance = _provenance(model, prompt, normalized=normalize)
            return respond(request.model, rows, list(map(len, readings.ids)), readings.cut, provenance=provenance, timings=timings)

    async def embed_stream(self, requests: AsyncIterator[embed_pb2.EmbedStreamRequest], call: Call) -> AsyncIterator[bytes]:
        """Answer each request under its id, in order of completion; see `stream`."""
        async for answer in in_order_of_completion(self.embed, requests, call):
            yield answer


def services(catalogue: Catalogue, settings: EmbedSettings) -> list[EmbedService | RelayService]:
    """Return what an embed worker serves besides its models' cards."""
    embed = EmbedService(catalogue, settings)
    return [embed, RelayService(embed.embed)]


def cut(rows: Sequence[NDArray[np.float32]], width: int, *, normalize: bool) -> list[NDArray[np.float32]]:
    """Return the first `width` values of pooled vectors, brought back to length one if asked (Kusupati et al. 2022)."""
    kept = np.stack(rows)[:, :width]
    if normalize:
        kept = kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), 1e-12)
    return list(kept.astype(np.float32, copy=False))


def _check(request: embed_pb2.EmbedRequest, model: Model) -> None:
    """Refuse what this version or this model does not serve, and lists that cannot be worked on."""
    for output in request.outputs:
        if output not in (OUTPUT_UNSPECIFIED, DENSE):
            name = Output.Name(output) if output in Output.values() else output
            raise Unimplemented(f"outputs: {name} is not served by {model.alias}; it gives DENSE.", param="outputs")
    if request.value_type not in (VALUE_TYPE_UNSPECIFIED, FLOAT32):
        kind = ValueType.Name(request.value_type) if request.value_type in ValueType.values() else request.value_type
        raise Unimplemented(f"value_type {kind} is not served by this version; it gives FLOAT32.", param="value_type")
    if request.HasField("dimensions"):
        _check_dimensions(request.dimensions, model)
    check_inputs(request.inputs, names="inputs", limit=MAX_INPUTS)


def _check_dimensions(asked: int, model: Model) -> None:
    width, known = model.facts.encoder.width, model.card.matryoshka_dimensions
    if asked == width or asked in known:
        return
    if known:
        raise InvalidArgument(f"dimensions is {asked}; {model.alias} gives {', '.join(map(str, known))} or {width}.", param="dimensions")
    raise InvalidArgument(
        f"dimensions is {asked}; {model.alias} is no Matryoshka model and gives {width} alone. Leave dimensions out.", param="dimensions"
    )


def _provenance(model: Model, prompt: str, *, normalized: bool) -> options_pb2.Provenance:
    return options_pb2.Provenance(
        revision=model.revision,
        prompt=prompt,
        precision=options_pb2.EXACT,
        provider=model.session.provider,
        pooling=pooling_name(model),
        normalized=normalized,
    )


def _timings(result: Result, *, tokenize_seconds: float, total_seconds: float) -> options_pb2.Timings:
    return options_pb2.Timings(
        tokenize_seconds=tokenize_seconds,
        queue_seconds=result.queue_seconds,
        inference_seconds=result.inference_seconds,
        total_seconds=total_seconds,
    )
