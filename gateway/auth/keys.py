"""Who is calling: API keys, looked up by their SHA-256."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from gateway.auth.principal import ANONYMOUS, Principal
from quadrate.config.auth import digest
from quadrate.errors import PermissionDenied, Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from quadrate.config.auth import AuthFile


class Authenticator:
    """Tells callers apart by their keys.

    Keys are looked up by SHA-256, so the time that takes says nothing about a key: close guesses have unrelated digests.
    """

    def __init__(self, file: AuthFile, *, clock: Callable[[], float] = lambda: datetime.datetime.now(datetime.UTC).timestamp()) -> None:
        self._principals = {
            key.digest: Principal(key.principal, frozenset(key.models), key.expires.timestamp() if key.expires else None)
            for key in file.api_keys
        }
        self._anonymous = file.allow_anonymous_without_api_keys
        self._clock = clock

    def authenticate(self, metadata: Mapping[str, str]) -> Principal:
        """Return who sent a request, by `authorization: Bearer KEY` or `x-api-key: KEY`.

        Raises:
            Unauthenticated: There is no key where one is needed, a key that is not known, or two different ones.
            PermissionDenied: The key is past its expiry.
        """
        authorization, header_key = metadata.get("authorization"), metadata.get("x-api-key")
        if not authorization and not header_key:
            return self._without_key()
        secrets = {secret for secret in (_bearer(authorization) if authorization else "", (header_key or "").strip()) if secret}
        if not secrets:
            return self._without_key()
        if len(secrets) > 1:
            raise Unauthenticated("authorization and x-api-key carry two different keys. Send one.")
        principal = self._principals.get(digest(secrets.pop()))
        if principal is None:
            raise Unauthenticated("This API key is not known here. Check it, or ask the operator of this service for one.")
        if principal.expires is not None and self._clock() >= principal.expires:
            raise PermissionDenied("This API key has expired. Ask the operator of this service for a new one.", code="api_key_expired")
        return principal

    def _without_key(self) -> Principal:
        if self._anonymous:
            return ANONYMOUS
        raise Unauthenticated(
            "This service needs an API key. Send it as 'Authorization: Bearer KEY' or as 'x-api-key: KEY'.", code="missing_api_key"
        )


def _bearer(header: str) -> str:
    scheme, _, secret = header.strip().partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated("The authorization header must read 'Bearer KEY'; other schemes are not served.")
    return secret.strip()
