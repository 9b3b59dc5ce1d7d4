"""What a process tells of itself: metrics, logs, traces."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Self

from quadrate.telemetry.logs import excepthook, log
from quadrate.telemetry.metrics import Metrics
from quadrate.telemetry.traces import Stage, Trace, Traces

__all__ = ["Metrics", "Stage", "Telemetry", "Trace", "Traces", "log"]


@dataclass(frozen=True, slots=True)
class Telemetry:
    """The three of one process.

    Args:
        prefix: The word that its metrics start with: `router`, `embed` or `rerank`.
    """

    prefix: str
    metrics: Metrics
    traces: Traces

    @classmethod
    def start(cls, component: str, prefix: str) -> Self:
        """Set up logging for `component`, metrics for `prefix`, and tracing from the environment. Raises ConfigError."""
        log.configure(component)
        sys.excepthook = excepthook
        return cls(prefix, Metrics(prefix), Traces.from_environment(f"quadrate-{component.replace('_', '-')}"))

    @classmethod
    def silent(cls, prefix: str) -> Self:
        """Metrics that nobody reads and traces that go nowhere, for tests and tools. Logging stays as it is."""
        return cls(prefix, Metrics(prefix), Traces("quadrate"))
