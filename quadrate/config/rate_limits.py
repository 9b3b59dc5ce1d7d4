"""`rate_limits.yaml`: how much each caller may use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pydantic

from quadrate.config.yamlfile import Schema, load

if TYPE_CHECKING:
    from pathlib import Path


class Limit(Schema):
    """What one caller may use. A token bucket of requests, and ceilings on tokens and concurrency; None means no such ceiling."""

    capacity: int = pydantic.Field(gt=0)
    """Requests that may come at once after a pause."""
    refill_rate: float = pydantic.Field(gt=0)
    """Requests a second that the bucket regains."""
    tokens_per_minute: int | None = pydantic.Field(default=None, gt=0)
    tokens_per_day: int | None = pydantic.Field(default=None, gt=0)
    concurrent_requests: int | None = pydantic.Field(default=None, gt=0)


class RateLimitsFile(Schema):
    """The whole file. A caller whose kind has no limit written is not limited."""

    default: Limit | None = None
    """For a key that `per_api_key` does not name."""
    anonymous: Limit | None = None
    """For all requests without a key together."""
    per_api_key: dict[str, Limit] = pydantic.Field(default_factory=dict)
    """By the key itself, by its name, or by the name it has in logs (`key-` and 8 hex digits)."""


def load_rate_limits(path: Path) -> RateLimitsFile:
    """Read `rate_limits.yaml`; raises ConfigError."""
    return load(path, RateLimitsFile)
