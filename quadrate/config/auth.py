"""`auth.yaml`: whose requests are served."""

from __future__ import annotations

import datetime
import hashlib
from typing import TYPE_CHECKING, Any, Self

import pydantic

from quadrate.config.yamlfile import Schema, load

if TYPE_CHECKING:
    from pathlib import Path


class ApiKey(Schema):
    """One key: written plainly as a string, or as a mapping with its SHA-256 instead of itself, a name, and what it may do."""

    key: pydantic.SecretStr | None = None
    sha256: str | None = pydantic.Field(default=None, pattern=r"^[0-9a-fA-F]{64}$")
    name: str | None = pydantic.Field(default=None, min_length=1, max_length=64)
    models: tuple[str, ...] = ()
    """Aliases that the key may call. Empty means all."""
    expires: datetime.datetime | None = None
    """The moment after which the key is refused, with a time zone. None means never."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _accept_plain(cls, value: Any) -> Any:
        return {"key": value} if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if (self.key is None) == (self.sha256 is None):
            raise ValueError("an API key needs either key or sha256")
        if self.key is not None and not self.key.get_secret_value().strip():
            raise ValueError("an API key is empty")
        if self.key is not None and self.key.get_secret_value() != self.key.get_secret_value().strip():
            raise ValueError("an API key begins or ends with a blank, which no header can carry")
        if self.expires is not None and self.expires.tzinfo is None:
            raise ValueError("expires needs a time zone, for example 2027-01-31T00:00:00Z")
        return self

    @property
    def digest(self) -> str:
        """The SHA-256 of the key in lower-case hex: what requests are looked up by, so that the key itself need not be kept."""
        if self.sha256 is not None:
            return self.sha256.lower()
        assert self.key is not None  # noqa: S101 - _check proved it
        return digest(self.key.get_secret_value())

    @property
    def principal(self) -> str:
        """What the key's owner is called in logs and metrics: the name, or `key-` and the digest's first 8 digits."""
        return self.name or f"key-{self.digest[:8]}"


class AuthFile(Schema):
    """The whole file."""

    api_keys: tuple[ApiKey, ...] = ()
    allow_anonymous_without_api_keys: bool = False
    """Whether a request without any key is served, as `anonymous`. A wrong key is refused always."""

    @pydantic.model_validator(mode="after")
    def _check_unique(self) -> Self:
        digests = [key.digest for key in self.api_keys]
        if len(set(digests)) != len(digests):
            raise ValueError("api_keys: the same key stands there twice")
        return self


def digest(secret: str) -> str:
    """Return the SHA-256 of a key in lower-case hex. Keys are random and long, so no slow hash is needed (notes in SECURITY.md)."""
    return hashlib.sha256(secret.encode()).hexdigest()


def load_auth(path: Path) -> AuthFile:
    """Read `auth.yaml`; raises ConfigError."""
    return load(path, AuthFile)
