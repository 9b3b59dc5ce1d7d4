"""An issuer's signing keys (JSON Web Key Set, RFC 7517): cached, and fetched again as they age or when one is not among them."""

from __future__ import annotations

import asyncio
import math
import time
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import httpx
import jwt

from quadrate.config import jwks
from quadrate.config.jwt import without_query
from quadrate.errors import ConfigError, Unauthenticated, Unavailable
from quadrate.telemetry import log

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from quadrate.config.jwks import Jwk
    from quadrate.config.jwt import JwtIssuer
    from quadrate.telemetry import Metrics

BETWEEN_FETCHES_SECONDS = 5.0
"""The least time from one fetch to the next, so that tokens with made-up key ids cannot make us flood the issuer."""
KEPT_SECONDS = 86_400.0
"""How long the last keys are good while new ones cannot be had."""
FETCH_SECONDS = 5.0
"""The time that one fetch may take."""
MOST_MISSED = 4096
"""Key ids that were looked for in vain are remembered up to so many, then the oldest are forgotten."""
MAX_BYTES = 2**20
INVALID_TOKEN = "invalid_token"  # noqa: S105 - an error's code
"""The code of an error that a new token mends, as RFC 6750 calls it."""


class SigningKeys:
    """The keys of one issuer. Belongs to one event loop.

    Raises ConfigError at once for a file that holds none; a URL is asked when the first token comes.
    """

    def __init__(self, issuer: JwtIssuer, metrics: Metrics, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._source, self._told = issuer.source, issuer.source_told
        self._cache_seconds = issuer.jwks_cache_seconds
        self._metrics = metrics
        self._clock = clock
        self._keys: Mapping[str | None, Jwk] = MappingProxyType({})
        self._prepared: dict[tuple[str | None, str], jwt.PyJWK] = {}
        self._fetched_at = self._tried_at = self._asked_at = float("-inf")
        """When the keys came, when they were last asked for, and when those were asked for that came."""
        self._missed: dict[int, float] = {}
        """When key ids that are not among the keys were first named, by their hashes: they are a caller's words, of any length."""
        self._fetching: asyncio.Task[None] | None = None
        self.generation = 0
        """Grows whenever the keys change: what was verified by earlier ones has to be verified again."""
        if isinstance(self._source, Path):
            self._take(jwks.read(self._source))

    def is_of(self, issuer: JwtIssuer) -> bool:
        """Whether these are the keys that a configuration names."""
        return (self._source, self._cache_seconds) == (issuer.source, issuer.jwks_cache_seconds)

    def keep_fresh(self) -> None:
        """Fetch the keys again beside everything else, if they are old enough for that."""
        if self._clock() - self._fetched_at >= self._cache_seconds and self._may_fetch():
            self._fetch()

    async def find(self, kid: str | None, algorithm: str) -> jwt.PyJWK:
        """Return the key of an id that signs by an algorithm; without an id, the only one there is.

        Raises:
            Unauthenticated: There is no such key: the issuer was asked since the id was first named, and does not have it.
            Unavailable: The keys cannot be fetched, and there are none that are young enough; or there is no such key as yet, and the
                issuer could not be asked since.
        """
        if self._get(kid) is None:
            self._miss(kid)
        self.keep_fresh()
        if self._clock() - self._fetched_at > KEPT_SECONDS:
            await self._fetched()
            if self._clock() - self._fetched_at > KEPT_SECONDS:
                raise Unavailable(
                    "The keys that tokens are verified by cannot be fetched from their issuer. Try again in a moment.",
                    retry_after_seconds=self._seconds_to_fetch(),
                )
        elif self._get(kid) is None:
            await self._fetched()
        return self._prepare(kid, algorithm)

    def _get(self, kid: str | None) -> Jwk | None:
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid)

    def _prepare(self, kid: str | None, algorithm: str) -> jwt.PyJWK:
        found = self._prepared.get((kid, algorithm))
        if found is not None:
            return found
        jwk = self._get(kid)
        if jwk is None and self._asked_at < self._missed.get(hash(kid), math.inf):
            raise Unavailable(
                "The token is signed by a key that is not known here yet. The issuer's keys are fetched again in a moment: try again then.",
                retry_after_seconds=self._seconds_to_fetch(),
            )
        if jwk is None or not _signs_by(jwk, algorithm):
            raise _unknown_key()
        try:
            found = self._prepared[kid, algorithm] = jwt.PyJWK(jwk, algorithm)
        except jwt.PyJWTError as exc:  # a curve that goes with another algorithm
            raise _unknown_key() from exc
        return found

    def _miss(self, kid: str | None) -> None:
        """Remember since when a key is asked for that is not there."""
        self._missed.setdefault(hash(kid), self._clock())
        if len(self._missed) > MOST_MISSED:
            del self._missed[next(iter(self._missed))]

    def _may_fetch(self) -> bool:
        return self._fetching is None and not self._seconds_to_fetch()

    def _seconds_to_fetch(self) -> float:
        """Return after how long the keys may be fetched again."""
        return max(0.0, self._tried_at + BETWEEN_FETCHES_SECONDS - self._clock())

    def _fetch(self) -> asyncio.Task[None]:
        self._tried_at = self._clock()
        self._fetching = asyncio.create_task(self._fetch_once())
        return self._fetching

    async def _fetched(self) -> None:
        """Wait for the fetch under way or a new one, unless the last is too recent."""
        if self._may_fetch():
            self._fetch()
        if self._fetching is not None:
            await asyncio.shield(self._fetching)

    async def _fetch_once(self) -> None:
        asked_at = self._tried_at
        try:
            keys = await asyncio.to_thread(_load, self._source)
        except ConfigError as exc:
            self._metrics.counter("router_jwks_fetches_total", "failed").inc()
            log.warn("signing keys could not be fetched; the last ones stay", source=self._told, error=str(exc))
        else:
            self._metrics.counter("router_jwks_fetches_total", "ok").inc()
            self._take(keys)
            self._asked_at = asked_at
        finally:
            self._fetching = None

    def _take(self, keys: Mapping[str | None, Jwk]) -> None:
        self._fetched_at = self._tried_at = self._clock()
        if keys != self._keys:
            self._keys = keys
            self._prepared.clear()
            self.generation += 1
            log.info("signing keys changed", source=self._told, keys=len(keys))


def _unknown_key() -> Unauthenticated:
    return Unauthenticated("The token is signed by a key that its issuer does not have. Get a new token.", code=INVALID_TOKEN)


def _signs_by(jwk: Jwk, algorithm: str) -> bool:
    return algorithm.startswith(jwks.ALGORITHMS[jwk["kty"]]) and jwk.get("alg", algorithm) == algorithm


def _load(source: Path | str) -> Mapping[str | None, Jwk]:
    """Return the usable keys of a source by their ids. Raises ConfigError."""
    return jwks.read(source) if isinstance(source, Path) else jwks.parse(_get(source))


def _get(url: str) -> bytes:
    """Return what a URL gives, within FETCH_SECONDS and MAX_BYTES. Raises ConfigError, whose text has no more of the URL than logs may."""
    told = without_query(url)
    until, found = time.monotonic() + FETCH_SECONDS, bytearray()
    try:
        with httpx.stream("GET", url, timeout=FETCH_SECONDS, headers={"accept": "application/json"}) as answer:
            if answer.status_code != httpx.codes.OK:
                raise ConfigError(f"{told}: answers {answer.status_code}")
            for piece in answer.iter_bytes():
                found += piece
                if len(found) > MAX_BYTES or time.monotonic() > until:
                    raise ConfigError(f"{told}: the answer is longer than {MAX_BYTES} bytes or takes more than {FETCH_SECONDS:.0f} s")
    except httpx.HTTPError as exc:
        raise ConfigError(f"{told}: {type(exc).__name__}: {exc}") from exc
    except (httpx.InvalidURL, OSError, ValueError) as exc:  # of the URL, of SSL_CERT_FILE, of a proxy's address: their texts may repeat it
        raise ConfigError(f"{told}: cannot be asked ({type(exc).__name__})") from exc
    return bytes(found)
