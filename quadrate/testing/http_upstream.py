"""A server over HTTP without a model: OpenAI's embeddings, the rerank shapes of Cohere and TEI, and vectors that follow from texts alone.

It answers as those servers do, so that what stands before them can be tested. It may be told to misbehave in every way that such servers
have been seen to, and notes what it was sent. Its vectors are those of the fake worker for the same text.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal, Self

import orjson
from aiohttp import web

from quadrate.testing.tokenizers import letter_tokenizer
from quadrate.testing.worker import WIDTH, fake_vector
from quadrate.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Fault = Literal[
    "page",
    "not_json",
    "not_a_number",
    "infinite",
    "null",
    "text",
    "narrow",
    "ragged",
    "few",
    "many",
    "twice",
    "outside",
    "redirect",
    "slow",
    "endless",
    "encoded",
    "hang_up",
    "not_http",
]
"""Ways to answer wrongly:

page, not_json          200 with a page, or with half of an answer
not_a_number, infinite, null, text    a value that is none: NaN, 1e999, null, a word
narrow, ragged          vectors of half the width; one of them of half the width
few, many, twice, outside    one answer too few or too many; an index that stands twice, or that is of no text
redirect                elsewhere
slow                    the first byte, and nothing after it
endless                 blanks without an end
encoded                 compressed, though nobody asked for that
hang_up, not_http       the connection is closed before an answer; bytes that are no HTTP
"""


class HttpUpstream:
    """A server on a free port of loopback. An async context manager.

    Args:
        api: Where its API is: `v1` (OpenAI, vLLM, TEI's embeddings), `root` (infinity), `tei` (TEI's own rerank at the root, else as v1).
        api_key: The key that requests must bring; empty: none.
        models: What it has; empty: whatever is asked for.
        tells_usage: Whether answers say how many tokens were read.
        max_inputs: The most texts of one request.
        port: 0 takes a free one.
    """

    def __init__(
        self,
        *,
        api: Literal["v1", "root", "tei"] = "v1",
        api_key: str = "",
        models: Sequence[str] = (),
        tells_usage: bool = True,
        max_inputs: int = 2_048,
        port: int = 0,
    ) -> None:
        self.fault: Fault | None = None
        """How it answers wrongly; None: rightly."""
        self.status: int | None = None
        """The HTTP status that it answers instead of anything else; None: none."""
        self.headers: dict[str, str] = {}
        """What its answers bring besides."""
        self.width = WIDTH
        self.received: list[dict[str, Any]] = []
        """Bodies of requests, in order of arrival."""
        self.seen: list[dict[str, str]] = []
        """Their headers, names in lower case."""
        self.gone = 0
        """How many callers left before they were answered."""
        self._api_key, self._models, self._tells_usage, self._max_inputs = api_key, tuple(models), tells_usage, max_inputs
        self._reader = TextTokenizer.from_json(letter_tokenizer(), max_tokens=512)
        app = web.Application(client_max_size=64 * 2**20)
        prefix = "" if api == "root" else "/v1"
        app.router.add_post(f"{prefix}/embeddings", self._embeddings)
        app.router.add_post("/rerank" if api == "tei" else f"{prefix}/rerank", self._tei_rerank if api == "tei" else self._rerank)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        self._port = port

    @property
    def url(self) -> str:
        """`http://` and its address."""
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, self._form_embeddings, "input")

    async def _rerank(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, self._form_results, "documents")

    async def _tei_rerank(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, self._form_tei, "texts")

    async def _answer(self, request: web.Request, form: Callable[[dict[str, Any]], Any], needed: str) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        self.received.append(body)
        self.seen.append({name.lower(): value for name, value in request.headers.items()})
        if (refused := self._refuse(body, needed)) is not None:
            return refused
        if self.fault in _ODD:
            return await self._misbehave(request)
        data = _spoil(orjson.dumps(self._break(form(body))), self.fault)
        return web.Response(body=data, content_type="application/json", headers=self.headers)

    def _refuse(self, body: dict[str, Any], needed: str) -> web.Response | None:
        """Return how a request is refused, in the servers' words: they repeat what they were sent."""
        if self.status is not None:
            return _error(self.status, f"told so by a test: {orjson.dumps(body).decode()}", self.headers)
        if self._api_key and self.seen[-1].get("authorization") != f"Bearer {self._api_key}":
            return _error(401, "Incorrect API key provided.")
        if self._models and "model" in body and body["model"] not in self._models:
            return _error(404, f"The model `{body['model']}` does not exist.")
        if needed not in body:
            return _error(422, f"missing field `{needed}`")
        if isinstance(body[needed], list) and len(body[needed]) > self._max_inputs:
            return _error(422, f"batch size {len(body[needed])} > maximum allowed batch size {self._max_inputs}")
        return None

    def _form_embeddings(self, body: dict[str, Any]) -> dict[str, Any]:
        contents = [body["input"]] if isinstance(body["input"], str) else body["input"]
        ids = [self._ids(content) for content in contents]
        data = [
            {"object": "embedding", "index": index, "embedding": fake_vector(one, self.width).tolist()} for index, one in enumerate(ids)
        ]
        tokens = sum(map(self._reader.count, ids))
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": body["model"], **({"usage": usage} if self._tells_usage else {})}

    def _form_results(self, body: dict[str, Any]) -> dict[str, Any]:
        scores = self._scores(body["query"], body["documents"])
        ranked = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.get("top_n")]
        results = [{"index": index, "relevance_score": scores[index]} for index in ranked]
        tokens = sum(self._reader.count(self._ids(text)) for text in (body["query"], *body["documents"]))
        return {"id": "a", "results": results, **({"usage": {"total_tokens": tokens}} if self._tells_usage else {})}

    def _form_tei(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        scores = self._scores(body["query"], body["texts"])
        return [{"index": index, "score": scores[index]} for index in sorted(range(len(scores)), key=lambda index: -scores[index])]

    def _scores(self, query: str, documents: Sequence[str]) -> list[float]:
        vector = fake_vector(self._ids(query))
        return [float(vector @ fake_vector(self._ids(text))) for text in documents]

    def _ids(self, content: str | list[int]) -> list[int]:
        return content if isinstance(content, list) else self._reader.encode([content])[0]

    def _break(self, answer: Any) -> Any:
        """Make an answer wrong where the fault is one of its content."""
        items = answer if isinstance(answer, list) else answer.get("data", answer.get("results"))
        first = items[0]
        name = next(name for name in ("embedding", "relevance_score", "score") if name in first)
        if self.fault in _VALUES:
            value = _VALUES[self.fault]
            first[name] = [value, *first[name][1:]] if name == "embedding" else value
        elif self.fault == "narrow" and name == "embedding":
            for item in items:
                item[name] = item[name][: self.width // 2]
        elif self.fault == "ragged" and name == "embedding":
            items[-1][name] = items[-1][name][: self.width // 2]
        elif self.fault == "few":
            items.pop()
        elif self.fault == "many":
            items.append({**first, "index": len(items)})
        elif self.fault == "twice":
            items[-1]["index"] = first["index"]
        elif self.fault == "outside":
            first["index"] = len(items) + 7
        return answer

    async def _misbehave(self, request: web.Request) -> web.StreamResponse:
        """Answer wrongly where the fault is one of the wire."""
        if self.fault == "page":
            return web.Response(text="<!DOCTYPE html><html><body>502 Bad Gateway</body></html>", content_type="text/html")
        if self.fault == "redirect":
            return web.Response(status=307, headers={"location": "http://127.0.0.1:9/elsewhere"})
        if self.fault == "encoded":
            return web.Response(body=b"\x1f\x8b", headers={"content-encoding": "gzip"})
        transport = request.transport
        if self.fault == "not_http" and transport is not None:
            transport.write(b"hello, who is there?\r\n\r\n")
        if self.fault in ("not_http", "hang_up"):
            if transport is not None:
                transport.close()
            return web.Response()
        return await self._drip(request)

    async def _drip(self, request: web.Request) -> web.StreamResponse:
        """Begin an answer, and do not end it."""
        response = web.StreamResponse(headers={"content-type": "application/json"})
        await response.prepare(request)
        try:
            await response.write(b" ")
            while self.fault == "endless":
                await response.write(b" " * 2**20)
            await asyncio.Event().wait()
        except (asyncio.CancelledError, ConnectionError):
            self.gone += 1
            raise
        return response


_ODD = frozenset({"page", "redirect", "slow", "endless", "encoded", "hang_up", "not_http"})
_MARK = "\ue000"
"""Stands for what no JSON writer writes."""
_VALUES: dict[str | None, Any] = {"not_a_number": _MARK, "infinite": _MARK, "null": None, "text": "high"}
_WRITTEN = {"not_a_number": b"NaN", "infinite": b"1e999"}


def _spoil(data: bytes, fault: str | None) -> bytes:
    """Return JSON with what is no JSON in it, or half of it."""
    if fault in _WRITTEN:
        return data.replace(f'"{_MARK}"'.encode(), _WRITTEN[fault])
    return data[: len(data) // 2] if fault == "not_json" else data


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
    return web.json_response(body, status=status, headers=headers)
