"""An issuer of JSON Web Tokens, as an identity provider is one: it signs, publishes its keys over HTTP, changes them, and fails.

async with Issuer() as issuer:
    …configure `jwt` with issuer.name, issuer.audience and issuer.jwks_url…
    token = issuer.token("alice")
    issuer.rotate()          # the next token is signed by a new key
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Self

import jwt
import orjson
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

if TYPE_CHECKING:
    from collections.abc import Iterable

    PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

_CURVES: dict[str, type[ec.EllipticCurve]] = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "ES512": ec.SECP521R1}


class SigningKey:
    """One key pair.

    Args:
        kid: Its id.
        algorithm: What it signs by.
    """

    def __init__(self, kid: str, algorithm: str = "ES256") -> None:
        self.kid = kid
        self.algorithm = algorithm
        self.private = _private(algorithm)

    def jwk(self) -> dict[str, Any]:
        """Return the public half, as an issuer publishes it."""
        public: Any = self.private.public_key()
        kind: Any = (
            {"E": ECAlgorithm, "R": RSAAlgorithm, "P": RSAAlgorithm}[self.algorithm[0]] if self.algorithm != "EdDSA" else OKPAlgorithm
        )
        found: dict[str, Any] = kind.to_jwk(public, as_dict=True)
        found.pop("key_ops", None)
        return {**found, "kid": self.kid, "use": "sig", "alg": self.algorithm}


class Issuer:
    """Signs and publishes. An async context manager: inside it, `jwks_url` answers.

    Args:
        algorithm: What its keys sign by.
    """

    name = "https://issuer.test"
    audience = "quadrate"

    def __init__(self, algorithm: str = "ES256") -> None:
        self.algorithm = algorithm
        self.fetches = 0
        """How often the keys were asked for."""
        self.status = 200
        """What the next answers say."""
        self.answers = asyncio.Event()
        """While it is not set, questions wait."""
        self.answers.set()
        self.jwks_url = ""
        self._count = 0
        self.published: list[SigningKey] = []
        self.rotate()
        self._runner: web.AppRunner | None = None

    @property
    def signing(self) -> SigningKey:
        """The key that tokens are signed by now."""
        return self.published[-1]

    def rotate(self, *, keep: int = 0) -> SigningKey:
        """Sign by a new key from now on, and publish it beside the last `keep` ones."""
        self._count += 1
        self.published = [*self.published[len(self.published) - keep :], SigningKey(f"key-{self._count}", self.algorithm)]
        return self.signing

    def jwks(self, others: Iterable[dict[str, Any]] = ()) -> bytes:
        """Return the published keys as a JSON Web Key Set, `others` before them."""
        return orjson.dumps({"keys": [*others, *(key.jwk() for key in self.published)]})

    def token(self, subject: str = "alice", *, key: SigningKey | None = None, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """Return a token for a subject, good for five minutes unless `claims` say otherwise; a claim that is None is left out."""
        now, key = int(time.time()), key or self.signing
        usual = {"iss": self.name, "aud": self.audience, "sub": subject, "iat": now, "exp": now + 300}
        said = {name: value for name, value in (usual | claims).items() if value is not None}
        return jwt.encode(said, key.private, algorithm=key.algorithm, headers={"kid": key.kid} if headers is None else headers)

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.add_routes([web.get("/jwks", self._serve)])
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.jwks_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/jwks"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.answers.set()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _serve(self, _: web.Request) -> web.Response:
        self.fetches += 1
        await self.answers.wait()
        return web.Response(body=self.jwks(), status=self.status, content_type="application/json")


def _private(algorithm: str) -> PrivateKey:
    if algorithm in _CURVES:
        return ec.generate_private_key(_CURVES[algorithm]())
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(public_exponent=65_537, key_size=2048)
