"""A hub on this machine: as much of the Hugging Face hub's HTTP API as its client asks for, with faults on demand."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LATER = "89abcdef0123456789abcdef0123456789abcdef"
_RESOLVE = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")
_API = re.compile(r"/api/models/(?P<repository>[^/]+/[^/?]+)(/(?P<what>tree|revision)/(?P<revision>[^/?]+))?")


@dataclass
class Hub:
    """One repository, and what goes wrong with it.

    Args:
        repository: Its name.
        files: Its files.
        token: The token that callers need; None if anybody may.
        cut_after: For a file, how many bytes arrive before the connection breaks, once.
        corrupt: Files that arrive with other bytes than announced.
        gone: Whether everything answers 503.
        commit: What the main branch stands for; COMMIT and LATER are there in any case.
        requests: Method, path and Range header of every request that came.
    """

    repository: str
    files: dict[str, bytes]
    token: str | None = None
    cut_after: dict[str, int] = field(default_factory=dict)
    corrupt: set[str] = field(default_factory=set)
    gone: bool = False
    commit: str = COMMIT
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    def __enter__(self) -> Self:
        hub = self

        class Handler(_Handler):
            repo = hub

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """The address, for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def downloads(self, name: str) -> list[str | None]:
        """Return the Range headers of the GET requests for a file."""
        return [ranged for method, path, ranged in self.requests if method == "GET" and path.endswith(f"/{name}")]


class _Handler(http.server.BaseHTTPRequestHandler):
    repo: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Stay silent."""

    def do_HEAD(self) -> None:
        """Tell of a file."""
        self._answer()

    def do_GET(self) -> None:
        """Give a file or tell of the repository."""
        self._answer()

    def _answer(self) -> None:
        hub = self.repo
        hub.requests.append((self.command, self.path, self.headers.get("Range")))
        match = _RESOLVE.fullmatch(self.path) or _API.match(self.path)
        if hub.gone:
            self._refuse(503, "", "gone for a while")
        elif hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._refuse(401, "GatedRepo", "Access to model is restricted")
        elif match is None or match["repository"] != hub.repository:
            self._refuse(401, "RepoNotFound", "Repository not found")
        elif match["revision"] not in {None, "main", COMMIT, LATER}:
            self._refuse(404, "RevisionNotFound", "Invalid rev id")
        elif "name" in match.groupdict():
            self._file(match["name"], self._commit(match["revision"]))
        else:
            told = self._tree() if match["what"] == "tree" else self._info(self._commit(match["revision"]))
            self._send(200, json.dumps(told).encode(), {})

    def _commit(self, revision: str | None) -> str:
        return self.repo.commit if revision in {None, "main"} else str(revision)

    def _info(self, commit: str) -> dict[str, object]:
        siblings = [{"rfilename": name, "size": len(data)} for name, data in self.repo.files.items()]
        return {"id": self.repo.repository, "sha": commit, "siblings": siblings}

    def _tree(self) -> list[dict[str, object]]:
        return [{"type": "file", "path": name, "oid": _etag(name, data), "size": len(data)} for name, data in self.repo.files.items()]

    def _file(self, name: str, commit: str) -> None:
        data = self.repo.files.get(name)
        if data is None:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        headers = {"ETag": f'"{_etag(name, data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        body = bytes(reversed(data)) if name in self.repo.corrupt else data
        ranged = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if ranged:
            headers["Content-Range"] = f"bytes {ranged[1]}-{len(data) - 1}/{len(data)}"
            body = body[int(ranged[1]) :]
        cut = self.repo.cut_after.pop(name, None) if self.command == "GET" else None
        self._send(206 if ranged else 200, body, headers, cut=cut)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(status, json.dumps({"error": message}).encode(), {"X-Error-Code": code, "X-Error-Message": message} if code else {})

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
        self.close_connection = cut is not None


def _etag(name: str, data: bytes) -> str:
    """Return what the hub states of a file: the SHA-256 of large ones, git's name of small ones."""
    if name.endswith(".safetensors"):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()
