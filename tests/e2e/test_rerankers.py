"""Rerankers that read query and document together, behind a whole mesh: every wire, every limit. The models are tiny and random."""

from __future__ import annotations

import json
import math
import subprocess
from typing import TYPE_CHECKING, Any

import cohere
import grpc
import httpx
import pytest
import yaml

from quadrate.client import Client
from quadrate.config.shipped import shipped
from quadrate.errors import ContextLengthExceeded, InvalidArgument, TooManyInputs
from quadrate.testing.model_folder import write_tiny_cross_encoder
from quadrate.v1 import options_pb2, rerank_pb2, rerank_pb2_grpc
from tests.tiny_causal import CAUSAL_CARD, INSTRUCTION, write_tiny_causal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.conftest import Mesh, StartMesh

QUERY = "the cat sat"
DOCUMENTS = ("the mat", "hello world", "the cat sat on the mat", "dog")
PAIR_TOKENS = 8, 8, 12, 7
"""Three special tokens, three of the query, and the document's own."""
WHERE = ("edge", "gateway", "rerank")


@pytest.fixture(scope="module")
def pairs(start_mesh: StartMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh with a cross-encoder, one whose activation is switched off, and a causal reranker."""
    folder = tmp_path_factory.mktemp("pairs")
    folders = {
        "cross": write_tiny_cross_encoder(folder / "cross"),
        "logits": write_tiny_cross_encoder(folder / "logits", activation="torch.nn.modules.linear.Identity"),
        "causal": write_tiny_causal(folder / "causal"),
    }
    routing: dict[str, Any] = yaml.safe_load(shipped("configs/routing.yaml").read_text())
    models: dict[str, Any] = {}
    for alias, path in folders.items():
        card = {"scoring": "causal", **CAUSAL_CARD} if alias == "causal" else {"scoring": "cross_encoder"}
        models[alias] = {"served_name": f"tests/{alias}", "task": "rerank", "source": {"type": "folder", "path": str(path)}, **card}
        upstream = {"type": "grpc", "url": "grpc://127.0.0.1:9002"}
        routing["rerank"].append({"model": alias, "served_name": f"tests/{alias}", "upstream": upstream})
    catalogue = yaml.safe_load(shipped("configs/models.yaml").read_text())["models"]
    wanted = {route["model"] for route in (*routing["embeddings"], *routing["rerank"]) if route.get("enabled", True)}
    config = folder / "config"
    config.mkdir()
    for path in shipped("configs").glob("*.yaml"):
        (config / path.name).write_text(path.read_text())
    models |= {alias: card for alias, card in catalogue.items() if alias in wanted and "golden" not in card}
    models |= {alias: {key: value for key, value in catalogue[alias].items() if key != "golden"} for alias in wanted - set(models)}
    (config / "models.yaml").write_text(yaml.safe_dump({"models": models}))
    (config / "routing.yaml").write_text(yaml.safe_dump(routing))
    environment = {"RERANK_MODEL_MAPPING": '{"our-reranker": "cross"}', "ROUTER_CACHE_MAX_BYTES": "0"}  # ways are compared by computing
    with start_mesh("--config", str(config), environment=environment) as found:
        yield found


@pytest.fixture(scope="module")
def http(pairs: Mesh) -> Iterator[httpx.Client]:
    """A plain HTTP client of that mesh."""
    with httpx.Client(base_url=pairs.url, timeout=30) as client:
        yield client


def target_of(mesh: Mesh, name: str) -> str:
    """Return where a process speaks gRPC."""
    return mesh.edge if name == "edge" else mesh.target(name)


def ask(mesh: Mesh, name: str, model: str = "cross", query: str = QUERY, **fields: Any) -> rerank_pb2.RerankResponse:
    """Rerank by the generated stubs."""
    documents = [options_pb2.Input(text=text) for text in DOCUMENTS]
    with grpc.insecure_channel(target_of(mesh, name)) as channel:
        request = rerank_pb2.RerankRequest(model=model, query=query, documents=documents, **fields)
        answer: rerank_pb2.RerankResponse = rerank_pb2_grpc.RerankServiceStub(channel).Rerank(request, timeout=30)
        return answer


def is_same(one: rerank_pb2.RerankResponse, other: rerank_pb2.RerankResponse) -> bool:
    """Whether places and tokens are the same, and scores but for what the company in a run does to their last digits."""
    rows = [[(result.index, result.usage.tokens) for result in answer.results] for answer in (one, other)]
    scores = [[result.relevance_score for result in answer.results] for answer in (one, other)]
    return rows[0] == rows[1] and scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_coheres_sdk_gets_what_the_stubs_get(pairs: Mesh) -> None:
    """The same order and scores over version 1, version 2 and gRPC; the query is charged with each document."""
    expected = ask(pairs, "edge")
    assert expected.usage.tokens == sum(PAIR_TOKENS)
    assert {result.index: result.usage.tokens for result in expected.results} == dict(enumerate(PAIR_TOKENS))
    with httpx.Client() as connection:
        first = cohere.Client(api_key="", base_url=pairs.url, httpx_client=connection)
        second = cohere.ClientV2(api_key="", base_url=pairs.url, httpx_client=connection)
        for answer in (
            first.rerank(model="cross", query=QUERY, documents=list(DOCUMENTS)),
            second.rerank(model="tests/cross", query=QUERY, documents=list(DOCUMENTS)),
        ):
            found = [(result.index, result.relevance_score) for result in answer.results]
            assert [place for place, _ in found] == [result.index for result in expected.results]
            assert [score for _, score in found] == pytest.approx([result.relevance_score for result in expected.results], rel=1e-5)
            assert answer.meta is not None
            assert answer.meta.tokens is not None
            assert answer.meta.tokens.input_tokens == sum(PAIR_TOKENS)


@pytest.mark.parametrize("model", ["cross", "logits", "causal"])
@pytest.mark.parametrize("name", WHERE)
def test_edge_gateway_and_worker_give_the_same(pairs: Mesh, name: str, model: str) -> None:
    """Scores, order, tokens; whether the gateway read the texts or the worker did."""
    answer = ask(pairs, name, model)
    assert is_same(answer, ask(pairs, "edge", model))
    assert answer.provenance.pooling == {"causal": "causal"}.get(model, "cross_encoder")
    assert answer.timings.inference_seconds > 0


@pytest.mark.parametrize("model", ["cross", "causal"])
def test_raw_scores_are_logits_and_relevance_their_sigmoid(pairs: Mesh, http: httpx.Client, model: str) -> None:
    """On both doors; a model whose files switch the activation off gives its logits in any case."""
    raw, usual = ask(pairs, "edge", model, raw_scores=True), ask(pairs, "edge", model)
    for one, two in zip(raw.results, usual.results, strict=True):
        assert two.relevance_score == pytest.approx(1 / (1 + math.exp(-one.relevance_score)), rel=1e-4)
    body = {"model": model, "query": QUERY, "documents": list(DOCUMENTS), "raw_scores": True}
    shown = http.post("/v2/rerank", json=body).json()["results"]
    assert [one["relevance_score"] for one in shown] == pytest.approx([one.relevance_score for one in raw.results], rel=1e-4)
    assert is_same(ask(pairs, "edge", "logits"), ask(pairs, "edge", "logits", raw_scores=True))
    cards = {card["name"]: card for card in http.get("/quadrate/v1/models?task=TASK_RERANK").json()["models"]}
    assert [cards[name]["activation"] for name in ("cross", "logits", "causal")] == ["sigmoid", "none", "sigmoid"]
    assert cards["minilm-rerank"]["activation"] == "rescale"


def test_top_n_and_equal_documents(http: httpx.Client) -> None:
    """The best so many; ties stand by index."""
    body = {"model": "cross", "query": QUERY, "documents": ["dog", "mat", "dog", "mat"]}
    places = [one["index"] for one in http.post("/v1/rerank", json=body).json()["results"]]
    assert places in ([0, 2, 1, 3], [1, 3, 0, 2])
    assert [one["index"] for one in http.post("/v1/rerank", json={**body, "top_n": 3}).json()["results"]] == places[:3]


def test_an_instruction_changes_the_scores_of_a_model_that_takes_one(pairs: Mesh, http: httpx.Client) -> None:
    """On every wire, with the card's own where there is none; the other models refuse it."""
    own = ask(pairs, "edge", "causal")
    told = ask(pairs, "edge", "causal", instruction="Find the dog")
    assert is_same(ask(pairs, "rerank", "causal", instruction="Find the dog"), told)
    assert not is_same(told, own)
    assert is_same(ask(pairs, "edge", "causal", instruction=INSTRUCTION), own)
    body = {"model": "causal", "query": QUERY, "documents": list(DOCUMENTS), "instruction": "Find the dog"}
    shown = http.post("/v1/rerank", json=body).json()
    assert [one["index"] for one in shown["results"]] == [result.index for result in told.results]
    assert shown["provenance"]["prompt"] == told.provenance.prompt == "Find the dog"
    refused = http.post("/v1/rerank", json={**body, "model": "cross"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "instruction")


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_long_documents_are_cut_and_named_on_the_rerank_routes(http: httpx.Client, path: str) -> None:
    """In characters and in tokens, with the tokens that each lost; the query is charged whole."""
    body = {"model": "cross", "query": QUERY, "documents": ["dog", "cat " * 60, "dog " * 2000]}
    found = http.post(path, json=body).json()
    assert found["meta"]["warnings"] == ["Documents 1, 2 were longer than the limit and cut; what was cut did not count towards the score."]
    usages = {one["index"]: one["usage"] for one in found["results"]}
    assert usages == {
        0: {"tokens": 7, "tokens_cut": 0},
        1: {"tokens": 48, "tokens_cut": 60 - 42},
        2: {"tokens": 48, "tokens_cut": 1024 - 42},  # 4,096 characters were looked at
    }
    assert found["usage"] == {"total_tokens": 7 + 48 + 48, "tokens_cut": 18 + 982}
    short = http.post(path, json={**body, "max_tokens_per_doc": 2}).json()
    assert {one["usage"]["tokens"] for one in short["results"]} == {7, 8}


@pytest.mark.parametrize(
    ("document", "said"), [("cat " * 60, "has 60 tokens; the query leaves room for 42 of the 48"), ("c" * 4097, "has 4097 characters")]
)
def test_long_documents_are_refused_natively_unless_a_cut_is_asked_for(http: httpx.Client, document: str, said: str) -> None:
    """400 with the name, the count and the limit; cut on the side that was asked for."""
    body = {"model": "cross", "query": QUERY, "documents": [{"text": "dog"}, {"text": document}]}
    refused = http.post("/quadrate/v1/rerank", json=body)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "documents[1].text")
    assert said in error["message"]
    for more in ({"truncation": "RIGHT"}, {"truncation": "LEFT"}, {"max_tokens_per_doc": 42}):
        answer = http.post("/quadrate/v1/rerank", json={**body, **more})
        assert answer.status_code == 200, answer.text
        assert answer.json()["warnings"] == ["Document 1 was longer than the limit and cut; what was cut did not count towards the score."]


def test_a_query_without_room_is_refused_on_every_wire(pairs: Mesh, http: httpx.Client) -> None:
    """With its tokens and the most it may have, whether or not documents may be cut."""
    query = "cat " * 45
    for path, documents in (("/v2/rerank", ["dog"]), ("/quadrate/v1/rerank", [{"text": "dog"}])):
        refused = http.post(path, json={"model": "cross", "query": query, "documents": documents, "truncation": "RIGHT"})
        error = refused.json()["error"]
        assert (refused.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "query")
        assert "query has 45 tokens" in error["message"]
        assert "a query may have 44" in error["message"]
    for name in WHERE:
        with pytest.raises(grpc.RpcError, match="query has 45 tokens"):
            ask(pairs, name, query=query, truncation=options_pb2.RIGHT)


def test_more_documents_than_allowed_are_refused_on_every_wire(pairs: Mesh, http: httpx.Client) -> None:
    """50 are answered, 51 are refused with 400."""
    for path, item in (("/v1/rerank", "dog"), ("/v2/rerank", "dog"), ("/quadrate/v1/rerank", {"text": "dog"})):
        body = {"model": "cross", "query": QUERY, "documents": [item] * 50}
        assert len(http.post(path, json=body).json()["results"]) == 50
        refused = http.post(path, json={**body, "documents": [item] * 51})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "too_many_inputs")
    with Client(pairs.edge) as client, pytest.raises(TooManyInputs, match="51"):
        client.rerank(QUERY, ["dog"] * 51, model="cross")


def test_the_client_asks_for_all_of_it(pairs: Mesh) -> None:
    """Raw scores, a cut, an instruction; and its errors are the classes of quadrate.errors."""
    with Client(pairs.edge) as client:
        usual = client.rerank(QUERY, DOCUMENTS, model="cross")
        raw = client.rerank(QUERY, DOCUMENTS, model="cross", raw_scores=True)
        assert [one.index for one in usual] == [one.index for one in raw]
        cut = client.rerank(QUERY, ["cat " * 60], model="cross", truncation="right")
        assert (cut.results[0].usage.tokens, cut.results[0].usage.tokens_cut, len(cut.warnings)) == (48, 18, 1)
        assert client.rerank(QUERY, DOCUMENTS, model="causal", instruction="Find the dog").provenance.prompt == "Find the dog"
        with pytest.raises(ContextLengthExceeded):
            client.rerank(QUERY, ["cat " * 60], model="cross")
        with pytest.raises(InvalidArgument, match="takes no instruction"):
            client.rerank(QUERY, DOCUMENTS, model="cross", instruction="Find the dog")


@pytest.mark.parametrize("name", WHERE)
def test_grpcurl_reranks_with_an_instruction(pairs: Mesh, name: str, require_program: Callable[[str], str]) -> None:
    """As it is typed."""
    body = {"model": "causal", "query": QUERY, "documents": [{"text": text} for text in DOCUMENTS], "instruction": "Find the dog"}
    line = [require_program("grpcurl"), "-plaintext", "-emit-defaults", "-d", json.dumps(body), target_of(pairs, name)]
    said = subprocess.run([*line, "quadrate.v1.RerankService/Rerank"], capture_output=True, text=True, check=True, timeout=60).stdout
    answer = json.loads(said)
    assert len(answer["results"]) == len(DOCUMENTS)
    assert answer["provenance"]["prompt"] == "Find the dog"


def test_curl_reranks(pairs: Mesh, require_program: Callable[[str], str]) -> None:
    """As the documentation writes it, under curl's own content type."""
    body = json.dumps({"model": "cross", "query": QUERY, "documents": DOCUMENTS, "top_n": 1, "return_documents": True})
    line = [require_program("curl"), "--silent", "--max-time", "30", f"{pairs.url}/v2/rerank", "-d", body]
    found = json.loads(subprocess.run(line, capture_output=True, text=True, check=True, timeout=60).stdout)
    best = ask(pairs, "edge").results[0]
    assert found["results"][0]["index"] == best.index
    assert found["results"][0]["document"] == {"text": DOCUMENTS[best.index]}
    assert found["provenance"]["pooling"] == "cross_encoder"
    assert found["timings"]["inference_seconds"] > 0


def test_a_worker_answers_to_the_names_of_its_mapping(pairs: Mesh) -> None:
    """RERANK_MODEL_MAPPING gives a model more names on the worker's own port."""
    assert is_same(ask(pairs, "rerank", "our-reranker"), ask(pairs, "rerank"))
