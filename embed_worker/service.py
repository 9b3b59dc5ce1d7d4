"""EmbedService of a worker: reads the request, runs it, writes the answer."""

from __future__ import annotations

import math
import time
from contextlib import aclosing
from typing import TYPE_CHECKING

from embed_worker.answers import respond
from embed_worker.outputs import graph_outputs, represent, rows_of
from quadrate import forms
from quadrate.errors import Internal, InvalidArgument
from quadrate.inputs import MAX_INPUTS
from quadrate.runtime.packing import Reading
from quadrate.server import lifecycle
from quadrate.server.relay import RelayService
from quadrate.server.streams import in_order_of_completion
from quadrate.v1 import embed_pb2, options_pb2
from quadrate.v1.options_pb2 import DENSE, MULTI_VECTOR
from quadrate.vectors import row_bytes
from quadrate.worker.models import pooling_name, precision_of
from quadrate.worker.offer import offer
from quadrate.worker.reading import card_truncation, check_inputs, read, resolve_prompt, resolve_truncation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from quadrate.config.worker import EmbedSettings
    from quadrate.forms import Wanted
    from quadrate.runtime.engine import Model, Result
    from quadrate.server import Call
    from quadrate.worker.catalogue import Catalogue
    from quadrate.worker.reading import Readings

MAX_ANSWER_BYTES = lifecycle.MAX_ANSWER_BYTES - 64 * 1024
"""The largest answer that is sent, with room for what a gateway adds."""
_UNIT, _POOLED = forms.Wanted(normalize=True), forms.Wanted(normalize=False)
"""What nearly all requests get: whole dense vectors in float32."""


class EmbedService:
    """Serves the catalogue's models."""

    descriptor = embed_pb2.DESCRIPTOR.services_by_name["EmbedService"]

    def __init__(self, catalogue: Catalogue, settings: EmbedSettings) -> None:  # noqa: ARG002 - every service is made alike
        self._catalogue = catalogue

    async def embed(self, request: embed_pb2.EmbedRequest, call: Call) -> bytes:
        """Return the serialised EmbedResponse. Raises QuadrateError."""
        arrived = time.perf_counter()
        engine = self._catalogue.engine(request.model, read_by=request.tokenizer_sha256)
        model = engine.model
        call.log.update(model=model.alias, inputs=len(request.inputs))
        check_inputs(request.inputs, names="inputs", limit=MAX_INPUTS)
        wanted = _wanted(request, model)
        prompt = resolve_prompt(model, request)
        truncation = resolve_truncation(request.truncation, card_truncation(model))
        with call.trace.stage("tokenise"):
            readings = await read(request.inputs, model.tokenizer, names="inputs", prompt=prompt, truncation=truncation)
        call.log["tokens"] = readings.tokens
        if MULTI_VECTOR in wanted.outputs:
            _check_size(_multi_vector_bytes(readings, wanted, model))
        tokenized = time.perf_counter()
        outputs = graph_outputs(wanted, model.forms)
        result = await engine.run(
            list(map(Reading.of, readings.ids)), outputs, deadline=call.deadline, standing=call.standing, trace=call.trace
        )
        with call.trace.stage("respond"):
            timings = _timings(result, tokenize_seconds=tokenized - arrived, total_seconds=time.perf_counter() - arrived)
            provenance = _provenance(model, _told_prompt(request, prompt), wanted)
            return _respond(request.model, model, wanted, readings, result, provenance=provenance, timings=timings)

    async def embed_stream(self, requests: AsyncIterator[embed_pb2.EmbedStreamRequest], call: Call) -> AsyncIterator[bytes]:
        """Answer each request under its id, in order of completion; see `stream`."""
        async with aclosing(in_order_of_completion(self.embed, requests, call)) as answers:
            async for answer in answers:
                yield answer


def services(catalogue: Catalogue, settings: EmbedSettings) -> list[EmbedService | RelayService]:
    """Return what an embed worker serves besides its models' cards."""
    embed = EmbedService(catalogue, settings)
    return [embed, RelayService(embed.embed)]


def _wanted(request: embed_pb2.EmbedRequest, model: Model) -> Wanted:
    has = request.HasField
    if not (request.outputs or request.value_type or has("dimensions") or has("normalize")) and "pooled" in model.forms:
        return _UNIT if model.facts.normalize else _POOLED
    return forms.choose(
        offer(model),
        outputs=request.outputs,
        value_type=request.value_type,
        dimensions=request.dimensions if request.HasField("dimensions") else None,
        normalize=request.normalize if request.HasField("normalize") else None,
    )


def _respond(
    name: str,
    model: Model,
    wanted: Wanted,
    readings: Readings,
    result: Result,
    *,
    provenance: options_pb2.Provenance,
    timings: options_pb2.Timings,
) -> bytes:
    _check_numbers(model, result)
    found = represent(wanted, result.rows, readings.ids, head=model.facts.head, weightless=model.tokenizer.weightless_ids)
    tokens = list(map(len, readings.ids))
    answer = respond(name, found, tokens, readings.cut, value_type=wanted.value_type, provenance=provenance, timings=timings)
    _check_size(len(answer))
    return answer


def _check_numbers(model: Model, result: Result) -> None:
    """Refuse what holds a value that is no number: it would lie in an index for ever. The sum of squares shows it and costs least."""
    for rows in result.rows.values():
        for row in rows:
            flat = row.ravel()
            if not math.isfinite(flat.dot(flat)):
                raise Internal(f"The model {model.alias} gave a value that is no number. Tell the operator; other inputs may do.")


def _multi_vector_bytes(readings: Readings, wanted: Wanted, model: Model) -> int:
    rows = sum(rows_of(len(ids), model.facts.head) for ids in readings.ids)
    return rows * row_bytes(model.forms["multi_vector"].width, wanted.value_type)


def _check_size(answer_bytes: int) -> None:
    """Refuse what would not fit into one message; gRPC itself would say so in words that help nobody."""
    if answer_bytes > MAX_ANSWER_BYTES:
        raise InvalidArgument(
            f"The answer would have {answer_bytes} bytes; at most {MAX_ANSWER_BYTES} are sent. Send fewer or shorter inputs in one "
            "request, or ask for a smaller value_type.",
            param="inputs",
            code="answer_too_large",
        )


def _told_prompt(request: embed_pb2.EmbedRequest, prompt: str) -> str:
    """Return the prompt that was put before texts; before ids none is."""
    return prompt if prompt and any(item.HasField("text") for item in request.inputs) else ""


def _provenance(model: Model, prompt: str, wanted: Wanted) -> options_pb2.Provenance:
    return options_pb2.Provenance(
        revision=model.revision,
        prompt=prompt,
        precision=precision_of(model),
        provider=model.session.provider,
        pooling=pooling_name(model),
        fingerprint=model.fingerprint,
        normalized=wanted.normalize if DENSE in wanted.outputs else None,
    )


def _timings(result: Result, *, tokenize_seconds: float, total_seconds: float) -> options_pb2.Timings:
    return options_pb2.Timings(
        tokenize_seconds=tokenize_seconds,
        queue_seconds=result.queue_seconds,
        inference_seconds=result.inference_seconds,
        total_seconds=total_seconds,
    )
