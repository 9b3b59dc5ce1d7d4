"""One request over HTTP and its answer: no redirect, no encoding, no more bytes than asked for, and an end by the deadline."""

from __future__ import annotations

import asyncio
import email.utils
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp

from gateway.upstreams.peers import Lost
from quadrate.errors import DeadlineExceeded, InvalidArgument, Overloaded, QuadrateError, Unavailable, UpstreamFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pydantic

    from quadrate.config.tls import ClientTls

MAX_CONNECTIONS = 128
"""Requests under way at one upstream. More wait for one of them, inside their deadlines."""
CONNECT_SECONDS = 5.0
_CHUNK_BYTES = 256 * 1024
_OK, _REDIRECT, _BAD, _FAULT = 200, 300, 400, 500
_LONGEST_PAUSE_SECONDS = 3600.0
_NO_KEY, _NO_PATH, _SLOW = "refused the gateway's key", "does not have it under its name or address", "took too long; send less at once"
_OF_THE_OPERATOR: dict[int, str] = {**dict.fromkeys((401, 402, 403, 407), _NO_KEY), **dict.fromkeys((404, 405, 410), _NO_PATH)}
"""What only an operator can mend, by HTTP status."""
_OF_THE_MOMENT: dict[int, tuple[type[QuadrateError], str]] = {
    408: (DeadlineExceeded, _SLOW),
    429: (Overloaded, "has no room for the request now; try again later"),
    503: (Unavailable, "cannot serve it now; try again later"),
    504: (DeadlineExceeded, _SLOW),
}
"""What may pass by itself."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back.

    Attributes:
        status: The HTTP status.
        data: The body, whole.
        retry_after_seconds: What the server says of it; None if nothing.
    """

    status: int
    data: bytes
    retry_after_seconds: float | None = None

    @property
    def is_ok(self) -> bool:
        """Whether the server did what it was asked."""
        return _OK <= self.status < _REDIRECT


class Exchange:
    """Connections to one server. Made where no event loop runs yet; used inside one.

    Args:
        root: Scheme, host and port.
        api_key: Sent as a bearer's token, if there is one.
        tls: Whom to trust, and who we are; None: whom the machine trusts.
    """

    def __init__(self, root: str, *, api_key: pydantic.SecretStr | None = None, tls: ClientTls | None = None) -> None:
        self._root = root
        self._api_key = api_key
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    async def post(self, path: str, body: bytes, *, deadline: float | None, headers: Mapping[str, str], most_bytes: int) -> Reply:
        """Send JSON and return the answer, whatever its status. The deadline is on the event loop's clock.

        Raises:
            Lost: No connection, or it broke before the answer was there.
            DeadlineExceeded: The time was over.
            UpstreamFailed: The answer is a redirect, has more than `most_bytes`, or is no HTTP.
        """
        try:
            async with (
                asyncio.timeout_at(deadline),
                self._open().post(self._root + path, data=body, headers=headers, allow_redirects=False) as response,
            ):
                return await _read(response, most_bytes)
        except aiohttp.ConnectionTimeoutError as exc:
            raise Lost("The server that serves this model cannot be reached. Try again.") from exc
        except TimeoutError as exc:
            raise DeadlineExceeded("The server that serves this model did not answer in time. Allow more, or send less at once.") from exc
        except aiohttp.ClientResponseError as exc:
            raise UpstreamFailed("The server that serves this model did not answer in HTTP. Tell the operator.") from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise Lost("The server that serves this model was lost before it answered. Try again.") from exc

    async def close(self) -> None:
        """Close the connections; what is under way fails."""
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            headers = {
                "content-type": "application/json",
                "accept": "application/json",
                "accept-encoding": "identity",
                "user-agent": "quadrate",
            }
            if self._api_key is not None:
                headers["authorization"] = f"Bearer {self._api_key.get_secret_value()}"
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS, ssl=self._tls.context() if self._tls is not None else True),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session


async def _read(response: aiohttp.ClientResponse, most_bytes: int) -> Reply:
    if _REDIRECT <= response.status < _BAD:
        raise UpstreamFailed(
            f"The server that serves this model redirected the request (HTTP {response.status}), which is not followed. Tell the operator."
        )
    if response.headers.get("content-encoding", "identity") != "identity":
        raise UpstreamFailed("The server that serves this model encoded its answer, which it was asked not to. Tell the operator.")
    data = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        data += chunk
        if len(data) > most_bytes:
            raise UpstreamFailed(f"The server that serves this model answered with more than {most_bytes} bytes. Tell the operator.")
    return Reply(response.status, bytes(data), _retry_after(response.headers))


def failure(reply: Reply) -> QuadrateError:
    """Return what an answer that is no success means to our caller. It repeats nothing of its body, which may repeat the caller's text."""
    status, after = reply.status, reply.retry_after_seconds or 1.0
    if status in _OF_THE_MOMENT:
        kind, said = _OF_THE_MOMENT[status]
        return kind(f"The server that serves this model {said} (HTTP {status}).", retry_after_seconds=after)
    if status in _OF_THE_OPERATOR:
        return UpstreamFailed(f"The server that serves this model {_OF_THE_OPERATOR[status]} (HTTP {status}). Tell the operator.")
    if _BAD <= status < _FAULT:
        return InvalidArgument(
            f"The server that serves this model refused the request (HTTP {status}). Most often a text is longer than the model reads: "
            "send shorter ones, or fewer at once."
        )
    return UpstreamFailed(f"The server that serves this model failed (HTTP {status}). Try again; tell the operator if it lasts.")


def no_answer(what: object) -> UpstreamFailed:
    """Return the error for an answer of which `what` says what is wrong, as in `is a page, not JSON`."""
    return UpstreamFailed(f"The answer of the server that serves this model {what}. Tell the operator.")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that `retry-after-ms` or `retry-after` names, the latter as a number or a date."""
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            return _bounded(float(milliseconds) / 1000)
        if (written := headers.get("retry-after")) is None:
            return None
        if written.strip().replace(".", "", 1).isdigit():
            return _bounded(float(written))
        return _bounded(email.utils.parsedate_to_datetime(written).timestamp() - time.time())
    except ValueError:
        return None


def _bounded(seconds: float) -> float | None:
    return min(max(seconds, 0.0), _LONGEST_PAUSE_SECONDS) if seconds == seconds else None  # noqa: PLR0124 - a value that is no number
