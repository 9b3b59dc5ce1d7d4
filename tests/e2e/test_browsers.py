"""Browsers: pages of a configured origin may call, by fetch and by gRPC-Web; others may not."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import httpx
import pytest

from quadrate.v1.embed_pb2 import EmbedRequest, EmbedResponse
from quadrate.v1.options_pb2 import Input

if TYPE_CHECKING:
    from tests.e2e.conftest import Mesh

ORIGIN = "https://app.example.com"


def preflight(mesh: Mesh, path: str, origin: str) -> httpx.Response:
    """Ask what a browser asks before it lets a page call."""
    headers = {"origin": origin, "access-control-request-method": "POST", "access-control-request-headers": "authorization,x-grpc-web"}
    return httpx.options(f"{mesh.url}{path}", headers=headers, timeout=30)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v2/rerank", "/quadrate.v1.EmbedService/Embed"])
def test_a_page_of_the_origin_may_call(path: str, guarded: Mesh) -> None:
    """The browser is told that it may send the key and gRPC-Web's headers."""
    answer = preflight(guarded, path, ORIGIN)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert {"authorization", "*"} == {name.strip() for name in answer.headers["access-control-allow-headers"].split(",")}


def test_a_page_of_another_origin_may_not(guarded: Mesh, mesh: Mesh) -> None:
    """Other origins, and all of them where none is configured, get no permission."""
    for answer in (preflight(guarded, "/v1/embeddings", "https://evil.example"), preflight(mesh, "/v1/embeddings", ORIGIN)):
        assert answer.status_code == 405
        assert "access-control-allow-origin" not in answer.headers


def test_a_page_reads_errors_and_ids(guarded: Mesh) -> None:
    """What refuses a page must be readable by it."""
    answer = httpx.post(f"{guarded.url}/v1/embeddings", json={"model": "minilm", "input": "hello"}, headers={"origin": ORIGIN}, timeout=30)
    assert answer.status_code == 401
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    shown = set(answer.headers["access-control-expose-headers"].split(","))
    assert {"x-request-id", "x-quadrate-cache", "retry-after", "grpc-status"} <= shown


def test_a_page_calls_grpc_web_with_its_key(guarded: Mesh, guarded_key: str) -> None:
    """The stub that a page uses, framed by hand."""
    message = EmbedRequest(model="minilm", inputs=[Input(text="hello")]).SerializeToString()
    headers = {"content-type": "application/grpc-web+proto", "origin": ORIGIN, "authorization": f"Bearer {guarded_key}"}
    body = struct.pack(">BI", 0, len(message)) + message
    answer = httpx.post(f"{guarded.url}/quadrate.v1.EmbedService/Embed", content=body, headers=headers, timeout=30)
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    _, length = struct.unpack_from(">BI", answer.content)
    assert len(EmbedResponse.FromString(answer.content[5 : 5 + length]).embeddings[0].values) == 384
