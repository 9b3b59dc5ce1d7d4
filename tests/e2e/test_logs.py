"""Logs: one canonical line a request at every process, under one id; no key and no text of a user in any of them."""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest

from quadrate.v1.embed_pb2 import EmbedRequest
from quadrate.v1.embed_pb2_grpc import EmbedServiceStub
from quadrate.v1.options_pb2 import Input

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.conftest import Mesh

WRONG = "sk-a-wrong-key-that-no-log-may-show"
UNNAMED = "another-key"
"""The other key of the guarded mesh."""
TEXT = "the quick xylophone that no log may show"
FLUSH_SECONDS = 10
"""Envoy writes its access log every second."""


def lines(mesh: Mesh) -> list[dict[str, Any]]:
    """Return all lines of the processes' logs; each must be a JSON object."""
    return [json.loads(line) for line in mesh.process_logs().splitlines() if line]


def wait_for(mesh: Mesh, condition: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """Read the logs until a condition holds of their lines."""
    deadline = time.monotonic() + FLUSH_SECONDS
    while not condition(found := lines(mesh)):
        assert time.monotonic() < deadline, found[-10:]
    return found


def call_everything(mesh: Mesh, key: str) -> list[str]:
    """Send the text and the keys by every wire, rightly and wrongly, and return the ids of the REST requests."""
    good, bad = {"authorization": f"Bearer {key}"}, {"x-api-key": WRONG}
    native = {"model": "minilm", "inputs": [{"text": TEXT}]}
    pairs = {"model": "minilm-rerank", "query": TEXT, "documents": [TEXT]}
    calls: list[tuple[str, Any, dict[str, str], int]] = [
        ("/v1/embeddings", {"model": "minilm", "input": TEXT}, good, 200),
        ("/v1/embeddings", {"model": "minilm", "input": [TEXT, ""]}, good, 400),
        ("/v1/embeddings", {"model": "minilm", "input": f"{TEXT} " * 200}, good, 400),
        ("/v1/embeddings", {"model": TEXT, "input": TEXT}, good, 404),
        ("/v1/embeddings", {"model": "minilm", "input": TEXT, "encoding_format": TEXT}, good, 400),
        (f"/v1/embeddings?key={key}&q={TEXT}", {"model": "minilm", "input": TEXT}, bad, 401),
        ("/v2/rerank", pairs, good, 200),
        ("/v2/rerank", {**pairs, "documents": [{"title": TEXT}]}, good, 400),
        ("/quadrate/v1/embed", native, {"x-api-key": key}, 200),
        ("/quadrate/v1/embed", {**native, "prompt_name": TEXT}, good, 400),
        ("/quadrate/v1/embed", {**native, "truncation": TEXT}, good, 400),
        ("/quadrate/v1/embed", {"model": "minilm", "inputs": TEXT}, good, 400),
        ("/quadrate/v1/tokenize", native, good, 200),
        ("/quadrate/v1/embed", native, {}, 401),
    ]
    ids = []
    with httpx.Client(base_url=mesh.url, timeout=30) as client:
        for path, body, headers, status in calls:
            answer = client.post(path, json=body, headers=headers)
            assert answer.status_code == status, (path, body, answer.text)
            ids.append(answer.headers["x-request-id"])
    with grpc.insecure_channel(mesh.edge) as channel:
        request = EmbedRequest(model="minilm", inputs=[Input(text=TEXT)])
        EmbedServiceStub(channel).Embed(request, timeout=30, metadata=(("authorization", f"Bearer {key}"),))
        with pytest.raises(grpc.RpcError) as failure:
            EmbedServiceStub(channel).Embed(request, timeout=30, metadata=(("x-api-key", WRONG),))
        assert failure.value.code() is grpc.StatusCode.UNAUTHENTICATED
    return ids


def test_no_key_and_no_text_is_in_any_log(guarded: Mesh, guarded_key: str) -> None:
    """Whatever is sent, rightly or wrongly, none of it is found in the logs once every request stands there."""
    ids = set(call_everything(guarded, guarded_key))
    wait_for(guarded, lambda found: ids <= {line.get("request_id") for line in found if line["component"] == "edge"})
    text = guarded.logs()
    for secret in (guarded_key, WRONG, TEXT, TEXT.split()[2]):
        assert secret not in text
    assert '"principal":"alice"' in text


def test_a_request_has_one_canonical_line_at_each_process(guarded: Mesh, guarded_key: str) -> None:
    """Edge, gateway and worker each write one line, under the id that the caller got."""
    headers = {"authorization": f"Bearer {guarded_key}", "cache-control": "no-store"}  # so that a worker has to do with it
    answer = httpx.post(f"{guarded.url}/v1/embeddings", json={"model": "minilm", "input": "hello"}, headers=headers, timeout=30)
    request = answer.headers["x-request-id"]

    def own(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [line for line in found if line.get("request_id") == request and line["message"] == "request"]

    found = own(wait_for(guarded, lambda all_lines: len(own(all_lines)) >= 3))
    assert sorted(line["component"] for line in found) == ["edge", "embed_worker", "gateway"]
    for line in found:
        assert {"timestamp", "level", "component", "message", "metadata", "trace_id", "request_id"} <= set(line)
    gateway = next(line for line in found if line["component"] == "gateway")["metadata"]
    assert (gateway["model"], gateway["principal"], gateway["status"], gateway["surface"]) == ("minilm", "alice", "OK", "rest")
    assert gateway["tokens"] == answer.json()["usage"]["total_tokens"]


def test_an_unnamed_key_is_called_by_its_hash(guarded: Mesh) -> None:
    """A plain key is `key-` and 8 hex digits in metrics, so that nobody can read it there."""
    headers = {"x-api-key": UNNAMED}
    assert httpx.get(f"{guarded.url}/v1/models", headers=headers, timeout=30).status_code == 200
    body = {"model": "minilm", "input": "hello"}
    assert httpx.post(f"{guarded.url}/v1/embeddings", json=body, headers=headers, timeout=30).status_code == 200
    metrics = httpx.get(f"{guarded.url}/metrics", timeout=30).text
    name = f"key-{hashlib.sha256(UNNAMED.encode()).hexdigest()[:8]}"
    assert f'"{name}"' in metrics
    assert UNNAMED not in metrics + guarded.logs()
