"""`rate_limits.yaml`: how much each caller may use."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

import pydantic

from quadrate.config.auth import digest
from quadrate.config.yamlfile import Schema, load
from quadrate.standing import LEAST_WEIGHT, MOST_WEIGHT

if TYPE_CHECKING:
    from pathlib import Path

    from quadrate.config.auth import AuthFile


class ModelLimit(Schema):
    """What one caller may use of one model. None means no such limit; all that are written hold."""

    capacity: int | None = pydantic.Field(default=None, gt=0)
    """Requests that may come at once after a pause. Written together with `refill_rate`."""
    refill_rate: float | None = pydantic.Field(default=None, gt=0, allow_inf_nan=False)
    """Requests a second that the bucket regains."""
    tokens_per_minute: int | None = pydantic.Field(default=None, gt=0)
    """Tokens that the bucket holds, and regains evenly within a minute."""
    tokens_per_day: int | None = pydantic.Field(default=None, gt=0)
    """Tokens from midnight to midnight, UTC."""
    concurrent_requests: int | None = pydantic.Field(default=None, gt=0)
    """Requests that may be under way at the same time."""

    @pydantic.model_validator(mode="after")
    def _check_bucket(self) -> Self:
        if (self.capacity is None) != (self.refill_rate is None):
            raise ValueError("capacity and refill_rate belong together: a bucket of so many requests, refilled by so many a second")
        return self


class Limit(ModelLimit):
    """What one caller may use in all, and of single models besides."""

    models: dict[str, ModelLimit] = pydantic.Field(default_factory=dict)
    """By alias: limits that hold for requests to that model, besides those that hold for all."""
    weight: float = pydantic.Field(default=1.0, ge=LEAST_WEIGHT, le=MOST_WEIGHT)
    """The caller's share of a mesh that is busy, beside that of others: one of weight 2 gets twice as much as one of weight 1."""


class RateLimitsFile(Schema):
    """The whole file. A caller whose kind has no limit written is not limited."""

    secret_in: ClassVar[frozenset[str]] = frozenset({"per_api_key"})
    default: Limit | None = None
    """For a key that `per_api_key` does not name."""
    anonymous: Limit | None = None
    """For all requests without a key together."""
    per_api_key: dict[str, Limit] = pydantic.Field(default_factory=dict)
    """By the key itself, by its name, or by the name it has in logs (`key-` and 8 hex digits). It replaces `default` for that caller."""


def limits_by_name(limits: RateLimitsFile, auth: AuthFile) -> dict[str, Limit]:
    """Return the limits of `per_api_key` by the names that callers have in logs."""
    owners = _owners(auth)
    return {owners.get(digest(entry), owners.get(entry, entry)): limit for entry, limit in limits.per_api_key.items()}


def without_owner(limits: RateLimitsFile, auth: AuthFile) -> tuple[int, ...]:
    """Return the places, from 1, of the entries of `per_api_key` that match no key of the file. They may name callers by token."""
    owners = _owners(auth)
    return tuple(place for place, entry in enumerate(limits.per_api_key, 1) if digest(entry) not in owners and entry not in owners)


def _owners(auth: AuthFile) -> dict[str, str]:
    """Return whose a key is, by all that an entry may call it: its digest, its name, and its name in logs."""
    owners: dict[str, str] = {}
    for key in auth.api_keys:
        owners[key.principal] = key.principal
        for secret in key.all_secrets:  # a key that is being rotated has two, and one limit
            owners[f"key-{secret.digest[:8]}"] = owners[secret.digest] = key.principal
    return owners


def load_rate_limits(path: Path) -> RateLimitsFile:
    """Read `rate_limits.yaml`; raises ConfigError."""
    return load(path, RateLimitsFile)
