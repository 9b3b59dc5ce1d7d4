"""JSON Web Tokens: verified by their issuer's keys, and what their claims say of a caller."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jwt

from gateway.auth.principal import Principal
from gateway.auth.signing import INVALID_TOKEN, SigningKeys
from quadrate.config.auth import TOKEN_PREFIX
from quadrate.errors import PermissionDenied, Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from quadrate.config.auth import Task
    from quadrate.config.jwt import JwtIssuer
    from quadrate.telemetry import Metrics

MAX_REMEMBERED = 10_000
"""Verified tokens that are remembered, so that a caller's next request costs no signature. Each takes some 500 bytes."""
MAX_NAME_CHARACTERS = 128
_TASKS: tuple[Task, ...] = ("embed", "rerank")


@dataclass(frozen=True, slots=True)
class _Verified:
    """What a token said when it was verified, good until a moment in Unix seconds and while the signing keys stay what they are."""

    principal: Principal
    until: float
    generation: int


class Tokens:
    """Verifies the tokens of one issuer.

    Args:
        issuer: Who, and how.
        signing: Its keys.
        clock: Unix seconds.
    """

    def __init__(self, issuer: JwtIssuer, signing: SigningKeys, *, clock: Callable[[], float]) -> None:
        self._issuer = issuer
        self.signing = signing
        self._clock = clock
        self._remembered: dict[bytes, _Verified] = {}

    @classmethod
    def of(cls, issuer: JwtIssuer, before: Tokens | None, metrics: Metrics, *, clock: Callable[[], float]) -> Tokens:
        """Return them for an issuer, with all that those before it have learnt as far as it still holds. Raises ConfigError."""
        if before is not None and before._issuer == issuer:  # noqa: SLF001 - its own class
            return before
        if before is not None and before.signing.is_of(issuer):
            return cls(issuer, before.signing, clock=clock)
        return cls(issuer, SigningKeys(issuer, metrics), clock=clock)

    async def principal(self, token: str) -> Principal:
        """Return whose token it is.

        Raises:
            Unauthenticated: It is no token, not for us, not signed by the issuer, too old or too young.
            PermissionDenied: It names nothing that its bearer may do.
            Unavailable: The issuer's keys cannot be had.
        """
        digest, now = hashlib.sha256(token.encode()).digest(), self._clock()
        known = self._remembered.get(digest)
        if known is not None and known.generation == self.signing.generation and now < known.until:
            self.signing.keep_fresh()
            return known.principal
        claims = await self._claims(token)
        principal = self._named(claims)
        self._remember(digest, _Verified(principal, int(claims["exp"]) + self._issuer.leeway_seconds, self.signing.generation))
        return principal

    def _remember(self, digest: bytes, verified: _Verified) -> None:
        self._remembered.pop(digest, None)
        if len(self._remembered) >= MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[digest] = verified

    async def _claims(self, token: str) -> dict[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
            algorithm, kid = str(header.get("alg")), header.get("kid")
            if algorithm not in self._issuer.algorithms:
                raise _refused("is signed by an algorithm that is not accepted here")
            key = await self.signing.find(kid if kid is None else str(kid), algorithm)
            return dict(
                jwt.decode(
                    token,
                    key=key,
                    algorithms=[algorithm],
                    issuer=self._issuer.issuer,
                    audience=list(self._issuer.audience),
                    leeway=self._issuer.leeway_seconds,
                    options={"require": ["exp", "iss", "aud", self._issuer.name_claim]},
                )
            )
        except jwt.PyJWTError as exc:
            raise _refused(_fault(exc), code="token_expired" if isinstance(exc, jwt.ExpiredSignatureError) else INVALID_TOKEN) from exc

    def _named(self, claims: Mapping[str, Any]) -> Principal:
        name = claims[self._issuer.name_claim]
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARACTERS or not name.isprintable():
            raise _refused(f"has a claim {self._issuer.name_claim} that is no printable text of 1 to {MAX_NAME_CHARACTERS} characters")
        models = _listed(claims, self._issuer.models_claim)
        asked = _listed(claims, self._issuer.tasks_claim)
        tasks = None if asked is None else frozenset(task for task in _TASKS if task in asked)
        for claim, allowed in ((self._issuer.models_claim, models), (self._issuer.tasks_claim, tasks)):
            if allowed is not None and not allowed:
                raise PermissionDenied(f"The token may do nothing here: its claim {claim} names nothing. Get one that does.")
        return Principal(f"{TOKEN_PREFIX}{name}", models, tasks)


def looks_like_token(text: str) -> bool:
    """Whether a text has the form of a signed token: three parts between dots, the first an encoded JSON object."""
    return text.startswith("eyJ") and text.count(".") == 2  # noqa: PLR2004 - header, claims, signature


def _listed(claims: Mapping[str, Any], claim: str | None) -> frozenset[str] | None:
    """Return what a claim lists, as JSON or between blanks (as `scope` does); None where no claim is asked for."""
    if claim is None:
        return None
    value = claims.get(claim)
    items = value.split() if isinstance(value, str) else value if isinstance(value, list) else ()
    return frozenset(item for item in items if isinstance(item, str))


_FAULTS: tuple[tuple[type[jwt.PyJWTError], str], ...] = (
    (jwt.ExpiredSignatureError, "has expired"),
    (jwt.ImmatureSignatureError, "is not valid yet"),
    (jwt.InvalidAudienceError, "is not meant for this service: its aud is another's"),
    (jwt.InvalidIssuerError, "comes from an issuer that is not accepted here"),
    (jwt.InvalidSignatureError, "has a signature that is not its issuer's"),
)


def _fault(exc: jwt.PyJWTError) -> str:
    """Say what is wrong with a token in words of ours: the library's may repeat parts of it."""
    if isinstance(exc, jwt.MissingRequiredClaimError):  # the claim's name is ours: one of those that we require
        return f"lacks the claim {exc.claim}, which is needed here"
    return next((said for kind, said in _FAULTS if isinstance(exc, kind)), "cannot be read")


def _refused(fault: str, *, code: str = INVALID_TOKEN) -> Unauthenticated:
    return Unauthenticated(f"The token {fault}. Get a new one.", code=code)
