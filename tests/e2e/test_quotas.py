"""Quotas from outside: what clients that people use make of a limit."""

from __future__ import annotations

import json
import shutil
import time
from typing import TYPE_CHECKING, Any

import cohere
import grpc
import httpx
import openai
import pytest
import yaml

from quadrate.config.shipped import shipped
from quadrate.v1 import embed_pb2, embed_pb2_grpc, options_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Mesh, StartMesh

LIMITS = {
    "default": {"capacity": 2, "refill_rate": 1},
    "per_api_key": {"tokens": {"tokens_per_minute": 600}, "few": {"tokens_per_minute": 5}, "watched": {"capacity": 50, "refill_rate": 50}},
}
KEYS = {"api_keys": [{"key": f"key-of-{name}", "name": name} for name in ("sdk", "cohere", "raw", "tokens", "few", "watched")]}


@pytest.fixture(scope="module")
def mesh(start_mesh: StartMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh whose keys have limits."""
    folder = tmp_path_factory.mktemp("limits") / "configs"
    shutil.copytree(shipped("configs"), folder)
    for name, content in (("auth", KEYS), ("rate_limits", LIMITS)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    with start_mesh("--config", str(folder), environment={"EDGE_CORS_ORIGINS": "https://example.org"}) as found:
        yield found


def post(mesh: Mesh, key: str, texts: list[str]) -> httpx.Response:
    """Ask for embeddings as curl would."""
    headers = {"authorization": f"Bearer key-of-{key}"}
    return httpx.post(f"{mesh.url}/v1/embeddings", json={"model": "minilm", "input": texts}, headers=headers, timeout=30)


@pytest.mark.parametrize("key", ["sdk", "tokens"])
def test_the_openai_sdk_s_own_retry_succeeds(mesh: Mesh, key: str) -> None:
    """Requests that are refused are tried again by the SDK when it was told to, and all of them end well."""
    waited: list[float] = []

    def note(answer: httpx.Response) -> None:
        if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            waited.append(float(answer.headers["retry-after-ms"]))

    if key == "tokens":
        assert post(mesh, key, [f"{number}" for number in range(200)]).status_code == httpx.codes.OK
    with (
        httpx.Client(event_hooks={"response": [note]}) as connection,
        openai.OpenAI(base_url=f"{mesh.url}/v1", api_key=f"key-of-{key}", http_client=connection, max_retries=2) as client,
    ):
        answers = [client.embeddings.create(model="minilm", input=f"{key} asks for the {number}th time") for number in range(5)]
    assert all(len(answer.data) == 1 for answer in answers)
    assert waited, "nothing was refused"
    assert max(waited) < 5_000


def test_cohere_s_sdk_waits_as_well(mesh: Mesh) -> None:
    """It reads retry-after in whole seconds."""
    with httpx.Client() as connection:
        client = cohere.ClientV2(api_key="key-of-cohere", base_url=mesh.url, httpx_client=connection)
        for _ in range(4):
            assert client.rerank(model="minilm-rerank", query="a question", documents=["an answer", "something else"]).results


def test_rest_callers_read_what_is_left_and_how_long_to_wait(mesh: Mesh) -> None:
    """Headers of a good answer and of a refusal, and OpenAI's error body."""
    good = post(mesh, "raw", ["a text"])
    assert good.status_code == httpx.codes.OK
    assert (good.headers["x-ratelimit-limit-requests"], good.headers["x-ratelimit-remaining-requests"]) == ("2", "1")
    assert good.headers["x-ratelimit-reset-requests"].endswith("s")
    while (refusal := post(mesh, "raw", ["a text"])).status_code == httpx.codes.OK:
        pass
    assert refusal.status_code == httpx.codes.TOO_MANY_REQUESTS
    assert {key: refusal.json()["error"][key] for key in ("type", "param", "code")} == {
        "type": "rate_limit_error",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    assert refusal.headers["x-ratelimit-remaining-requests"] == "0"
    assert int(refusal.headers["retry-after"]) == 1
    time.sleep(int(refusal.headers["retry-after-ms"]) / 1000)  # as its caller is told to
    assert post(mesh, "raw", ["a text"]).status_code == httpx.codes.OK


def test_a_request_that_no_waiting_lets_pass_is_wrong(mesh: Mesh) -> None:
    """400, so that no client tries again."""
    answer = post(mesh, "few", ["more than five tokens in one text"])
    assert (answer.status_code, answer.json()["error"]["code"]) == (httpx.codes.BAD_REQUEST, "request_exceeds_limit")
    assert "retry-after" not in answer.headers


def test_grpc_callers_read_the_same_through_the_edge(mesh: Mesh) -> None:
    """Trailing metadata of a good answer."""
    with grpc.insecure_channel(mesh.edge) as channel:
        request = embed_pb2.EmbedRequest(model="minilm", inputs=[options_pb2.Input(text="a text")])
        _, call = embed_pb2_grpc.EmbedServiceStub(channel).Embed.with_call(request, metadata=(("x-api-key", "key-of-watched"),), timeout=30)
        told: dict[str, Any] = dict(call.trailing_metadata())
        assert told["x-ratelimit-limit-requests"] == "50"


def test_a_browser_may_read_them(mesh: Mesh) -> None:
    """The edge lists them for scripts of other origins."""
    headers = {"authorization": "Bearer key-of-watched", "origin": "https://example.org"}
    answer = httpx.post(f"{mesh.url}/v1/embeddings", json={"model": "minilm", "input": "a text"}, headers=headers, timeout=30)
    exposed = set(answer.headers["access-control-expose-headers"].split(","))
    assert {name for name in answer.headers if name.startswith("x-ratelimit-")} <= exposed
    assert {"x-ratelimit-remaining-requests", "retry-after", "retry-after-ms"} <= exposed


def test_operators_see_who_used_what(mesh: Mesh) -> None:
    """`quadrate usage` asks the gateway; the edge does not show it to the outside."""
    post(mesh, "watched", ["one text"])
    gateway = f"http://{mesh.target('gateway', http=True)}"
    done = mesh.command("usage", "--gateway", gateway, "--json")
    assert done.returncode == 0, done.stderr
    row = next(row for row in json.loads(done.stdout)["rows"] if row["principal"] == "watched")
    assert row["requests"] >= 1
    assert row["tokens"] >= 4
    table = mesh.command("usage", "--gateway", gateway)
    assert "watched" in table.stdout
    assert "requests at once" in table.stdout
    assert httpx.get(f"{mesh.url}/usage", timeout=30).status_code == httpx.codes.NOT_FOUND
    wrong = mesh.command("usage", "--gateway", mesh.url)
    assert wrong.returncode != 0
    assert "--gateway" in wrong.stderr + wrong.stdout
