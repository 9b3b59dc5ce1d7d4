"""What runs and drops look like in metrics and traces."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quadrate.runtime.jobs import Batch, Lane
    from quadrate.telemetry import Telemetry


class TelemetryMeter:
    """A scheduler's meter that writes the worker's metrics and its batch spans."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._metrics = telemetry.metrics
        self._traces = telemetry.traces
        self._prefix = telemetry.prefix

    def ran(self, batch: Batch) -> None:
        """Count a batch, and send its span if one of its requests is sampled."""
        name, model, lengths = self._prefix, batch.lane.name, batch.lengths
        tokens, texts = sum(lengths), len(lengths)
        histogram = self._metrics.histogram
        histogram(f"{name}_batch_texts", model).observe(texts)
        histogram(f"{name}_batch_tokens", model).observe(tokens)
        histogram(f"{name}_batch_attention_fill_ratio", model).observe(tokens / (texts * max(lengths)))
        histogram(f"{name}_inference_seconds", model).observe(batch.seconds)
        queue = histogram(f"{name}_queue_seconds", model)
        for text in batch.texts:
            queue.observe(batch.started - text.job.submitted)
        self._metrics.counter(f"{name}_tokens_total", model).inc(tokens)
        self._metrics.counter(f"{name}_documents_total", model).inc(texts)
        if batch.is_long:
            self._metrics.counter(f"{name}_long_texts_total", model).inc(texts)
        if batch.sharers:
            self._metrics.counter(f"{name}_shared_answers_total", model).inc(len(batch.sharers))
        if self._traces.on:
            self._send(batch, tokens)

    def _send(self, batch: Batch, tokens: int) -> None:
        jobs = (*(text.job for text in batch.texts), *batch.sharers)
        traces = {id(job): job.trace for job in jobs if job.trace is not None}
        attributes = {
            "quadrate.model": batch.lane.name,
            "quadrate.texts": len(batch.texts),
            "quadrate.tokens": tokens,
            "quadrate.wide": batch.wide,
            "quadrate.long": batch.is_long,
        }
        batch.span = self._traces.batch("batch", traces.values(), batch.started_ns, batch.ended_ns, attributes)

    def dropped(self, lane: Lane, reason: str, texts: int) -> None:
        """Count texts that were dropped before they ran."""
        self._metrics.counter(f"{self._prefix}_dropped_total", lane.name, reason).inc(texts)
