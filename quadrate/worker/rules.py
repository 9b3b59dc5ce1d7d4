"""How a worker's settings become the scheduler's rules, with defaults by device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quadrate.runtime.batching import Limits
from quadrate.runtime.jobs import Rules

if TYPE_CHECKING:
    from quadrate.config.worker import WorkerSettings

CPU_LIMITS = Limits(tokens=256, texts=64)
"""Measured: from 256 to 512 tokens the throughput is the same, and what waits behind a run waits less the smaller it is."""
FAST_CPU_LIMITS = Limits(tokens=512, texts=64)
"""In precision `fast` runs of 512 tokens do 2 to 7 % more than those of 256, and take no longer than those of `exact`."""
GPU_LIMITS = Limits(tokens=16_384, texts=512)
"""A large GPU is busy from 8,000 to 16,000 tokens on; that many take it about 20 ms with a large model."""
GPU_RUNNERS = 2
"""On a GPU one run computes while the next is made ready."""


def rules_of(settings: WorkerSettings, *, on_gpu: bool) -> Rules:
    """Return the rules of a worker on a device."""
    usual = GPU_LIMITS if on_gpu else FAST_CPU_LIMITS if settings.precision == "fast" else CPU_LIMITS
    limits = Limits(settings.max_batch_tokens or usual.tokens, settings.max_batch_size or usual.texts)
    return Rules(
        limits=limits,
        runners=GPU_RUNNERS if on_gpu else settings.threads,
        delay_seconds=settings.batch_delay_ms / 1000,
        queue_seconds=settings.queue_timeout_ms / 1000,
        stuck_seconds=settings.stuck_seconds,
        long_tokens=settings.long_text_tokens or (limits.tokens if on_gpu else min(limits.tokens, CPU_LIMITS.tokens)),
    )
