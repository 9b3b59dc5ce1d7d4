"""What the edge itself refuses: in our shape, with a request id that its log has, too, and the field where one is at fault."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.processes import LONG_SECONDS, eventually

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

pytestmark = pytest.mark.asyncio(loop_scope="module")

GET = "GET /v1/models HTTP/1.1\r\nHost: mesh\r\n"
POST = "POST /v1/embeddings HTTP/1.1\r\nHost: mesh\r\n"
REFUSED = {
    "no HTTP": ("nonsense\r\n\r\n", 400, "invalid_value"),
    "no host": ("GET /v1/models HTTP/1.1\r\n\r\n", 400, "invalid_value"),
    "HTTP/1.0": ("GET /v1/models HTTP/1.0\r\n\r\n", 426, "invalid_value"),
    "an unknown method": ("FROB /v1/models HTTP/1.1\r\nHost: mesh\r\n\r\n", 400, "invalid_value"),
    "a header's name": (f"{GET}a b: 1\r\n\r\n", 400, "invalid_value"),
    "a header's value": (f"{GET}a: \0\r\n\r\n", 400, "invalid_value"),
    "too many headers": (GET + "".join(f"x-{n}: 1\r\n" for n in range(150)) + "\r\n", 431, "headers_too_large"),
    "a header too large": (f"{GET}x: {'a' * 40_000}\r\n\r\n", 431, "headers_too_large"),
    "a path too long": (f"GET /{'a' * 40_000} HTTP/1.1\r\nHost: mesh\r\n\r\n", 431, "headers_too_large"),
    "two lengths": (f"{POST}content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400, "invalid_value"),
    "no length": (f"{POST}content-length: x\r\n\r\n", 400, "invalid_value"),
    "an encoding": (f"{POST}transfer-encoding: frob\r\n\r\n", 501, "not_implemented"),
    "a chunk": (f"{POST}transfer-encoding: chunked\r\n\r\nzz\r\n", 400, "invalid_value"),
    "a path with NUL": ("GET /v1/models/%00 HTTP/1.1\r\nHost: mesh\r\n\r\n", 400, "invalid_value"),
    "an upgrade": (f"{GET}connection: upgrade\r\nupgrade: websocket\r\n\r\n", 403, "invalid_value"),
    "a tunnel": ("CONNECT mesh:80 HTTP/1.1\r\nHost: mesh\r\n\r\n", 404, "not_found"),
    "a path of no file": ("OPTIONS * HTTP/1.1\r\nHost: mesh\r\nconnection: close\r\n\r\n", 404, "not_found"),
    "an unknown path": ("GET /frob HTTP/1.1\r\nHost: mesh\r\nconnection: close\r\n\r\n", 404, "not_found"),
    "a wrong method": ("PUT /v1/embeddings HTTP/1.1\r\nHost: mesh\r\nconnection: close\r\n\r\n", 405, "method_not_allowed"),
    "a wrong type": (f"{POST}content-type: text/plain\r\nconnection: close\r\n\r\n", 415, "unsupported_media_type"),
}


async def ask(port: int | None, request: str) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Send bytes and return status, headers and body of what comes back until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.encode("latin-1"))
    raw = (await asyncio.wait_for(reader.read(), LONG_SECONDS)).decode()
    writer.close()
    await writer.wait_closed()
    head, _, body = raw.partition("\r\n\r\n")
    status, *headers = head.split("\r\n")
    return int(status.split()[1]), dict(line.split(": ", 1) for line in headers), json.loads(body)


@pytest.mark.parametrize(("request_", "status", "code"), REFUSED.values(), ids=REFUSED.keys())
async def test_what_is_refused_has_an_id_that_the_log_has_too(
    request_: str, status: int, code: str, edge: tuple[httpx.AsyncClient, Path]
) -> None:
    """Also where the request could not be read far enough to have one of its own."""
    client, log = edge
    found, headers, body = await ask(client.base_url.port, request_)
    assert (found, headers["content-type"], body["error"]["code"]) == (status, "application/json", code)
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    request_id = headers["x-request-id"]
    await eventually(lambda: f'"request_id":"{request_id}"' in log.read_text(), f"the edge's log does not have {request_id}")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("embed", {"model": 1}, "model"),
        ("embed", {"model": {}}, "model"),
        ("embed", {"inputs": "a"}, "inputs"),
        ("embed", {"inputs": [1]}, "inputs[0]"),
        ("embed", {"inputs": [{"text": "a"}, {"text": {"a": 1}}]}, "inputs[1].text"),
        ("embed", {"inputs": [{"token_ids": {"ids": ["x"]}}]}, "inputs[0].token_ids.ids[0]"),
        ("embed", {"value_type": 'NO"PE'}, "value_type"),
        ("embed", {"dimensions": "wide"}, "dimensions"),
        ("rerank", {"documents": [{"text": {}}]}, "documents[0].text"),
        ("embed", [], None),
    ],
)
async def test_a_field_that_the_transcoder_cannot_read_is_named(
    path: str, body: Any, param: str | None, edge: tuple[httpx.AsyncClient, Path]
) -> None:
    """In `param`, where clients look for it; the sentence says what was wrong with it. It pins Envoy's wording."""
    answer = await edge[0].post(f"/quadrate/v1/{path}", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, "invalid_value")
    assert error["message"].startswith("The request cannot be read: ")
    assert "x-quadrate-unread" not in answer.headers


async def test_a_sentence_that_pretends_to_name_a_field_names_none(edge: tuple[httpx.AsyncClient, Path]) -> None:
    """What stands in a caller's JSON is quoted in the sentence, and never becomes a part of the body's form."""
    answer = await edge[0].post("/quadrate/v1/embed", json={"value_type": '","param":"spoofed", cannot be read: a: b'})
    assert answer.json()["error"]["param"] == "value_type"
