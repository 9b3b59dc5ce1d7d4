"""Every model of the catalogue, by its very card, from a tiny random model of its kind: through a worker, as its own card demands."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest

from quadrate.config import yamlfile
from quadrate.config.models import ModelsFile
from quadrate.config.shipped import shipped
from quadrate.v1 import embed_pb2, options_pb2, rerank_pb2
from tests import vocabularies
from tests.parity import catalogue, folders, test_rerankers
from tests.service.workers.conftest import running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from tests.parity.catalogue import Embedder
    from tests.service.workers.conftest import Running

pytestmark = pytest.mark.parity

qwen = test_rerankers.qwen

CARDS = yamlfile.load(shipped("configs") / "models.yaml", ModelsFile).models
QUERY = "Where are stars born?"
TEXTS = [*vocabularies.SENTENCES, "x", "the cat sat on the mat", "far beyond the limit, gas and dust " * 40]
ROLES = {"": options_pb2.ROLE_UNSPECIFIED, "query": options_pb2.QUERY, "document": options_pb2.DOCUMENT}
OUTPUTS = {"dense": options_pb2.DENSE, "sparse": options_pb2.SPARSE, "multi_vector": options_pb2.MULTI_VECTOR}


@asynccontextmanager
async def worker(path: Path, alias: str, limit: int = catalogue.LIMIT) -> AsyncIterator[Running]:
    """Run a worker for a card of the catalogue; its files are those in `path`, its limit is as a rule that of tiny models."""
    said = CARDS[alias].model_dump(mode="json", exclude_defaults=True, exclude={"source", "files", "golden"})
    card = {**said, "source": {"type": "folder", "path": str(path)}, "max_tokens": limit}
    file = path.parent / "models.yaml"
    file.write_text(json.dumps({"models": {alias: card}}))
    async with running(said["task"], file, alias) as made:
        yield made


async def embed(made: Running, alias: str, role: str, outputs: Sequence[str]) -> embed_pb2.EmbedResponse:
    """Embed all texts, cut on the right."""
    answer: embed_pb2.EmbedResponse = await made.embed.Embed(
        embed_pb2.EmbedRequest(
            model=alias,
            inputs=[options_pb2.Input(text=text) for text in TEXTS],
            role=ROLES[role],
            truncation=options_pb2.RIGHT,
            outputs=[OUTPUTS[output] for output in outputs],
        )
    )
    return answer


def test_every_card_has_its_test() -> None:
    """No model of the catalogue is without a test; those of the quick start are tested with their real weights."""
    tested = {*catalogue.EMBEDDERS, *catalogue.RERANKERS, "qwen3-reranker-0.6b", "minilm", "minilm-rerank"}
    assert tested == set(CARDS)


@pytest.mark.parametrize("alias", catalogue.EMBEDDERS)
async def test_an_embedding_model_is_served_as_its_card_demands(tmp_path: Path, alias: str) -> None:
    """Prompts by role, pooling, heads, limit and normalisation: every output of short and cut texts is what the recipe gives."""
    recipe = catalogue.EMBEDDERS[alias](tmp_path / "model")
    asked = [name for name, given in (("dense", recipe.pool), ("sparse", recipe.sparse), ("multi_vector", recipe.multi_vector)) if given]
    async with worker(tmp_path / "model", alias) as made:
        for role in ROLES:
            answer = await embed(made, alias, role, asked)
            for text, found in zip(TEXTS, answer.embeddings, strict=True):
                ids = catalogue.ids_of(tmp_path / "model", recipe.prompts.get(role, "") + text)
                assert found.usage.tokens == len(ids)
                compare(found, ids, recipe)
            assert max(found.usage.tokens for found in answer.embeddings) == catalogue.LIMIT


def compare(found: embed_pb2.Embedding, ids: list[int], recipe: Embedder) -> None:
    """Assert that all outputs of one text are those of the recipe."""
    states = recipe.states(ids)
    if recipe.pool is not None:
        expected = recipe.pool(states)
        folders.assert_same(np.array(found.values, np.float32), expected, float(np.abs(expected).max()))
    if recipe.sparse is not None:
        weights = recipe.sparse(ids, states)
        largest = max(weights.values())
        sure = {token: weight for token, weight in weights.items() if weight > folders.FAR * largest}
        given = dict(zip(found.sparse.token_ids, found.sparse.weights, strict=True))
        assert set(sure) <= set(given) <= set(weights)
        assert max(abs(given[token] - weight) for token, weight in sure.items()) <= folders.FAR * largest
    if recipe.multi_vector is not None:
        vectors = recipe.multi_vector(states)
        rows = np.array(found.multi_vector.values, np.float32).reshape(found.multi_vector.rows, found.multi_vector.width)
        folders.assert_same(rows, vectors, 1.0)


async def rerank(made: Running, alias: str) -> np.ndarray:
    """Return the relevance of all texts to the query, in their order."""
    answer: rerank_pb2.RerankResponse = await made.rerank.Rerank(
        rerank_pb2.RerankRequest(
            model=alias, query=QUERY, documents=[options_pb2.Input(text=text) for text in TEXTS], truncation=options_pb2.RIGHT
        )
    )
    return test_rerankers.scores_of(answer)


@pytest.mark.parametrize("alias", catalogue.RERANKERS)
async def test_a_cross_encoder_is_served_as_its_card_demands(tmp_path: Path, alias: str) -> None:
    """Pairs, token types, limit and activation: every document's relevance is what the recipe gives."""
    recipe = catalogue.RERANKERS[alias](tmp_path / "model")
    async with worker(tmp_path / "model", alias) as made:
        found = await rerank(made, alias)
    expected = np.array([catalogue.score_of(recipe, tmp_path / "model", QUERY, text) for text in TEXTS])
    assert np.abs(found - expected).max() <= folders.FAR * np.abs(expected).max()


@pytest.mark.parametrize("alias", ["qwen3-reranker-0.6b"])
async def test_a_causal_reranker_is_served_as_its_card_demands(qwen: Path, alias: str) -> None:
    """Templates, instruction and the two words: every document's relevance is what the model's own recipe gives."""
    async with worker(qwen, alias) as made:
        found = await rerank(made, alias)
    expected, _ = test_rerankers.recipe(qwen, QUERY, TEXTS, test_rerankers.INSTRUCTION)
    assert np.abs(found - expected).max() <= folders.FAR * np.abs(expected).max()
