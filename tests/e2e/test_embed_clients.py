"""Every form of an embedding, by the clients that people use: Cohere's SDK, OpenAI's, ours, the command, plain REST.

The mesh serves tiny random models with the heads of bge-m3 and SPLADE. What they give is compared with what the same model gives in
float32, and that with transformers in tests/parity.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import cohere
import grpc
import httpx
import numpy as np
import openai
import pytest
import yaml
from openai import OpenAI

from quadrate.client import AsyncClient, Client, requests
from quadrate.client.requests import EmbedOptions
from quadrate.errors import InvalidArgument
from quadrate.v1 import embed_pb2_grpc
from quadrate.vectors import ranges
from tests.tiny_models import write_bge_m3, write_splade

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tests.e2e.conftest import Mesh, Reference, StartMesh

TEXTS = ["the cat sat on the mat", "hello", "cat cat dog cat"]
WIDTH = 32


@pytest.fixture(scope="module")
def tiny(start_mesh: StartMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh of the tiny models alone."""
    folder = tmp_path_factory.mktemp("tiny")
    long = write_bge_m3(folder / "long", multi_vector_width=64, max_tokens=400, max_position_embeddings=512)
    (long / "tokenizer_config.json").write_text('{"model_max_length": 512}')
    cards: dict[str, dict[str, Any]] = {
        "three": {
            "matryoshka_dimensions": [8, 16],
            "instruction": "find {instruction}: ",
            "prompts": {"query": "query: ", "document": "passage: ", "clustering": "dog "},
            "source": {"type": "folder", "path": str(write_bge_m3(folder / "three"))},
        },
        "splade": {"source": {"type": "folder", "path": str(write_splade(folder / "splade"))}},
        "long": {"source": {"type": "folder", "path": str(long)}},
    }
    models = {alias: {"served_name": f"tests/{alias}", "task": "embed", **card} for alias, card in cards.items()}
    routes = [{"model": alias, "upstream": {"type": "grpc", "url": "grpc://127.0.0.1:7997"}} for alias in cards]
    config = folder / "configs"
    config.mkdir()
    for name, content in {
        "models": {"models": models},
        "routing": {"embeddings": routes, "rerank": []},
        "auth": {"allow_anonymous_without_api_keys": True},
        "rate_limits": {"default": {"capacity": 60, "refill_rate": 30}},
    }.items():
        (config / f"{name}.yaml").write_text(yaml.safe_dump(content))
    with start_mesh("--config", str(config)) as found:
        yield found


@pytest.fixture(scope="module")
def tiny_rest(tiny: Mesh) -> Iterator[httpx.Client]:
    """A plain HTTP client of it."""
    with httpx.Client(base_url=tiny.url, timeout=30) as found:
        yield found


@pytest.fixture(scope="module")
def sdk(tiny: Mesh) -> Iterator[cohere.ClientV2]:
    """Cohere's SDK over it."""
    with httpx.Client() as connection:
        yield cohere.ClientV2(api_key="", base_url=tiny.url, httpx_client=connection)


@pytest.fixture(scope="module")
def client(tiny: Mesh) -> Iterator[Client]:
    """Our client over it."""
    with Client(tiny.edge) as found:
        yield found


def levels(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return what sentence-transformers' quantize_embeddings makes of vectors with our ranges, before it is cut to bytes."""
    lowest, highest = ranges(vectors.shape[1])
    return np.clip(np.floor((vectors - lowest) / ((highest - lowest) / 255)), 0, 255)


def test_coheres_sdk_embeds_real_text(mesh: Mesh, reference: Reference) -> None:
    """`ClientV2.embed` on the quick start's model gives the reference's vectors."""
    with httpx.Client() as connection:
        sdk = cohere.ClientV2(api_key="", base_url=mesh.url, httpx_client=connection)
        answer = sdk.embed(model="minilm", texts=list(reference.texts), input_type="search_document", embedding_types=["float", "ubinary"])
    assert answer.embeddings.float_ is not None
    assert answer.embeddings.ubinary is not None
    reference.check(answer.embeddings.float_)
    assert np.array_equal(answer.embeddings.ubinary, np.packbits(np.array(answer.embeddings.float_) > 0, axis=1))


def test_coheres_sdk_reads_every_embedding_type(sdk: cohere.ClientV2) -> None:
    """Each type is where the SDK looks for it, and is made of the float32 vectors."""
    kinds = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    answer = sdk.embed(model="three", texts=TEXTS, input_type="search_document", embedding_types=kinds)
    found = answer.embeddings
    vectors = np.array(found.float_, np.float32)
    assert vectors.shape == (3, WIDTH)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert found.base64 is not None
    assert np.array_equal([np.frombuffer(base64.b64decode(text), "<f4") for text in found.base64], vectors)
    assert np.array_equal(found.uint8, levels(vectors))
    assert np.array_equal(found.int8, levels(vectors) - 128)
    bits = np.packbits(vectors > 0, axis=1).astype(int)
    assert np.array_equal(found.ubinary, bits)
    assert np.array_equal(found.binary, bits - 128)
    assert answer.texts == TEXTS
    assert answer.response_type == "embeddings_by_type"
    assert answer.id
    assert answer.meta is not None
    assert answer.meta.billed_units is not None
    assert answer.meta.billed_units.input_tokens
    assert answer.meta.warnings is None


def test_coheres_input_types_choose_prompts(sdk: cohere.ClientV2, client: Client) -> None:
    """A role's prompt, or the prompt of the purpose's name; the same vectors as with that prompt natively."""
    for word, prompt in (("search_query", "query: "), ("search_document", "passage: "), ("clustering", "dog "), ("classification", "")):
        found = np.array(sdk.embed(model="three", texts=TEXTS, input_type=word).embeddings.float_, np.float32)
        np.testing.assert_allclose(found, client.embed(TEXTS, model="three", prompt=prompt).vectors, atol=1e-5)


def test_coheres_truncation_is_theirs_and_told(sdk: cohere.ClientV2) -> None:
    """END unless said; START; NONE refuses; `max_tokens` cuts earlier; the answer names what was cut."""
    long = "cat " * 30 + "dog " * 30
    answers = [
        sdk.embed(model="three", texts=[long, "cat"], input_type="clustering", **said)
        for said in ({}, {"truncate": "END"}, {"truncate": "START"}, {"max_tokens": 20})
    ]
    vectors = [np.array(answer.embeddings.float_) for answer in answers]
    assert np.allclose(vectors[0], vectors[1], atol=1e-6)
    assert not np.allclose(vectors[0][0], vectors[2][0], atol=1e-3)
    for answer, cut in zip(answers, (15, 15, 15, 43), strict=True):
        assert answer.meta is not None
        assert answer.meta.warnings == ["Text 0 was longer than the limit and cut; meta.tokens_cut says how much of each."]
        assert answer.meta.model_extra is not None
        assert answer.meta.model_extra["tokens_cut"] == [cut, 0]
    with pytest.raises(cohere.BadRequestError) as refusal:
        sdk.embed(model="three", texts=[long], input_type="clustering", truncate="NONE")
    assert "at most 48" in refusal.value.body["message"]


def test_coheres_output_dimension_is_for_models_trained_for_it(sdk: cohere.ClientV2) -> None:
    """Cut, then of length one; refused where the model was not trained for it, in the SDK's own error."""
    whole = np.array(sdk.embed(model="three", texts=TEXTS, input_type="search_query").embeddings.float_)
    cut = np.array(sdk.embed(model="three", texts=TEXTS, input_type="search_query", output_dimension=8).embeddings.float_)
    np.testing.assert_allclose(cut, whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True), atol=1e-5)
    for model, width in (("three", 9), ("long", 8)):
        with pytest.raises(cohere.BadRequestError) as refusal:
            sdk.embed(model=model, texts=TEXTS, input_type="search_query", output_dimension=width)
        assert refusal.value.body["error"]["param"] == "output_dimension"


def test_coheres_sdk_raises_its_own_errors(sdk: cohere.ClientV2) -> None:
    """The sentence is where the SDK's users look for it."""
    with pytest.raises(cohere.NotFoundError) as unknown:
        sdk.embed(model="nope", texts=["a"], input_type="search_query")
    assert "does not exist" in unknown.value.body["message"]
    with pytest.raises(cohere.BadRequestError) as sparse:
        sdk.embed(model="splade", texts=["a"], input_type="search_query")
    assert "outputs SPARSE" in sparse.value.body["message"]


def test_the_openai_route_takes_our_extras(tiny: Mesh, client: Client) -> None:
    """dimensions, input_type, instruction and truncate through the SDK, with provenance, timings and cuts beside OpenAI's fields."""
    with OpenAI(base_url=f"{tiny.url}/v1", api_key="none", default_headers={"Authorization": ""}, max_retries=0) as sdk:
        cut = sdk.embeddings.create(model="three", input=TEXTS, dimensions=16)
        asked = sdk.embeddings.create(model="three", input=TEXTS[0], extra_body={"instruction": "the mat"})
        long = sdk.embeddings.create(model="three", input=["cat " * 60, "cat"], extra_body={"truncate": "start", "input_type": "query"})
        with pytest.raises(openai.BadRequestError) as refusal:
            sdk.embeddings.create(model="long", input="cat", extra_body={"instruction": "the mat"})
    np.testing.assert_allclose([one.embedding for one in cut.data], client.embed(TEXTS, model="three", dimensions=16).vectors, atol=1e-5)
    assert asked.model_extra is not None
    assert asked.model_extra["provenance"]["prompt"] == "find the mat: "
    assert asked.model_extra["timings"]["inference_seconds"] > 0
    assert [(one.model_extra or {}).get("tokens_cut") for one in long.data] == [16, None]
    assert (long.usage.model_extra or {})["tokens_cut"] == 16
    assert refusal.value.param == "instruction"


def test_our_client_gets_all_forms_in_one_call(client: Client) -> None:
    """Numpy of each form; in company and alone, split into requests or not, the same."""
    texts = TEXTS * 40
    answer = client.embed(texts, model="three", outputs=["dense", "sparse", "multi_vector"])
    assert answer.vectors.shape == (120, WIDTH)
    assert len(answer.sparse) == len(answer.multi_vectors) == 120
    alone = client.embed(TEXTS[2], model="three", outputs="sparse").sparse[0]
    for found in answer.sparse[2::3]:
        assert np.array_equal(found.token_ids, alone.token_ids)
        np.testing.assert_allclose(found.weights, alone.weights, atol=1e-5)
    for usage, many in zip(answer.usages, answer.multi_vectors, strict=True):
        assert many.shape == (usage.tokens - 1, WIDTH)
        np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1, atol=1e-5)


async def test_the_asynchronous_client_streams_forms(tiny: Mesh) -> None:
    """Value types and outputs hold for streams, too."""
    async with AsyncClient(tiny.edge) as client:
        items = [
            item
            async for item in client.embed_stream(
                enumerate(TEXTS), model="three", outputs=["dense", "sparse", "multi_vector"], value_type="int8"
            )
        ]
    assert sorted(item.id for item in items) == [0, 1, 2]
    for item in items:
        assert item.value().dtype == np.int8
        assert item.multi_vector is not None
        assert item.sparse is not None
        assert item.usage is not None
        assert item.multi_vector.shape == (item.usage.tokens - 1, WIDTH)


@pytest.mark.parametrize(
    ("word", "dtype", "width"), [("float16", "f2", 32), ("uint8", "u1", 32), ("binary", "i1", 4), ("ubinary", "u1", 4)]
)
def test_our_client_gets_value_types_as_numpy(word: Any, dtype: str, width: int, client: Client) -> None:
    """Dense vectors and the rows of multi-vectors."""
    answer = client.embed(TEXTS, model="three", outputs=["dense", "multi_vector"], value_type=word)
    assert (answer.vectors.dtype, answer.vectors.shape) == (np.dtype(dtype), (3, width))
    assert {matrix.dtype for matrix in answer.multi_vectors} == {np.dtype(dtype)}
    assert {matrix.shape[1] for matrix in answer.multi_vectors} == {width}


def test_refusals_reach_our_client_as_classes(client: Client) -> None:
    """With the field at fault."""
    for options, param in (
        ({"outputs": "multi_vector", "model": "splade"}, "outputs"),
        ({"outputs": "sparse", "value_type": "int8", "model": "three"}, "value_type"),
        ({"value_type": "int8", "normalize": False, "model": "three"}, "value_type"),
        ({"dimensions": 9, "model": "three"}, "dimensions"),
        ({"outputs": "sparse", "dimensions": 8, "model": "three"}, "dimensions"),
        ({"instruction": "x", "role": "document", "model": "three"}, "instruction"),
        ({"instruction": "x", "model": "splade", "outputs": "sparse"}, "instruction"),
    ):
        with pytest.raises(InvalidArgument) as refusal:
            client.embed("cat", **options)  # type: ignore[arg-type] # options of several types
        assert refusal.value.param == param


def test_multi_vectors_too_large_for_a_message_or_for_json_are_refused(tiny: Mesh, tiny_rest: httpx.Client) -> None:
    """64 MiB over gRPC, the same in JSON over REST; fewer inputs or a smaller value type are served."""
    texts = [[7] * 390] * 700
    request = EmbedOptions("long", outputs="multi_vector").request(requests.inputs(texts))
    with grpc.insecure_channel(tiny.edge) as channel, pytest.raises(grpc.RpcError, match="at most 67043328 are sent") as refusal:
        embed_pb2_grpc.EmbedServiceStub(channel).Embed(request)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with Client(tiny.edge, texts_per_request=700) as client:  # which asks for less at a time
        found = client.embed(texts, model="long", outputs="multi_vector").multi_vectors
    assert (len(found), found[699].shape) == (700, (391, 64))
    inputs = [{"token_ids": {"ids": ids}} for ids in texts[:400]]
    answer = tiny_rest.post("/quadrate/v1/embed", json={"model": "long", "inputs": inputs, "outputs": ["MULTI_VECTOR"]})
    assert answer.status_code == 400, answer.text
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == ("answer_too_large", "inputs")


def test_plain_rest_gets_all_forms(tiny_rest: httpx.Client, client: Client) -> None:
    """JSON of the contract: packed values are base64, rows lie one after another."""
    body = {"model": "three", "inputs": [{"text": TEXTS[0]}], "outputs": ["DENSE", "SPARSE", "MULTI_VECTOR"], "value_type": "UBINARY"}
    answer = tiny_rest.post("/quadrate/v1/embed", json=body)
    assert answer.status_code == 200, answer.text
    (found,) = answer.json()["embeddings"]
    wanted = client.embed(TEXTS[0], model="three", outputs=["dense", "sparse", "multi_vector"], value_type="ubinary")
    assert base64.b64decode(found["packed_values"]) == wanted.vectors[0].tobytes()
    assert found["sparse"]["token_ids"] == wanted.sparse[0].token_ids.tolist()
    assert found["multi_vector"]["width"] == WIDTH // 8
    assert base64.b64decode(found["multi_vector"]["packed_values"]) == wanted.multi_vectors[0].tobytes()


def test_cards_say_what_may_be_asked_for(tiny_rest: httpx.Client) -> None:
    """Forms, widths and the instruction's template."""
    cards = {card["name"]: card for card in tiny_rest.get("/quadrate/v1/models").json()["models"]}
    assert cards["three"]["outputs"] == ["DENSE", "SPARSE", "MULTI_VECTOR"]
    assert cards["three"]["matryoshka_dimensions"] == [8, 16]
    assert cards["three"]["instruction_template"] == "find {instruction}: "
    assert cards["splade"]["outputs"] == ["SPARSE"]
    assert "dimensions" not in cards["splade"]


def test_the_command_prints_every_form(tiny: Mesh) -> None:
    """A line for people, an object for programs."""
    asked = ["embed", "cat dog", "--model", "three", "--url", tiny.edge]
    forms = ["--output", "dense", "--output", "sparse", "--output", "multi_vector", "--value-type", "int8"]
    shown = tiny.command(*asked, *forms)
    assert shown.returncode == 0, shown.stderr
    for part in ("32 wide", "weights", "3 rows of 32", "4 tokens: cat dog"):
        assert part in shown.stdout
    told = tiny.command(*asked, *forms, "--json")
    found = json.loads(told.stdout)
    assert all(isinstance(value, int) for value in found["embedding"])
    assert len(found["multi_vector"]) == 3
    assert len(found["sparse"]["token_ids"]) == len(found["sparse"]["weights"])
    cut = json.loads(tiny.command(*asked, "--dimensions", "8", "--instruction", "a dog", "--json").stdout)
    assert len(cut["embedding"]) == 8
    refused = tiny.command(*asked, "--dimensions", "9")
    assert refused.returncode == 1
    assert "dimensions 9 is not one that 'three' gives: 8, 16, 32." in refused.stderr
