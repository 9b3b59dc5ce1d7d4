"""JSON Web Key Sets (RFC 7517): the public keys that an issuer's tokens are verified by."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import jwt
import orjson

from quadrate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ALGORITHMS = {"RSA": ("RS", "PS"), "EC": ("ES",), "OKP": ("EdDSA",)}
"""How the algorithms begin that a key of a kind signs by. Shared secrets (`oct`) are not among them."""

Jwk = dict[str, Any]


def read(path: Path) -> Mapping[str | None, Jwk]:
    """As `parse`, of a file. Raises ConfigError that names it."""
    try:
        return parse(path.read_bytes())
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    except ConfigError as exc:
        raise ConfigError(f"{path}: {exc}") from exc


def parse(data: bytes) -> Mapping[str | None, Jwk]:
    """Return the keys that verify signatures, by their ids; others are passed over. Raises ConfigError where there are none."""
    try:
        keys = orjson.loads(data)["keys"]
        usable = {jwk.get("kid"): jwk for jwk in keys if jwk.get("kty") in ALGORITHMS and jwk.get("use", "sig") == "sig" and _is_whole(jwk)}
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as exc:
        raise ConfigError("what was read is no JSON Web Key Set: an object with a list `keys`") from exc
    if not usable:
        raise ConfigError("there is no public key in the JSON Web Key Set that verifies signatures")
    return MappingProxyType(usable)


def _is_whole(jwk: Jwk) -> bool:
    try:
        jwt.PyJWK(jwk)
    except (jwt.PyJWTError, ValueError, TypeError):  # the last two are of numbers that are none, or impossible
        return False
    return True
