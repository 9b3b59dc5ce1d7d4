"""One HTTP GET, small enough to ask every process how it is many times a second."""

from __future__ import annotations

import asyncio
import json
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

_OK = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """What a process said of itself."""

    ok: bool
    """Whether it answered, with 200."""
    status: str = ""
    """The field `status` of its JSON: `ok`, `degraded`, `unavailable`."""
    reason: str = ""
    """Why it is not `ok`, as far as it told."""


async def get(url: str, *, timeout_seconds: float = 2.0) -> Answer:
    """Ask `url` on this machine. Never raises: what cannot be asked has not answered."""
    try:
        async with asyncio.timeout(timeout_seconds):
            return await _get(url)
    except (OSError, TimeoutError, ValueError, IndexError, asyncio.IncompleteReadError):
        return Answer(ok=False)


async def _get(url: str) -> Answer:
    parts = urlsplit(url)
    # Whether a process of this machine runs is asked, not who it is: nothing is told to it, and its certificate may be anybody's.
    context = ssl._create_unverified_context() if parts.scheme == "https" else None  # noqa: S323, SLF001
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=context)
    try:
        writer.write(f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    code = int(head.split(maxsplit=2)[1])
    return _read(code, body)


def _read(code: int, body: bytes) -> Answer:
    try:
        report = json.loads(body[body.index(b"{") : body.rindex(b"}") + 1])
    except ValueError:  # not every process has something to tell
        return Answer(ok=code == _OK)
    return Answer(ok=code == _OK, status=str(report.get("status", "")), reason=_reason(report))


def _reason(report: dict[str, object]) -> str:
    """Collect what upstreams or models gave as their reasons."""
    rows = [row for value in report.values() if isinstance(value, list) for row in value if isinstance(row, dict)]
    parts = [f"{row.get('name', '')}: {row['reason']}" for row in rows if row.get("reason")]
    return "; ".join(dict.fromkeys(parts))
