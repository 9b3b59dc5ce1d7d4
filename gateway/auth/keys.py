"""API keys, looked up by their SHA-256."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.auth.principal import Principal
from quadrate.config.auth import digest
from quadrate.errors import PermissionDenied

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from quadrate.config.auth import ApiKey, Period


@dataclass(frozen=True, slots=True)
class _Grant:
    """What one secret gives. The period is where its own and its key's overlap, in Unix seconds."""

    principal: Principal
    not_before: float
    expires: float


class Keys:
    """Every secret that is accepted, or was, or will be.

    What is looked up is a digest, of which a caller chooses no digit, in a table that Python orders by a random number of the process. So
    the time that takes tells nothing of any key, and no key stands in memory once the file is read.
    """

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self._grants = {of: grant for key in keys for of, grant in _grants(key)}

    def find(self, secret: str, now: float) -> Principal | None:
        """Return whose secret it is; None if it is nobody's. Raises PermissionDenied outside its period."""
        grant = self._grants.get(digest(secret))
        if grant is None:
            return None
        if now >= grant.expires:
            raise PermissionDenied("This API key has expired. Ask the operator of this service for a new one.", code="api_key_expired")
        if now < grant.not_before:
            raise PermissionDenied("This API key is not valid yet. Use the one before it until it is.", code="api_key_not_yet_valid")
        return grant.principal


def _grants(key: ApiKey) -> Iterator[tuple[str, _Grant]]:
    principal = Principal(key.principal, frozenset(key.models) or None, frozenset(key.tasks) or None)
    for secret in key.all_secrets:
        begins, ends = zip(_period(key), _period(secret), strict=True)
        yield secret.digest, _Grant(principal, max(begins), min(ends))


def _period(of: Period) -> tuple[float, float]:
    begin = -math.inf if of.not_before is None else of.not_before.timestamp()
    return begin, math.inf if of.expires is None else of.expires.timestamp()
