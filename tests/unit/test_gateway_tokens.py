"""Who is let in by a token, whatever is done to it, and how the issuer's keys are followed."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import TYPE_CHECKING, Any

import jwt
import pytest

from gateway.auth import signing
from gateway.auth.authenticator import Authenticator
from quadrate.config.auth import AuthFile
from quadrate.config.yamlfile import parse
from quadrate.errors import ConfigError, PermissionDenied, Unauthenticated, Unavailable
from quadrate.telemetry import Telemetry
from quadrate.testing.issuer import Issuer, SigningKey
from tests.processes import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from gateway.auth.principal import Principal

BAD = [
    ("expired", {"exp": 1_600_000_000}, "token_expired"),
    ("from the future", {"nbf": 4_000_000_000}, "invalid_token"),
    ("of another issuer", {"iss": "https://issuer.test/"}, "invalid_token"),
    ("for another service", {"aud": "else"}, "invalid_token"),
    ("for nobody", {"aud": None}, "invalid_token"),
    ("for ever", {"exp": None}, "invalid_token"),
    ("without a name", {"sub": None}, "invalid_token"),
    ("with a name that is none", {"sub": ""}, "invalid_token"),
    ("with a name of two lines", {"sub": "a\nb"}, "invalid_token"),
    ("with a long name", {"sub": "a" * 129}, "invalid_token"),
]


def configured(issuer: Issuer, **fields: Any) -> AuthFile:
    """Return a file that accepts an issuer's tokens, and one key."""
    source = {"jwks_url": issuer.jwks_url} if "jwks_path" not in fields else {}
    described = {"issuer": issuer.name, "audience": issuer.audience, **source, **fields}
    return parse(json.dumps({"api_keys": ["a-key"], "jwt": described}), AuthFile, name="auth.yaml")


class Door:
    """An authenticator of which the tests know the metrics."""

    def __init__(self, file: AuthFile, before: Door | None = None) -> None:
        self.telemetry = Telemetry.silent("router")
        self.authenticator = Authenticator(file, self.telemetry.metrics, before=None if before is None else before.authenticator)

    async def enter(self, token: str) -> Principal:
        """Show a token."""
        return await self.authenticator.authenticate({"authorization": f"Bearer {token}"})

    @property
    def signing(self) -> signing.SigningKeys:
        """The keys that it verifies by."""
        assert self.authenticator._tokens is not None
        return self.authenticator._tokens.signing

    async def seconds_to_wait(self, token: str) -> float | None:
        """Show a token of which nothing is known yet, and return after how long it may be shown again."""
        with pytest.raises(Unavailable, match="not known here yet") as caught:
            await self.enter(token)
        return caught.value.retry_after_seconds

    async def refusal(self, token: str) -> str | None:
        """Show a token that must be refused, and return the error's code."""
        with pytest.raises(Unauthenticated) as caught:
            await self.enter(token)
        assert not any(len(part) > 4 and part in caught.value.message for part in token.split("."))
        return caught.value.code


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    """An issuer that publishes over HTTP."""
    async with Issuer() as found:
        yield found


async def test_the_claim_that_is_missing_is_named(issuer: Issuer) -> None:
    """Its name is one of those that the file asks for, so nothing of the token is told."""
    with pytest.raises(Unauthenticated, match="lacks the claim exp, which is needed here"):
        await Door(configured(issuer)).enter(issuer.token(exp=None))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the keys be fetched as often as something asks for it."""
    monkeypatch.setattr(signing, "BETWEEN_FETCHES_SECONDS", 0.0)


@pytest.mark.parametrize("algorithm", ["ES256", "ES384", "RS256", "PS256", "EdDSA"])
async def test_a_token_is_a_principal(algorithm: str) -> None:
    """By each kind of signature; a name of a token is never one of a key."""
    async with Issuer(algorithm) as issuer:
        found = await Door(configured(issuer, algorithms=[algorithm])).enter(issuer.token("alice"))
    assert (found.name, found.models, found.tasks) == ("jwt:alice", None, None)


@pytest.mark.parametrize(("name", "claims", "code"), BAD, ids=[name for name, _, _ in BAD])
async def test_a_token_that_does_not_hold_is_refused(name: str, claims: dict[str, Any], code: str, issuer: Issuer) -> None:
    """In words of ours, which repeat nothing of it."""
    assert await Door(configured(issuer)).refusal(issuer.token(**claims)) == code


async def test_a_token_that_was_tampered_with_is_refused(issuer: Issuer) -> None:
    """Other claims under the same signature, no signature, another's signature, a shared secret made of the public key."""
    door, good = Door(configured(issuer)), issuer.token("alice")
    head, claims, signature = good.split(".")
    others = _part({"iss": issuer.name, "aud": issuer.audience, "sub": "admin", "exp": int(time.time()) + 60})
    public = issuer.signing.jwk()["x"]
    forged = [
        f"{head}.{others}.{signature}",
        f"{head}.{claims}.",
        f"{head}.{claims}.{signature[:-8]}AAAAAAA",
        f"{_part({'alg': 'none', 'kid': issuer.signing.kid})}.{others}.",
        f"{_part({'alg': 'ES256'})}.{claims}.{signature}",
        issuer.token(key=SigningKey(issuer.signing.kid)),
        jwt.encode({"sub": "admin"}, public, algorithm="HS256", headers={"kid": issuer.signing.kid}),
        issuer.token(key=SigningKey(issuer.signing.kid, "RS256")),
        "eyJhbGciOiJFUzI1NiJ9.e30.x",
        "eyJ.e.x",
        "eyJhbGciOiJFUzI1NiIsImtpZCI6eyJhIjoxfX0.e30.AAAA",
    ]
    for token in forged:
        assert await door.refusal(token) == "invalid_token", token
    assert (await door.enter(good)).name == "jwt:alice"


async def test_a_key_goes_before_a_token_and_a_token_only_as_bearer(issuer: Issuer) -> None:
    """Both may be configured; x-api-key is for keys."""
    door = Door(configured(issuer))
    assert (await door.enter("a-key")).name.startswith("key-")
    with pytest.raises(Unauthenticated) as caught:
        await door.authenticator.authenticate({"x-api-key": issuer.token()})
    assert caught.value.code == "invalid_api_key"


async def test_claims_say_what_a_caller_may_do(issuer: Issuer) -> None:
    """A list or words between blanks; a token without the claim may do nothing, and what is unknown counts for nothing."""
    door = Door(configured(issuer, models_claim="models", tasks_claim="scope", name_claim="azp"))
    found = await door.enter(issuer.token(azp="indexer", models=["minilm", 7], scope="openid embed"))
    assert (found.name, found.models, found.tasks) == ("jwt:indexer", {"minilm"}, {"embed"})
    for claims in ({"models": [], "scope": "embed"}, {"scope": "embed"}, {"models": "minilm"}, {"models": ["m"], "scope": "openid"}):
        with pytest.raises(PermissionDenied, match="names nothing"):
            await door.enter(issuer.token(azp="indexer", **claims))


async def test_a_time_in_words_of_digits_is_a_time(issuer: Issuer) -> None:
    """Some issuers write numbers as strings, which the library accepts."""
    token = issuer.token(exp=str(int(time.time()) + 60))
    assert (await Door(configured(issuer)).enter(token)).name == "jwt:alice"


async def test_leeway_is_for_clocks_that_differ(issuer: Issuer) -> None:
    """On both ends."""
    token = issuer.token(exp=int(time.time()) - 20)
    assert (await Door(configured(issuer, leeway_seconds=60)).enter(token)).name == "jwt:alice"
    assert await Door(configured(issuer, leeway_seconds=5)).refusal(token) == "token_expired"


async def test_a_verified_token_costs_no_second_signature(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it expires."""
    now = time.time()
    file, metrics = configured(issuer), Telemetry.silent("router").metrics
    clock = [now]
    door = Authenticator(file, metrics, clock=lambda: clock[0])
    metadata = {"authorization": f"Bearer {issuer.token(exp=int(now) + 100)}"}
    first = await door.authenticate(metadata)
    verified: list[str] = []
    decode = jwt.decode
    monkeypatch.setattr(jwt, "decode", lambda token, **options: verified.append(token) or decode(token, **options))
    assert await door.authenticate(metadata) is first
    assert not verified
    clock[0] = now + 131
    await door.authenticate(metadata)  # PyJWT's own clock has not moved
    assert len(verified) == 1


async def test_what_is_remembered_is_bounded(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller who gets a new token for each request does not fill the memory."""
    monkeypatch.setattr("gateway.auth.tokens.MAX_REMEMBERED", 3)
    door = Door(configured(issuer))
    for number in range(10):
        await door.enter(issuer.token(f"caller-{number}"))
    assert len(door.authenticator._tokens._remembered) == 3  # type: ignore[union-attr]


async def test_keys_are_fetched_once_for_all_who_wait(issuer: Issuer) -> None:
    """And not before the first token comes."""
    door = Door(configured(issuer))
    assert issuer.fetches == 0
    issuer.answers.clear()
    waiting = [asyncio.create_task(door.enter(issuer.token(f"caller-{number}"))) for number in range(20)]
    await eventually(lambda: issuer.fetches == 1, "the keys are asked for")
    waiting[0].cancel()
    issuer.answers.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert {principal.name for principal in found[1:] if not isinstance(principal, BaseException)} == {
        f"jwt:caller-{n}" for n in range(1, 20)
    }
    assert issuer.fetches == 1


@pytest.mark.usefixtures("impatient")
async def test_a_rotated_key_is_found_when_the_first_token_names_it(issuer: Issuer) -> None:
    """The first request signed by it succeeds; tokens of a key that the issuer took back do not, remembered or not."""
    door, old = Door(configured(issuer)), issuer.token("old")
    await door.enter(old)
    issuer.rotate(keep=1)
    assert (await door.enter(issuer.token("new"))).name == "jwt:new"
    assert (await door.enter(old)).name == "jwt:old"
    assert issuer.fetches == 2
    issuer.rotate()
    await door.enter(issuer.token("newest"))
    assert await door.refusal(old) == "invalid_token"


async def test_made_up_key_ids_do_not_flood_the_issuer(issuer: Issuer) -> None:
    """However many come, it is asked no more often than is right; once it was, they are refused for good."""
    door, now = Door(configured(issuer)), [0.0]
    door.signing._clock = lambda: now[0]
    await door.enter(issuer.token())
    made_up, now[0] = [issuer.token(key=SigningKey(f"made-up-{number}")) for number in range(50)], 1.0
    for token in made_up:
        assert await door.seconds_to_wait(token) == signing.BETWEEN_FETCHES_SECONDS - 1.0
    assert issuer.fetches == 1
    now[0] = signing.BETWEEN_FETCHES_SECONDS
    for token in made_up:
        assert await door.refusal(token) == "invalid_token"
    assert issuer.fetches == 2
    now[0] += 1.0
    assert await door.seconds_to_wait(issuer.token(key=SigningKey("made-up-later"))) == signing.BETWEEN_FETCHES_SECONDS - 1.0


async def test_a_key_that_the_issuer_may_have_by_now_is_waited_for(issuer: Issuer) -> None:
    """A token of a key that came after the last fetch is not wrong: its caller is told when the keys are asked for again."""
    door, now = Door(configured(issuer)), [0.0]
    door.signing._clock = lambda: now[0]
    await door.enter(issuer.token())
    issuer.rotate(keep=1)
    token = issuer.token("new")
    now[0] = 2.0
    assert await door.seconds_to_wait(token) == 3.0
    now[0] = 5.0
    assert (await door.enter(token)).name == "jwt:new"
    assert issuer.fetches == 2


async def test_a_key_is_not_called_unknown_while_the_issuer_fails(issuer: Issuer) -> None:
    """However long that is; a key that it did not have when it last answered, and was asked for, is."""
    door, now = Door(configured(issuer)), [0.0]
    door.signing._clock = lambda: now[0]
    await door.enter(issuer.token())
    now[0], gone = 5.0, issuer.token(key=SigningKey("gone"))
    assert await door.refusal(gone) == "invalid_token"
    issuer.rotate(keep=1)
    issuer.status, token = 500, issuer.token("new")
    for now[0] in (10.0, 15.0, 600.0):
        assert await door.seconds_to_wait(token) == signing.BETWEEN_FETCHES_SECONDS
        assert await door.refusal(gone) == "invalid_token"
    issuer.status, now[0] = 200, 605.0
    assert (await door.enter(token)).name == "jwt:new"


async def test_a_fetch_under_way_says_nothing_of_a_key_that_is_named_later(issuer: Issuer) -> None:
    """The issuer may have answered before it had the key."""
    door, now = Door(configured(issuer)), [0.0]
    door.signing._clock = lambda: now[0]
    issuer.answers.clear()
    first = asyncio.create_task(door.enter(issuer.token()))
    await eventually(lambda: issuer.fetches == 1, "the keys are asked for")
    now[0] = 1.0
    late = asyncio.create_task(door.seconds_to_wait(issuer.token(key=SigningKey("later"))))
    issuer.answers.set()
    assert (await first).name == "jwt:alice"
    assert await late == signing.BETWEEN_FETCHES_SECONDS


async def test_the_key_ids_that_are_remembered_are_bounded(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of them fills no memory."""
    monkeypatch.setattr(signing, "MOST_MISSED", 3)
    door = Door(configured(issuer))
    await door.enter(issuer.token())
    for number in range(10):
        await door.seconds_to_wait(issuer.token(key=SigningKey(f"made-up-{number}")))
    assert len(door.signing._missed) == 3


@pytest.mark.usefixtures("impatient")
async def test_old_keys_are_fetched_again_beside_the_requests(issuer: Issuer) -> None:
    """Nobody waits for it, and a key that was taken back is noticed though every token is remembered."""
    now = [0.0]
    door = Door(configured(issuer, jwks_cache_seconds=60))
    keys = door.signing
    keys._clock = lambda: now[0]
    token = issuer.token()
    await door.enter(token)
    issuer.rotate()
    issuer.answers.clear()
    now[0] = 61.0
    assert (await door.enter(token)).name == "jwt:alice"
    await eventually(lambda: issuer.fetches == 2, "the keys are asked for again")
    issuer.answers.set()
    await eventually(lambda: keys.generation == 2, "the keys are new")
    assert await door.refusal(token) == "invalid_token"


@pytest.mark.usefixtures("impatient")
async def test_an_issuer_that_is_away_leaves_its_last_keys_in_force_for_a_day(issuer: Issuer) -> None:
    """Then its tokens are refused with an error that may pass, not with one that says they are wrong."""
    now = [0.0]
    door = Door(configured(issuer, jwks_cache_seconds=60))
    keys = door.signing
    keys._clock = lambda: now[0]
    await door.enter(issuer.token())
    issuer.status = 500
    now[0] = 3600.0
    assert (await door.enter(issuer.token("bob"))).name == "jwt:bob"
    now[0] = signing.KEPT_SECONDS + 1
    with pytest.raises(Unavailable) as caught:
        await door.enter(issuer.token("carol"))
    assert caught.value.retry_after_seconds is not None
    assert 'router_jwks_fetches_total{outcome="failed"}' in door.telemetry.metrics.text().decode()
    issuer.status = 200
    assert (await door.enter(issuer.token("carol"))).name == "jwt:carol"


@pytest.mark.parametrize(
    "body", [b"<html>", b"[]", b"{}", b'{"keys": []}', b'{"keys": 7}', b'{"keys": [7]}', b'{"keys": [{"kty": "oct"}]}']
)
async def test_what_is_no_key_set_is_no_key_set(body: bytes, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error page, an empty set, shared secrets: the tokens wait."""
    monkeypatch.setattr(issuer, "jwks", lambda: body)
    with pytest.raises(Unavailable):
        await Door(configured(issuer)).enter(issuer.token())


@pytest.mark.parametrize(
    ("url", "variables"),
    [
        ("https://{host}/keys?secret", {}),
        ("https://localhost:1/keys?secret", {"SSL_CERT_FILE": "/nowhere/secret.pem"}),
        ("https://localhost:1/keys?secret", {"HTTPS_PROXY": "secret://user:secret@proxy"}),
        ("https://localhost:1/keys?secret", {"HTTPS_PROXY": "http://user:secret@[proxy"}),
        ("https://localhost:1/keys?secret", {}),
        (f"https://localhost:1/{'k' * 70_000}?secret", {}),
    ],
)
async def test_a_source_that_cannot_even_be_asked_is_one_that_is_away(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], url: str, variables: dict[str, str]
) -> None:
    """Whatever is wrong with its address or with what leads there. Nothing that may be secret is told of it."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    door = Door(configured(Issuer(), jwks_url=url))
    with pytest.raises(Unavailable):
        await door.enter(Issuer().token())
    assert "signing keys could not be fetched" in (said := capfd.readouterr().out)
    assert "secret" not in said
    assert 'router_jwks_fetches_total{outcome="failed"}' in door.telemetry.metrics.text().decode()


async def test_keys_that_cannot_verify_are_passed_over(issuer: Issuer, tmp_path: Path) -> None:
    """A set may hold keys for encryption, shared secrets and kinds from the future beside the one that counts."""
    others: list[dict[str, Any]] = [
        {"kty": "oct", "k": "AAAA"},
        {**issuer.signing.jwk(), "use": "enc", "kid": "e"},
        {"kty": "XMSS"},
        {"kty": "EC", "crv": "?"},
        {"kty": "RSA", "n": "AA", "e": "AA", "kid": "small"},
        {"kty": "RSA", "n": 5, "e": [], "kid": "odd"},
        {"kty": "EC", "crv": "P-256", "x": "A" * 43, "y": "A" * 43, "kid": "on no curve"},
        {"kty": "OKP", "crv": "Ed25519", "x": "A", "kid": "cut"},
    ]
    path = tmp_path / "jwks.json"
    path.write_bytes(issuer.jwks(others))
    found = await Door(configured(issuer, jwks_path=str(path))).enter(issuer.token(headers={}))
    assert found.name == "jwt:alice"


async def test_a_file_of_keys_is_checked_at_once(issuer: Issuer, tmp_path: Path) -> None:
    """So that a start, a reload and `config check` tell of it."""
    path = tmp_path / "jwks.json"
    for content, fault in ((None, "cannot be read"), (b"{", "no JSON Web Key Set"), (b'{"keys": []}', "no public key")):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError, match=fault):
            Door(configured(issuer, jwks_path=str(path)))


@pytest.mark.usefixtures("impatient")
async def test_a_file_of_keys_is_read_again(issuer: Issuer, tmp_path: Path) -> None:
    """When a token names a key that is new."""
    path = tmp_path / "jwks.json"
    path.write_bytes(issuer.jwks())
    door = Door(configured(issuer, jwks_path=str(path)))
    issuer.rotate()
    path.write_bytes(issuer.jwks())
    assert (await door.enter(issuer.token())).name == "jwt:alice"


async def test_a_reload_keeps_what_was_learnt(issuer: Issuer) -> None:
    """Keys stay for the same source; what was verified stays only for the same rules."""
    door, token = Door(configured(issuer)), issuer.token(models=["minilm"])
    await door.enter(token)
    same = Door(configured(issuer), door)
    await same.enter(token)
    stricter = Door(configured(issuer, models_claim="models"), same)
    assert (await stricter.enter(token)).models == {"minilm"}
    assert issuer.fetches == 1
    moved = Door(configured(issuer, jwks_cache_seconds=10), stricter)
    await moved.enter(token)
    assert issuer.fetches == 2
    gone = Door(parse("api_keys: [a-key]", AuthFile, name="auth.yaml"), moved)
    assert await gone.refusal(token) == "invalid_api_key"


def _part(claims: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
