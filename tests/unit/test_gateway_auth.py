"""Who is let in."""

from __future__ import annotations

import datetime

import pytest

from gateway.auth.keys import Authenticator
from quadrate.config.auth import AuthFile, digest
from quadrate.config.yamlfile import parse
from quadrate.errors import PermissionDenied, Unauthenticated

FILE = f"""
api_keys:
  - plain-key
  - {{name: team, sha256: {digest("hashed-key")}, models: [minilm]}}
  - {{name: old, key: old-key, expires: 2020-01-01T00:00:00Z}}
"""


def authenticator(*, anonymous: bool = False) -> Authenticator:
    """Return one for FILE."""
    return Authenticator(parse(FILE + f"allow_anonymous_without_api_keys: {str(anonymous).lower()}", AuthFile, name="auth.yaml"))


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        ({"authorization": "Bearer plain-key"}, f"key-{digest('plain-key')[:8]}"),
        ({"authorization": "bearer  plain-key "}, f"key-{digest('plain-key')[:8]}"),
        ({"x-api-key": "hashed-key"}, "team"),
        ({"x-api-key": "hashed-key", "authorization": "Bearer hashed-key"}, "team"),
    ],
)
def test_a_known_key_is_a_principal(metadata: dict[str, str], name: str) -> None:
    """By either header; a key without a name is called by its digest."""
    assert authenticator().authenticate(metadata).name == name


@pytest.mark.parametrize("anonymous", [True, False])
@pytest.mark.parametrize(
    "metadata",
    [
        {"authorization": "Bearer wrong"},
        {"x-api-key": "wrong"},
        {"authorization": "Basic dXNlcjpwYXNz"},
        {"authorization": "plain-key"},
        {"authorization": "Bearer plain-key", "x-api-key": "hashed-key"},
        {"authorization": "Bearer plain-key", "x-api-key": "wrong"},
        {"x-api-key": digest("plain-key")},
    ],
)
def test_a_wrong_key_is_refused_always(metadata: dict[str, str], anonymous: bool) -> None:  # noqa: FBT001
    """Even where no key would do; and the error does not repeat it."""
    with pytest.raises(Unauthenticated) as caught:
        authenticator(anonymous=anonymous).authenticate(metadata)
    assert not any(secret in caught.value.message for secret in ("wrong", "plain-key", "dXNlcjpwYXNz"))


@pytest.mark.parametrize("metadata", [{}, {"authorization": "Bearer "}, {"x-api-key": ""}, {"authorization": ""}])
def test_no_key_is_anonymous_where_that_is_allowed(metadata: dict[str, str]) -> None:
    """SDKs that are given an empty key send `Bearer` and nothing."""
    assert authenticator(anonymous=True).authenticate(metadata).name == "anonymous"
    with pytest.raises(Unauthenticated) as caught:
        authenticator().authenticate(metadata)
    assert caught.value.code == "missing_api_key"


def test_an_expired_key_is_refused() -> None:
    """It is known, so 403: a new one is needed, not another spelling."""
    with pytest.raises(PermissionDenied, match="expired"):
        authenticator().authenticate({"x-api-key": "old-key"})
    before = datetime.datetime(2019, 12, 31, tzinfo=datetime.UTC).timestamp()
    file = parse(FILE, AuthFile, name="auth.yaml")
    assert Authenticator(file, clock=lambda: before).authenticate({"x-api-key": "old-key"}).name == "old"


def test_a_key_may_be_held_to_models() -> None:
    """No list means all."""
    team = authenticator().authenticate({"x-api-key": "hashed-key"})
    assert team.may_call("minilm")
    assert not team.may_call("other")
    assert authenticator().authenticate({"x-api-key": "plain-key"}).may_call("other")
