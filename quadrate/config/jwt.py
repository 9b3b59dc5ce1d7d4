"""`jwt` in `auth.yaml`: whose tokens are accepted, and what they say of a caller."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import pydantic

from quadrate.config.yamlfile import Schema

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Signatures by a private key. Those by a shared secret are not among them: who checks such a token could also make one."""
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class JwtIssuer(Schema):
    """An issuer of JSON Web Tokens (RFC 7519), as OpenID Connect providers are."""

    issuer: str = pydantic.Field(min_length=1)
    """What a token's `iss` must be, letter by letter."""
    audience: tuple[str, ...] = pydantic.Field(min_length=1)
    """What a token's `aud` must name: one of these."""
    algorithms: tuple[Algorithm, ...] = pydantic.Field(default=("RS256", "ES256", "EdDSA"), min_length=1)
    """Signatures that are accepted."""
    jwks_url: str | None = None
    """Where the issuer publishes its signing keys (RFC 7517): https, or http on this machine."""
    jwks_path: Path | None = None
    """Instead of `jwks_url`: a file with them, absolute or beginning with `~`."""
    jwks_cache_seconds: float = pydantic.Field(default=300.0, ge=1)
    """The age from which the signing keys are fetched again. A token with an unknown key has them fetched at once."""
    leeway_seconds: float = pydantic.Field(default=30.0, ge=0, le=600)
    """How far the issuer's clock and this machine's may be apart."""
    name_claim: str = pydantic.Field(default="sub", min_length=1)
    """The claim that names the caller, who is called `jwt:` and its value."""
    models_claim: str | None = pydantic.Field(default=None, min_length=1)
    """The claim that lists the aliases a caller may call. None: every token may call all. Otherwise a token without it may call none."""
    tasks_claim: str | None = pydantic.Field(default=None, min_length=1)
    """The claim that lists what a caller may ask for: embed, rerank. None: every token both. Otherwise a token without it nothing."""

    @pydantic.field_validator("audience", mode="before")
    @classmethod
    def _accept_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @pydantic.field_validator("jwks_path")
    @classmethod
    def _check_path(cls, value: Path | None) -> Path | None:
        found = None if value is None else value.expanduser()
        if found is not None and not found.is_absolute():
            raise ValueError(f"{str(value)!r} is relative; write an absolute path, or one that begins with ~")
        return found

    @pydantic.field_validator("jwks_url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if "@" in value:
            raise ValueError(
                "the URL holds an @, as of a user and a password; signing keys are public. Leave them out; write %40 in a path"
            )
        try:
            url = urlsplit(value)
            _ = url.port
        except ValueError:
            raise ValueError("this is no URL: its host or its port cannot be read") from None  # the reason may repeat parts of it
        if not value.isprintable() or any(character.isspace() for character in value):
            raise ValueError("the URL holds a blank or another character that no URL may")
        if not url.hostname or not (url.scheme == "https" or (url.scheme == "http" and url.hostname in _LOOPBACK)):
            raise ValueError(
                f"{without_query(value)!r} must begin with https:// (or http:// on localhost): who could change the keys could sign tokens"
            )
        return value

    @pydantic.model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.jwks_url is None) == (self.jwks_path is None):
            raise ValueError("jwt needs either jwks_url or jwks_path")
        return self

    @property
    def source(self) -> Path | str:
        """Where the signing keys come from: a file, or a URL."""
        return self.jwks_path or self.jwks_url or ""

    @property
    def source_told(self) -> str:
        """The same, as it may stand in logs."""
        return without_query(str(self.source))


def without_query(url: str) -> str:
    """Return a URL up to its query, which may hold a secret."""
    path, mark, _ = url.partition("?")
    return f"{path}?…" if mark else path
