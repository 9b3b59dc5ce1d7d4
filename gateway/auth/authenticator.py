"""Tells callers apart by what stands in their headers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gateway.auth.keys import Keys
from gateway.auth.principal import ANONYMOUS, Principal
from gateway.auth.tokens import Tokens, looks_like_token
from quadrate.errors import Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from quadrate.config.auth import AuthFile
    from quadrate.telemetry import Metrics


class Authenticator:
    """One reading of `auth.yaml`. It never changes; a file that was edited makes a new one.

    Args:
        file: What it says.
        metrics: Where fetches of signing keys are counted.
        before: The one that it takes the place of: what that has learnt of signing keys and tokens goes on, as far as it still holds.
        clock: Unix seconds.

    Raises ConfigError where a file of signing keys cannot be used.
    """

    def __init__(
        self, file: AuthFile, metrics: Metrics, *, before: Authenticator | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._keys = Keys(file.api_keys)
        self._anonymous = file.allow_anonymous_without_api_keys
        self._any_key = file.accept_any_key_as_anonymous
        self._clock = clock
        learnt = None if before is None else before._tokens  # noqa: SLF001 - its own class
        self._tokens: Tokens | None = None if file.jwt is None else Tokens.of(file.jwt, learnt, metrics, clock=clock)

    async def authenticate(self, metadata: Mapping[str, str]) -> Principal:
        """Return who sent a request, by `authorization: Bearer KEY` or `x-api-key: KEY`, or by a token as bearer.

        Raises:
            Unauthenticated: There is no key where one is needed, one that is not known, a token that does not hold, or two different ones.
            PermissionDenied: The key is known, and this is not its time.
            Unavailable: The keys that a token is verified by cannot be had.
        """
        authorization, header_key = metadata.get("authorization"), metadata.get("x-api-key")
        if self._any_key or not (authorization or header_key):
            return self._without_key()
        bearer, given = _bearer(authorization or ""), (header_key or "").strip()
        if bearer and given and bearer != given:
            raise Unauthenticated("authorization and x-api-key carry two different keys. Send one.")
        secret = bearer or given
        if not secret:
            return self._without_key()
        principal = self._keys.find(secret, self._clock())
        if principal is not None:
            return principal
        if bearer and self._tokens is not None and looks_like_token(bearer):
            return await self._tokens.principal(bearer)
        raise Unauthenticated("This API key is not known here. Check it, or ask the operator of this service for one.")

    def _without_key(self) -> Principal:
        if self._anonymous:
            return ANONYMOUS
        raise Unauthenticated(
            "This service needs an API key. Send it as 'Authorization: Bearer KEY' or as 'x-api-key: KEY'.", code="missing_api_key"
        )


def _bearer(header: str) -> str:
    """Return what follows `Bearer`; the empty text for an empty header. Raises Unauthenticated for other schemes."""
    scheme, _, secret = header.strip().partition(" ")
    if scheme and scheme.lower() != "bearer":
        raise Unauthenticated("The authorization header must read 'Bearer KEY'; other schemes are not served.")
    return secret.strip()
