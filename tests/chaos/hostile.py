"""Requests that nobody ought to send: good ones, and what is done to them.

Everything is drawn from a random.Random, so that a seed and a number say which request it was.

    good JSON ── a value replaced, a key doubled, nested, cut, … ──► a body ── odd headers ──► HttpRequest ── bytes changed ──► raw bytes

Likewise gRPC in `hostile_rpc` and HTTP/2 in `hostile_frames`.
"""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.chaos import http2

if TYPE_CHECKING:
    from collections.abc import Callable

Header = tuple[bytes, bytes]
Draw = random.Random

MODELS = ("minilm", "sentence-transformers/all-MiniLM-L6-v2", "minilm-rerank")
_TEXTS = ("hello", "a second text", "Grüße aus 東京 🙂", "")
_EMBED: dict[str, Any] = {
    "model": "minilm",
    "inputs": [{"text": "hello"}, {"token_ids": {"ids": [7592]}}],
    "truncation": "RIGHT",
    "outputs": ["DENSE"],
}
_RERANK: dict[str, Any] = {"model": "minilm-rerank", "query": "which?", "documents": ["an apple", {"text": "a pear"}], "top_n": 1}
GOOD: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"model": "minilm", "input": ["hello", "good bye"], "encoding_format": "base64", "dimensions": 384, "user": "me"},
    "/v2/embed": {
        "model": "minilm",
        "texts": ["hello"],
        "input_type": "search_query",
        "embedding_types": ["float", "int8"],
        "truncate": "END",
    },
    "/v1/rerank": {**_RERANK, "return_documents": True, "max_tokens_per_doc": 64},
    "/v2/rerank": _RERANK,
    "/quadrate/v1/embed": _EMBED,
    "/quadrate/v1/rerank": {"model": "minilm-rerank", "query": "which?", "documents": [{"text": "an apple"}], "top_n": 1},
    "/quadrate/v1/tokenize": {"model": "minilm", "inputs": [{"text": "hello"}]},
}
"""A body that is well understood, for each path that takes one."""
GETS = (
    "/v1/models",
    "/v1/models/minilm",
    "/quadrate/v1/models",
    "/quadrate/v1/models/minilm",
    "/health/live",
    "/health/ready",
    "/metrics",
    "/openapi.json",
)
_VALUES = (
    b"null",
    b"true",
    b"0",
    b"-1",
    b"1.5",
    b"1e999",
    b"-0",
    b"9223372036854775808",
    b"1" * 400,
    b"NaN",
    b"Infinity",
    b'""',
    b'"\\ud800"',
    b'"\\u0000"',
    b'"\xff\xfe"',
    b'"\xed\xa0\x80"',
    b"[]",
    b"{}",
    b"[[]]",
    b"[null]",
    b"[[1],[2.5]]",
    b'[1,"a",[2]]',
    b'{"text":1}',
    b'[{"text":"a"},{"token_ids":{"ids":[1]}}]',
    b'{"ids":[4294967296]}',
    b'"LEFT"',
    b"2147483648",
    b"'a'",
    b'"' + b"a" * 70_000 + b'"',
    b"[" * 2_000 + b"]" * 2_000,
    b'{"a":' * 1_500 + b"1" + b"}" * 1_500,
    b"[" + b'"x",' * 3_000 + b'"x"]',
    b"[" + b"101," * 20_000 + b"102]",
)
"""JSON and what is almost JSON, to stand in place of a value."""
_KEYS = (
    "model",
    "input",
    "inputs",
    "texts",
    "documents",
    "query",
    "top_n",
    "dimensions",
    "truncate",
    "input_type",
    "@type",
    "text",
    "",
    "\x00",
    "🙂" * 50,
)
_OFFSETS = (b"", b"\xef\xbb\xbf", b" " * 5_000, b"\x00", b"\xff\xfe", b"[", b"//\n")
_VERBS = ("GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE", "BREW")
METHODS = (
    "/quadrate.v1.EmbedService/Embed",
    "/quadrate.v1.RerankService/Rerank",
    "/quadrate.v1.ModelService/ListModels",
    "/quadrate.v1.ModelService/GetModel",
    "/quadrate.v1.ModelService/Tokenize",
    "/quadrate.v1.ModelService/GetTokenizer",
    "/quadrate.openai.v1.OpenAiService/CreateEmbedding",
    "/quadrate.openai.v1.OpenAiService/ListModels",
    "/quadrate.openai.v1.OpenAiService/RetrieveModel",
    "/quadrate.cohere.v1.CohereService/RerankV1",
    "/quadrate.cohere.v1.CohereService/RerankV2",
    "/quadrate.cohere.v1.CohereService/EmbedV2",
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/quadrate.v1.EmbedService/Nothing",
)
"""gRPC methods, which HTTP requests name, too; `hostile_rpc.MESSAGES` has a good message for each."""
CONTENT_TYPES = (
    b"application/json; charset=utf-16",
    b"text/plain",
    b"application/grpc",
    b"application/grpc-web+proto",
    b"application/grpc+json",
    b"",
    b"/",
    b"application/json, text/html",
    b"multipart/form-data; boundary=x",
    b"application/x-protobuf",
    b"APPLICATION/JSON",
    b"application/json;" + b"a" * 3_000,
    b"application/grpc-web-text",
)


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request as HTTP/1.1 can carry it: hostile in what it says, not in how it is framed.

    Args:
        method: The method.
        path: The request target.
        headers: As they are sent; neither host nor what says how long the body is.
        body: The body.
        chunked: Whether it goes in chunks.
    """

    method: str
    path: str
    headers: tuple[Header, ...]
    body: bytes
    chunked: bool = False

    def wire(self, host: str) -> bytes:
        """Return the bytes to send."""
        lines = [f"{self.method} {self.path} HTTP/1.1\r\nhost: {host}".encode()]
        lines += [name + b": " + value for name, value in self.headers]
        lines.append(b"transfer-encoding: chunked" if self.chunked else b"content-length: %d" % len(self.body))
        return b"\r\n".join(lines) + b"\r\n\r\n" + (_chunks(self.body) if self.chunked else self.body)


def http_request(draw: Draw) -> HttpRequest:
    """Return a request whose body, headers, path or method are odd; now and then it is a good one."""
    path = draw.choice(tuple(GOOD)) if draw.random() < 0.85 else draw.choice((*GETS, *METHODS))
    method = ("GET" if path in GETS else "POST") if draw.random() < 0.95 else draw.choice(_VERBS)
    content = body(draw, GOOD[path]) if path in GOOD else draw.randbytes(5) if draw.random() < 0.1 else b""
    headers = [(b"content-type", b"application/json" if draw.random() < 0.9 else draw.choice(CONTENT_TYPES))]
    for _ in range(draw.choice((0, 0, 1, 1, 2, 4))):
        headers += odd_headers(draw)
    if draw.random() < 0.02:
        content, headers = gzip.compress(content), [*headers, (b"content-encoding", b"gzip")]
    if draw.random() < 0.05:
        path = odd_path(draw, path)
    return HttpRequest(method, path, tuple(headers), content, chunked=draw.random() < 0.1)


def body(draw: Draw, good: dict[str, Any]) -> bytes:
    """Return a good body, or what mutations make of it."""
    chosen = draw.random()
    if chosen < 0.1:
        return json.dumps({**good, "input": draw.choice(_TEXTS)} if "input" in good else good).encode()
    if chosen < 0.6:
        return _replaced(draw, good)
    if chosen < 0.9:
        return changed(draw, json.dumps(good).encode())
    return draw.choice(_OFFSETS) + json.dumps(good).encode(draw.choice(("utf-8", "utf-16", "utf-32"))) + draw.choice(_OFFSETS)


def _replaced(draw: Draw, good: dict[str, Any]) -> bytes:
    """Put a value where another stands, at any depth; or a key beside it, perhaps one that is there already."""
    mark = f"@{draw.getrandbits(64):x}@"
    found = json.loads(json.dumps(good))
    places = list(_places(found))
    for _ in range(draw.choice((1, 1, 2))):
        holder, key = draw.choice(places)
        if isinstance(holder, dict) and draw.random() < 0.3:
            key = draw.choice(_KEYS)
        holder[key] = mark
    text = json.dumps(found).encode()
    while (quoted := json.dumps(mark).encode()) in text:
        text = text.replace(quoted, draw.choice(_VALUES), 1)
    if draw.random() < 0.1:
        return text[:-1] + b"," + text[1:]
    return text


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return every place of a value: what holds it, and under which key."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [place for key in keys for place in [(value, key), *_places(value[key])]]


def changed(draw: Draw, data: bytes) -> bytes:
    """Return bytes of which some are changed, taken out, doubled or cut off."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        place, end = sorted(draw.randrange(len(found) + 1) for _ in range(2))
        match draw.randrange(6):
            case 0:
                found[place : place + 1] = draw.randbytes(1)
            case 1:
                found[place:place] = draw.randbytes(draw.choice((1, 2, 16)))
            case 2:
                del found[place : min(end, place + 16)]
            case 3:
                found[end:end] = found[place:end]
            case 4 if place < len(found):
                found[place] ^= 1 << draw.randrange(8)
            case 5 if draw.random() < 0.3:
                del found[place:]
    return bytes(found)


def odd_path(draw: Draw, path: str) -> str:
    """Return a path that is almost one of ours."""
    ends = (
        "/",
        "//",
        "?" + "a=b&" * 500,
        "?model=x&model=y",
        "%00",
        "%2e%2e%2f",
        "/../..",
        ";x=y",
        "%",
        "%zz",
        "#x",
        "/" + "a" * 2_000,
        "?%ff",
        "/%F0%9F%99%82",
    )
    starts = ("", "/.", "//", "/%2f", "/x/..")
    return draw.choice(starts) + path + draw.choice(ends)


def odd_headers(draw: Draw) -> list[Header]:
    """Return a header, or many, of the kinds that we read, that gRPC reads, or that proxies read."""
    return draw.choice(_HEADERS)(draw)


def _one(*names: bytes, values: tuple[bytes, ...] = ()) -> Callable[[Draw], list[Header]]:
    return lambda draw: [(draw.choice(names), draw.choice(values) if values and draw.random() < 0.7 else _word(draw))]


def _word(draw: Draw) -> bytes:
    """Return bytes that may stand in a header, if only just."""
    length = draw.choice((0, 1, 8, 40, 300, 5_000))
    letters = bytes(range(0x21, 0x7F)) if draw.random() < 0.6 else bytes([*range(0x20, 0x7F), *range(0x80, 0x100), 9])
    return bytes(draw.choices(letters, k=length)).strip()


_HEADERS: tuple[Callable[[Draw], list[Header]], ...] = (
    _one(
        b"authorization",
        values=(b"Bearer", b"Bearer ", b"Basic YTpi", b"bearer a.b.c", b"Bearer eyJhbGciOiJub25lIn0.e30.", b"Bearer  x y", b"\xff"),
    ),
    _one(b"x-api-key", values=(b"a", b" ", b"\x80\x81", b"k" * 8_000)),
    lambda draw: [(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b"), (b"x-api-key", b"c")],
    _one(b"x-request-id", values=(b"a" * 129, b"\xc3\xa4", b"a b", b"", b"-" * 128)),
    _one(b"x-quadrate-priority", values=(b"bulk", b"BULK", b"urgent", b"interactive,bulk")),
    _one(b"x-quadrate-tenant", b"x-quadrate-principal", b"x-quadrate-surface", values=(b"root", b"%00", b"a" * 3_000)),
    _one(b"x-quadrate-weight", values=(b"nan", b"inf", b"-1", b"1e400", b"0")),
    _one(b"x-quadrate-http-status", b"grpc-status", b"grpc-message", values=(b"500", b"13", b"%", b"abc")),
    _one(b"grpc-timeout", values=(b"99999999H", b"-1S", b"1", b"S", b"1.5S", b"123456789S", b"1\xff", b"60S")),
    _one(b"grpc-encoding", b"grpc-accept-encoding", values=(b"gzip", b"deflate", b"identity,gzip", b"br", b"snappy")),
    _one(
        b"traceparent",
        values=(b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-ff", b"ff-x", b"00"),
    ),
    _one(b"tracestate", b"baggage", values=(b"a=b," * 60, b"=,=", b"k=\xff", b"a=" + b"b" * 3_000)),
    _one(
        b"x-envoy-original-path",
        b"x-envoy-upstream-rq-timeout-ms",
        b"x-envoy-max-retries",
        b"x-envoy-expected-rq-timeout-ms",
        b"x-forwarded-for",
        b"x-real-ip",
    ),
    _one(
        b"a-bin",
        b"grpc-trace-bin",
        b"grpc-tags-bin",
        b"grpc-status-details-bin",
        values=(b"!!!", b"AA", b"AA==", b"AAA", b"=", b"/w", b"A" * 3_001, b","),
    ),
    _one(b"cache-control", b"pragma", values=(b"no-store", b"no-cache, no-store", b"max-age=-1", b",,,", b"NO-STORE")),
    _one(b"accept", b"accept-encoding", b"origin", b"cookie", b"referer", values=(b"gzip;q=2", b"null", b"*" * 500)),
    _one(b"expect", values=(b"100-continue",)),
    _one(b"te", b"upgrade", b"http2-settings", b"connection", values=(b"trailers", b"h2c", b"websocket", b"keep-alive, x-api-key")),
    lambda draw: [(b"x-%d" % number, _word(draw)[:50]) for number in range(draw.choice((90, 120)))],
    lambda draw: [(b"x-large", b"a" * draw.choice((7_000, 15_000, 30_000, 40_000)))],
    lambda draw: [(bytes(draw.choices(b"abcxyz-_09!#$%&'*+.^`|~", k=draw.choice((1, 12, 200)))), _word(draw))],
)


def http1_bytes(draw: Draw, host: str) -> bytes:
    """Return what is no HTTP/1.1, or only almost."""
    good = HttpRequest("POST", "/v1/embeddings", ((b"content-type", b"application/json"),), json.dumps(GOOD["/v1/embeddings"]).encode())
    if draw.random() < 0.5:
        return changed(draw, good.wire(host))
    head, _, content = good.wire(host).partition(b"\r\n\r\n")
    return draw.choice(_FRAMINGS)(draw, head, content)


_TLS_HELLO = bytes.fromhex("16030100f8010000f40303") + bytes(32)
_FRAMINGS: tuple[Callable[[Draw, bytes, bytes], bytes], ...] = (
    lambda draw, head, content: head + b"\r\ncontent-length: 3\r\n\r\n" + content,
    lambda draw, head, content: head + b"\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + content,
    lambda draw, head, content: (
        head.replace(
            b"content-length", b"transfer-encoding: " + draw.choice((b"gzip", b"chunked, identity", b"xchunked", b"\x0bchunked")) + b"\r\nx"
        )
        + b"\r\n\r\n"
        + content
    ),
    lambda draw, head, content: (
        head.replace(b"content-length: ", b"content-length: " + draw.choice((b"-", b"+", b"0x", b"99999999999999999999", b"1e")))
        + b"\r\n\r\n"
        + content
    ),
    lambda draw, head, content: (
        head.replace(b"content-length", b"transfer-encoding: chunked\r\nx")
        + b"\r\n\r\n"
        + draw.choice((b"zz", b"-1", b"ffffffffffffffffff", b"5;" + b"a" * 9_000, b"5\n"))
        + b"\r\n"
        + content
    ),
    lambda draw, head, content: head.replace(b"\r\n", b"\n") + b"\n\n" + content,
    lambda draw, head, content: head + b"\r\nx: a\r\n  folded\r\n\tagain\r\n\r\n" + content,
    lambda draw, head, content: head + b"\r\nx y: 1\r\n: 2\r\nno colon\r\n\r\n" + content,
    lambda draw, head, content: head + b"\r\nx: a\x00b\r\n\r\n" + content,
    lambda draw, head, content: head.replace(b"host", draw.choice((b"x-host", b"host: a\r\nhost"))) + b"\r\n\r\n" + content,
    lambda draw, head, content: (
        head.replace(b"HTTP/1.1", draw.choice((b"HTTP/1.0", b"HTTP/9.9", b"HTTP/2", b"http/1.1", b""))) + b"\r\n\r\n" + content
    ),
    lambda draw, head, content: (
        head.replace(
            b"POST /v1/embeddings",
            draw.choice(
                (b"POST http://evil/v1/embeddings", b"CONNECT a:1", b"PRI *", b"OPTIONS *", b"POST " + b"/a" * 20_000, b"POST /\xff")
            ),
        )
        + b"\r\n\r\n"
        + content
    ),
    lambda draw, head, content: (head + b"\r\n\r\n" + content) * draw.choice((2, 10)),
    lambda draw, head, content: (head + b"\r\n\r\n" + content)[: draw.randrange(len(head) + len(content))],
    lambda draw, head, content: (
        head + b"\r\nexpect: 200-nothing\r\nupgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AAA\r\n\r\n" + content
    ),
    lambda draw, head, content: _TLS_HELLO,
    lambda draw, head, content: draw.randbytes(draw.choice((1, 64, 5_000))),
    lambda draw, head, content: http2.PREFACE[: draw.randrange(24)] + draw.randbytes(50),
)


def _chunks(data: bytes) -> bytes:
    pieces = (data[start : start + 4_096] for start in range(0, len(data), 4_096))
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
