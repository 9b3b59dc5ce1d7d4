"""`auth.yaml`: whose requests are served."""

from __future__ import annotations

import datetime
import hashlib
import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import pydantic

from quadrate.config.jwt import JwtIssuer
from quadrate.config.yamlfile import Schema, load, misplaced

if TYPE_CHECKING:
    from pathlib import Path

Task = Literal["embed", "rerank"]

ANONYMOUS_NAME = "anonymous"
"""What all callers without a key are called together."""
TOKEN_PREFIX = "jwt:"  # noqa: S105 - it begins names
"""What the names of callers with a token begin with, so that none is taken for a key's."""
MAX_SECRETS = 2
"""Secrets of one key: the one in use, and the next one while callers change over."""
_VISIBLE = re.compile(r"[\x21-\x7e]+")
_MADE_NAME = re.compile(r"key-[0-9a-f]{8}")


class Period(Schema):
    """When something is valid. Both ends have a time zone."""

    not_before: datetime.datetime | None = None
    """The moment from which it is accepted. None means from the beginning."""
    expires: datetime.datetime | None = None
    """The moment from which it is refused. None means never."""

    @pydantic.field_validator("not_before", "expires", mode="before")
    @classmethod
    def _refuse_number(cls, value: Any) -> Any:
        """Refuse 2027, which would be read as so many seconds after 1970: a key that had expired then."""
        if isinstance(value, int | float):
            raise ValueError(f"{value} is a number; write a time and a time zone, for example 2027-01-31T00:00:00Z")  # noqa: TRY004 - as all faults
        return value

    @pydantic.model_validator(mode="after")
    def _check_period(self) -> Self:
        for name, moment in (("not_before", self.not_before), ("expires", self.expires)):
            if moment is not None and moment.tzinfo is None:
                raise ValueError(f"{name} needs a time and a time zone, for example 2027-01-31T00:00:00Z")
        if self.not_before is not None and self.expires is not None and self.not_before >= self.expires:
            raise ValueError("not_before is not earlier than expires, so it would never be valid")
        return self


def _check_key(value: pydantic.SecretStr) -> pydantic.SecretStr:
    if not _VISIBLE.fullmatch(value.get_secret_value()):
        raise ValueError("the key is empty, or holds a blank or another character that no header carries; use visible ASCII")
    return value


Key = Annotated[pydantic.SecretStr, pydantic.AfterValidator(_check_key)]
Sha256 = Annotated[str, pydantic.Field(pattern=r"^[0-9a-fA-F]{64}$")]


class Secret(Period):
    """What a caller shows: written plainly as a string, or as a mapping with its SHA-256 instead of itself, and its own period."""

    key: Key | None = None
    sha256: Sha256 | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _accept_plain(cls, value: Any) -> Any:
        return {"key": value} if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if (self.key is None) == (self.sha256 is None):
            raise ValueError("a secret needs either key or sha256")
        return self

    @property
    def digest(self) -> str:
        """The SHA-256 of the key in lower-case hex: what requests are looked up by, so that the key itself need not be kept."""
        if self.sha256 is not None:
            return self.sha256.lower()
        assert self.key is not None  # noqa: S101 - _check proved it
        return digest(self.key.get_secret_value())


class ApiKey(Period):
    """One key: written plainly as a string, or as a mapping with its secret or secrets, a name, and what it may do."""

    key: Key | None = None
    sha256: Sha256 | None = None
    secrets: tuple[Secret, ...] = pydantic.Field(default=(), max_length=MAX_SECRETS)
    """Instead of `key` or `sha256`: up to two secrets, all of which are accepted, each in its own period."""
    name: str | None = pydantic.Field(default=None, min_length=1, max_length=64)
    models: tuple[str, ...] = ()
    """Aliases that the key may call. Empty means all."""
    tasks: tuple[Task, ...] = ()
    """What the key may ask for: embed, rerank. Empty means both."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _accept_plain(cls, value: Any) -> Any:
        if isinstance(value, int | float):
            raise ValueError("a number is no text; put a key of digits between quotes")  # noqa: TRY004 - as all faults
        return {"key": value} if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if [self.key, self.sha256, self.secrets or None].count(None) != 2:  # noqa: PLR2004 - all but one
            raise ValueError("an API key needs one of key, sha256 and secrets")
        self._check_name()
        return self

    def _check_name(self) -> None:
        if self.name is None:
            return
        if self.name == ANONYMOUS_NAME or self.name.startswith(TOKEN_PREFIX) or _MADE_NAME.fullmatch(self.name):
            raise ValueError(f"the name {self.name!r} is one that others have: anonymous, jwt:… and key-xxxxxxxx are taken")
        if not self.name.isprintable() or self.name != self.name.strip():
            raise ValueError("the name begins or ends with a blank, or holds a character that cannot be printed")
        if digest(self.name) in self.digests:
            raise ValueError("the name is the key itself, and names stand in logs and metrics; choose another")

    @property
    def all_secrets(self) -> tuple[Secret, ...]:
        """Its secrets, the one of `key` or `sha256` included."""
        return self.secrets or (Secret(key=self.key, sha256=self.sha256),)

    @property
    def digest(self) -> str:
        """The SHA-256 of its first secret."""
        return self.all_secrets[0].digest

    @property
    def digests(self) -> tuple[str, ...]:
        """The SHA-256 of each of its secrets."""
        return tuple(secret.digest for secret in self.all_secrets)

    @property
    def principal(self) -> str:
        """What the key's owner is called in logs and metrics: the name, or `key-` and the first 8 digits of the first secret's digest."""
        return self.name or f"key-{self.digest[:8]}"


class AuthFile(Schema):
    """The whole file."""

    secret_in: ClassVar[frozenset[str]] = frozenset({"api_keys"})
    api_keys: tuple[ApiKey, ...] = ()
    jwt: JwtIssuer | None = None
    """Who signs tokens that are accepted in place of keys. None means nobody."""
    allow_anonymous_without_api_keys: bool = False
    """Whether a request without any key is served, as `anonymous`. A wrong key is refused."""
    accept_any_key_as_anonymous: bool = False
    """Whether whatever stands in a key's place counts as no key, for clients that insist on one. Only where no key could be wrong."""

    @pydantic.model_validator(mode="after")
    def _check_unique(self) -> Self:
        owners: dict[str, int] = {}
        for number, key in enumerate(self.api_keys):
            for digest in key.digests:
                if digest in owners:
                    raise misplaced(f"the same key as that of api_keys[{owners[digest]}]; each is written once", "api_keys", number)
                owners[digest] = number
        return self

    @pydantic.model_validator(mode="after")
    def _check_any_key(self) -> Self:
        if not self.accept_any_key_as_anonymous:
            return self
        switch = "accept_any_key_as_anonymous"
        if not self.allow_anonymous_without_api_keys:
            raise misplaced(f"{switch} needs allow_anonymous_without_api_keys: true", switch)
        if self.api_keys or self.jwt is not None:
            raise misplaced(f"{switch} cannot stand beside api_keys or jwt: a mistyped key would pass as anonymous", switch)
        return self


def digest(secret: str) -> str:
    """Return the SHA-256 of a key in lower-case hex. Keys are random and long, so no slow hash is needed (docs/auth.md)."""
    return hashlib.sha256(secret.encode()).hexdigest()


def load_auth(path: Path) -> AuthFile:
    """Read `auth.yaml`; raises ConfigError."""
    return load(path, AuthFile)
