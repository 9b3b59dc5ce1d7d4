"""Who is let in by a key."""

from __future__ import annotations

import datetime

import pytest

from gateway.auth.authenticator import Authenticator
from quadrate.config.auth import AuthFile, digest
from quadrate.config.yamlfile import parse
from quadrate.errors import ConfigError, PermissionDenied, Unauthenticated
from quadrate.telemetry import Telemetry

FILE = f"""
api_keys:
  - plain-key
  - {{name: team, sha256: {digest("hashed-key").upper()}, models: [minilm], tasks: [embed]}}
  - {{name: old, key: old-key, expires: 2020-01-01T00:00:00Z}}
  - {{name: next, key: next-key, not_before: 2999-01-01T00:00:00+02:00}}
  - name: changing
    expires: 2031-01-01T00:00:00Z
    secrets:
      - {{key: last-years-key, expires: 2030-01-15T00:00:00Z}}
      - {{sha256: {digest("this-years-key")}, not_before: 2030-01-01T00:00:00Z, expires: 2032-01-01T00:00:00Z}}
"""


def authenticator(file: str = FILE, *, anonymous: bool = False, at: str | None = None) -> Authenticator:
    """Return one for a file, whose clock stands at a moment in ISO form if one is given."""
    text = f"{file}\nallow_anonymous_without_api_keys: {str(anonymous).lower()}"
    clock = {} if at is None else {"clock": datetime.datetime.fromisoformat(at).timestamp}
    return Authenticator(parse(text, AuthFile, name="auth.yaml"), Telemetry.silent("router").metrics, **clock)


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        ({"authorization": "Bearer plain-key"}, f"key-{digest('plain-key')[:8]}"),
        ({"authorization": "bearer  plain-key "}, f"key-{digest('plain-key')[:8]}"),
        ({"x-api-key": "hashed-key"}, "team"),
        ({"x-api-key": "hashed-key", "authorization": "Bearer hashed-key"}, "team"),
        ({"x-api-key": "hashed-key", "authorization": ""}, "team"),
        ({"x-api-key": "hashed-key", "authorization": "Bearer"}, "team"),
    ],
)
async def test_a_known_key_is_a_principal(metadata: dict[str, str], name: str) -> None:
    """By either header; a key without a name is called by its digest."""
    assert (await authenticator().authenticate(metadata)).name == name


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
        {"authorization": "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9."},
    ],
)
async def test_a_wrong_key_is_refused_always(metadata: dict[str, str], anonymous: bool) -> None:  # noqa: FBT001
    """Even where no key would do; and the error does not repeat it."""
    with pytest.raises(Unauthenticated) as caught:
        await authenticator(anonymous=anonymous).authenticate(metadata)
    assert not any(secret in caught.value.message for secret in ("wrong", "plain-key", "dXNlcjpwYXNz", "eyJ"))


@pytest.mark.parametrize("metadata", [{}, {"authorization": "Bearer "}, {"x-api-key": ""}, {"authorization": ""}])
async def test_no_key_is_anonymous_where_that_is_allowed(metadata: dict[str, str]) -> None:
    """SDKs that are given an empty key send `Bearer` and nothing."""
    assert (await authenticator(anonymous=True).authenticate(metadata)).name == "anonymous"
    with pytest.raises(Unauthenticated) as caught:
        await authenticator().authenticate(metadata)
    assert caught.value.code == "missing_api_key"


async def test_a_file_that_says_nothing_lets_nobody_in() -> None:
    """No keys and no anonymous callers: closed, not open."""
    nobody = Authenticator(AuthFile(), Telemetry.silent("router").metrics)
    for metadata in ({}, {"x-api-key": "any"}):
        with pytest.raises(Unauthenticated):
            await nobody.authenticate(metadata)


@pytest.mark.parametrize("metadata", [{"authorization": "Bearer x"}, {"x-api-key": "x"}, {"authorization": "Basic x"}, {}])
async def test_any_key_is_none_where_that_is_switched_on(metadata: dict[str, str]) -> None:
    """Clients that insist on a key may send whatever they like to a mesh that has none."""
    open_door = authenticator("accept_any_key_as_anonymous: true", anonymous=True)
    assert (await open_door.authenticate(metadata)).name == "anonymous"


@pytest.mark.parametrize(
    ("key", "code", "then"),
    [("old-key", "api_key_expired", "2019-12-31T23:59:59+00:00"), ("next-key", "api_key_not_yet_valid", "2998-12-31T22:00:00+00:00")],
)
async def test_a_key_out_of_its_time_is_refused(key: str, code: str, then: str) -> None:
    """It is known, so 403: a new one is needed, not another spelling. The end is outside the period, the beginning inside."""
    with pytest.raises(PermissionDenied) as caught:
        await authenticator().authenticate({"x-api-key": key})
    assert caught.value.code == code
    await authenticator(at=then).authenticate({"x-api-key": key})


@pytest.mark.parametrize(
    ("at", "last", "this"),
    [
        ("2029-12-31T00:00:00+00:00", "ok", "api_key_not_yet_valid"),
        ("2030-01-10T00:00:00+00:00", "ok", "ok"),
        ("2030-01-15T00:00:00+00:00", "api_key_expired", "ok"),
        ("2031-01-01T00:00:00+00:00", "api_key_expired", "api_key_expired"),
    ],
)
async def test_two_secrets_of_a_key_are_one_caller_while_it_changes_over(at: str, last: str, this: str) -> None:
    """Each is accepted in its own period and its key's, and both are called by the key's name."""
    for secret, outcome in (("last-years-key", last), ("this-years-key", this)):
        try:
            found = await authenticator(at=at).authenticate({"x-api-key": secret})
        except PermissionDenied as exc:
            assert exc.code == outcome  # noqa: PT017 - one of two outcomes
        else:
            assert (found.name, outcome) == ("changing", "ok")


async def test_a_key_may_be_held_to_models_and_tasks() -> None:
    """No list means all."""
    team = await authenticator().authenticate({"x-api-key": "hashed-key"})
    assert (team.may_call("minilm"), team.may_call("other")) == (True, False)
    assert (team.may_ask_for("embed"), team.may_ask_for("rerank")) == (True, False)
    plain = await authenticator().authenticate({"x-api-key": "plain-key"})
    assert plain.may_call("other")
    assert plain.may_ask_for("rerank")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("api_keys: ['']", "api_keys[0].key: the key is empty"),
        ("api_keys: ['a b']", "holds a blank"),
        ("api_keys: ['schlüssel']", "visible ASCII"),
        (
            "api_keys: [{key: a, sha256: '0000000000000000000000000000000000000000000000000000000000000000'}]",
            "needs one of key, sha256 and secrets",
        ),
        ("api_keys: [{name: a}]", "needs one of key, sha256 and secrets"),
        ("api_keys: [{key: a, secrets: [b]}]", "needs one of key, sha256 and secrets"),
        ("api_keys: [{sha256: abc}]", "sha256"),
        ("api_keys: [{secrets: [a, b, c]}]", "at most 2"),
        ("api_keys: [{secrets: [{name: a}]}]", "unknown key"),
        ("api_keys: [a, a]", "api_keys[1]: the same key as that of api_keys[0]"),
        ("api_keys: [a, {secrets: [b, a]}]", "api_keys[1]: the same key as that of api_keys[0]"),
        ("api_keys: [{key: a, expires: 2027-01-31}]", "needs a time and a time zone"),
        ("api_keys: [{key: a, not_before: 2027-01-31T00:00:00}]", "needs a time and a time zone"),
        ("api_keys: [{key: a, not_before: 2027-01-31T00:00:00Z, expires: 2026-01-31T00:00:00Z}]", "never be valid"),
        ("api_keys: [{key: a, tasks: [embeds]}]", "'embed' or 'rerank'"),
        ("api_keys: [{key: a, name: anonymous}]", "'anonymous' is one that others have"),
        ("api_keys: [{key: a, name: 'jwt:alice'}]", "'jwt:alice' is one that others have"),
        ("api_keys: [{key: a, name: key-0123abcd}]", "'key-0123abcd' is one that others have"),
        ("api_keys: [{key: a, name: ' b'}]", "begins or ends with a blank"),
        ("api_keys: [{key: a-secret, name: a-secret}]", "the name is the key itself"),
        ("accept_any_key_as_anonymous: true", "needs allow_anonymous_without_api_keys"),
        ("{accept_any_key_as_anonymous: true, allow_anonymous_without_api_keys: true, api_keys: [a]}", "cannot stand beside api_keys"),
        ("jwt: {issuer: i, audience: a}", "needs either jwks_url or jwks_path"),
        ("jwt: {issuer: i, audience: a, jwks_url: 'http://issuer.example.com/keys'}", "must begin with https://"),
        ("jwt: {issuer: i, audience: a, jwks_url: 'https://me:hunter2@issuer.example.com/keys'}", "the URL holds an @"),
        ("jwt: {issuer: i, audience: a, jwks_url: 'https://me:hun/hunter2@issuer.example.com/keys'}", "the URL holds an @"),
        ("jwt: {issuer: i, audience: a, jwks_url: 'https:me:hunter2@issuer.example.com/keys'}", "the URL holds an @"),
        ("jwt: {issuer: i, audience: a, jwks_url: 'https://issuer.example.com:hunter2/keys'}", "this is no URL"),
        ("jwt: {issuer: i, audience: a, jwks_url: 'https://[issuer/keys?hunter2'}", "this is no URL"),
        ("jwt: {issuer: i, audience: a, jwks_url: 'https://issuer.example.com/my keys'}", "holds a blank"),
        ("jwt: {issuer: i, audience: a, jwks_url: 'http://issuer.example.com/keys?hunter2'}", "must begin with https://"),
        ("api_keys: [{name: a, key: b, expires: 2027}]", "api_keys[0].expires: 2027 is a number; write a time and a time zone"),
        ("api_keys: alice", "api_keys: must be a list"),
        ("api_keys: [918273645]", "api_keys[0]: a number is no text; put a key of digits between quotes"),
        ("jwt: x", "jwt: must be a mapping of keys to values; allowed: issuer,"),
        ("[a-secret]", "must be a mapping of keys to values; allowed: api_keys,"),
        ("jwt: {issuer: i, audience: a, jwks_path: keys.json}", "is relative"),
        ("jwt: {issuer: i, audience: [], jwks_path: /keys.json}", "audience"),
        ("jwt: {issuer: i, audience: a, jwks_path: /keys.json, algorithms: [HS256]}", "algorithms"),
        ("jwt: {issuer: i, audience: a, jwks_path: /keys.json, algorithms: [none]}", "algorithms"),
    ],
)
def test_a_file_that_would_surprise_is_refused(text: str, fault: str) -> None:
    """With its place and what is wrong, and without the key."""
    with pytest.raises(ConfigError) as caught:
        parse(text, AuthFile, name="auth.yaml")
    assert fault in str(caught.value)
    assert str(caught.value).startswith("auth.yaml:1: ")
    assert not any(secret in str(caught.value) for secret in ("a-secret", "schlüssel", "'a b'", "hunter2", "918273645"))


def test_an_earlier_deployments_file_means_the_same() -> None:
    """Two keys, written plainly, for everything and for ever."""
    file = parse('api_keys: ["production-key-1", "admin-key"]\nallow_anonymous_without_api_keys: false', AuthFile, name="auth.yaml")
    assert [key.digest for key in file.api_keys] == [digest("production-key-1"), digest("admin-key")]
    assert all((key.models, key.tasks, key.expires, key.not_before) == ((), (), None, None) for key in file.api_keys)
    assert not file.allow_anonymous_without_api_keys
