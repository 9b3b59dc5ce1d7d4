"""The OpenAI wire, by the clients that people use: the SDK, synchronous and not, LangChain, curl."""

from __future__ import annotations

import base64
import json
import subprocess
from typing import TYPE_CHECKING

import httpx
import numpy as np
import openai
import pytest
from langchain_openai import OpenAIEmbeddings
from openai import AsyncOpenAI, OpenAI

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.conftest import Mesh, Reference

KEYLESS = {"api_key": "none"}
"""The SDK insists on a key; the quick start has none, and takes any word for that."""
SERVED_NAME = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def client(mesh: Mesh) -> Iterator[OpenAI]:
    """The SDK as its documentation says to use it, with another base_url. Retries would hide what fails."""
    with OpenAI(base_url=f"{mesh.url}/v1", max_retries=0, **KEYLESS) as found:
        yield found


def content_ids(rest: httpx.Client, text: str) -> list[int]:
    """Return a text's ids in the model's own vocabulary, without [CLS] and [SEP]."""
    answer = rest.post("/quadrate/v1/tokenize", json={"model": "minilm", "inputs": [{"text": text}]})
    ids: list[int] = answer.raise_for_status().json()["tokenizations"][0]["ids"]
    return ids[1:-1]


def test_the_sdk_embeds_by_its_default_base64(client: OpenAI, reference: Reference) -> None:
    """Without encoding_format the SDK asks for base64 and decodes it."""
    answer = client.embeddings.create(model="minilm", input=list(reference.texts))
    reference.check([one.embedding for one in answer.data])
    assert [one.index for one in answer.data] == list(range(len(reference.texts)))
    assert answer.model == "minilm"
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0


def test_the_sdk_embeds_as_float(client: OpenAI, reference: Reference) -> None:
    """Numbers in JSON are the same vectors."""
    answer = client.embeddings.create(model="minilm", input=list(reference.texts), encoding_format="float", user="somebody")
    reference.check([one.embedding for one in answer.data])


def test_float_and_base64_are_the_same_numbers(rest: httpx.Client, reference: Reference) -> None:
    """Neither form loses a bit."""
    body = {"model": "minilm", "input": reference.texts[0]}
    numbers = rest.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    text = rest.post("/v1/embeddings", json={**body, "encoding_format": "base64"}).json()["data"][0]["embedding"]
    assert np.array_equal(np.frombuffer(base64.b64decode(text), "<f4"), np.array(numbers, np.float32))


def test_the_sdk_embeds_one_string(client: OpenAI, reference: Reference) -> None:
    """The simplest form of input."""
    reference.check([client.embeddings.create(model="minilm", input=reference.texts[1]).data[0].embedding], [1])


def test_the_sdk_embeds_token_ids(client: OpenAI, rest: httpx.Client, reference: Reference) -> None:
    """Ids of the model's own vocabulary are the text they stand for, one list of them or several; special tokens are added."""
    ids = [content_ids(rest, text) for text in reference.texts]
    reference.check([one.embedding for one in client.embeddings.create(model="minilm", input=ids).data])
    reference.check([client.embeddings.create(model="minilm", input=ids[0]).data[0].embedding], [0])


def test_the_served_name_is_taken_and_repeated(client: OpenAI, reference: Reference) -> None:
    """`model` may be the name that the model has elsewhere, slashes and all."""
    answer = client.embeddings.create(model=SERVED_NAME, input=reference.texts[0])
    reference.check([answer.data[0].embedding], [0])
    assert answer.model == SERVED_NAME


async def test_the_asynchronous_sdk_embeds(mesh: Mesh, reference: Reference) -> None:
    """AsyncOpenAI is the same wire."""
    async with AsyncOpenAI(base_url=f"{mesh.url}/v1", max_retries=0, **KEYLESS) as client:
        answer = await client.embeddings.create(model="minilm", input=list(reference.texts))
        assert [model.id async for model in client.models.list()] == ["minilm", "minilm-rerank"]
    reference.check([one.embedding for one in answer.data])


def test_the_sdk_lists_and_retrieves_models(client: OpenAI) -> None:
    """By alias and by served name; the answer repeats what was asked for."""
    assert [model.id for model in client.models.list()] == ["minilm", "minilm-rerank"]
    for name in ("minilm", SERVED_NAME):
        model = client.models.retrieve(name)
        assert (model.id, model.object, model.owned_by) == (name, "model", "sentence-transformers")
        assert model.created > 1_700_000_000


def test_a_name_with_slashes_is_retrieved_either_way(rest: httpx.Client) -> None:
    """Slashes may stand as they are or as %2F."""
    for path in (SERVED_NAME, SERVED_NAME.replace("/", "%2F")):
        assert rest.get(f"/v1/models/{path}").json()["id"] == SERVED_NAME
        assert rest.get(f"/quadrate/v1/models/{path}").json()["model"]["name"] == "minilm"


def test_truncation_is_an_extra_field(client: OpenAI) -> None:
    """Too long a text is refused, unless `truncate` says which end to cut."""
    long = "alpha beta " * 300
    with pytest.raises(openai.BadRequestError) as refusal:
        client.embeddings.create(model="minilm", input=long)
    assert refusal.value.code == "context_length_exceeded"
    assert refusal.value.param == "input"
    cut = client.embeddings.create(model="minilm", input=long, extra_body={"truncate": "right"})
    kept = client.embeddings.create(model="minilm", input="alpha beta " * 127)
    assert cut.usage.total_tokens == 256
    assert np.dot(cut.data[0].embedding, kept.data[0].embedding) == pytest.approx(1, abs=1e-5)


def test_the_sdk_raises_its_own_errors(client: OpenAI) -> None:
    """The SDK finds type, param and code where it looks for them."""
    with pytest.raises(openai.NotFoundError) as unknown:
        client.embeddings.create(model="nope", input="hello")
    assert (unknown.value.code, unknown.value.param, unknown.value.type) == ("model_not_found", "model", "invalid_request_error")
    assert unknown.value.request_id
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")
    with pytest.raises(openai.BadRequestError) as empty:
        client.embeddings.create(model="minilm", input=["hello", ""])
    assert (empty.value.code, empty.value.param) == ("empty_input", "input[1]")


def test_langchain_embeds_texts(mesh: Mesh, reference: Reference) -> None:
    """LangChain sends ids of another vocabulary unless it is told not to check lengths itself."""
    with httpx.Client() as connection:
        embedder = OpenAIEmbeddings(
            model="minilm", base_url=f"{mesh.url}/v1", check_embedding_ctx_length=False, http_client=connection, **KEYLESS
        )
        reference.check(embedder.embed_documents(list(reference.texts)))
        reference.check([embedder.embed_query(reference.texts[0])], [0])


def test_curl_embeds(mesh: Mesh, reference: Reference, require_program: Callable[[str], str]) -> None:
    """The call that everybody tries first, under curl's default content type."""
    body = json.dumps({"model": "minilm", "input": reference.texts[0]})
    line = [require_program("curl"), "--silent", "--fail", f"{mesh.url}/v1/embeddings", "--data", body]
    done = subprocess.run(line, capture_output=True, check=True, timeout=30)
    reference.check([json.loads(done.stdout)["data"][0]["embedding"]], [0])
