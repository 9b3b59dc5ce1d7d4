"""Golden vectors: what matches, what does not, and what is said of it."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from quadrate.config.models import FolderSource, ModelCard
from quadrate.config.worker import EmbedSettings
from quadrate.errors import ConfigError
from quadrate.runtime import engine, golden, store
from quadrate.runtime.golden.comparison import LIMITS, compare, differences
from quadrate.testing.model_folder import tiny_tensors, write_tiny_cross_encoder, write_tiny_model
from tests.unit import checkpoints

if TYPE_CHECKING:
    from pathlib import Path

    from quadrate.runtime.engine import Model


def load(path: Path, **card: Any) -> Model:
    """Load a model from its folder."""
    described = ModelCard(source=FolderSource(type="folder", path=path), **{"served_name": "x", "task": "embed", **card})
    return engine.load("x", described, store.ensure("x", described), EmbedSettings(threads=1))


async def written(model: Model, path: Path) -> golden.Golden:
    """Write what a model gives, and return it as it is read."""
    golden.write(path, await golden.make(model, made_by="a test"))
    return golden.read(path)


def model_folders(path: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Return a folder and what its card says, for each kind of answer."""
    prompts = {"query": "query: ", "document": "passage: "}
    return {
        "dense": (write_tiny_model(path / "dense", prompts=prompts), {}),
        "not normalised": (write_tiny_model(path / "raw", normalize=False), {}),
        "late interaction": (path / "raw", {"task": "rerank", "scoring": "late_interaction"}),
        "cross-encoder": (write_tiny_cross_encoder(path / "crossed"), {"task": "rerank", "scoring": "cross_encoder"}),
    }


@pytest.mark.parametrize("kind", ["dense", "not normalised", "late interaction", "cross-encoder"])
async def test_what_was_made_matches(tmp_path: Path, kind: str) -> None:
    """What a model gave when the file was made it gives when it is loaded again; another model's weights do not match."""
    folder, card = model_folders(tmp_path)[kind]
    path = tmp_path / "golden.json"
    model = load(folder, **card)
    made = await written(model, path)
    assert (made.revision, made.precision, made.made_by) == (model.revision, "exact", "a test")
    assert len(made.texts) == (0 if "task" in card else len(golden.TEXTS))
    named = load(folder, golden=str(path), **card)
    assert await golden.check(named) == []
    harmed = made.model_copy(
        update={
            "texts": tuple(text.model_copy(update={"dense": made.texts[0].dense}) for text in made.texts),
            "rankings": tuple(ranking.model_copy(update={"scores": ranking.scores[::-1]}) for ranking in made.rankings),
        }
    )
    golden.write(path, harmed)
    problems = await golden.check(named)
    assert problems[0].startswith(
        "ranking 1: a value differs by" if "task" in card else "text 2, dense: the cosine to the golden vector is"
    )


async def test_prompts_are_part_of_what_is_compared(tmp_path: Path) -> None:
    """Texts are read with the prompts of their roles, so that a prompt that changed is found."""
    folder = write_tiny_model(tmp_path / "a", prompts={"query": "query: ", "document": "passage: "})
    made = await golden.make(load(folder), made_by="a test")
    assert [text.prompt_name for text in made.texts[:4]] == ["", "query", "document", ""]
    golden.write(tmp_path / "golden.json", made)
    changed = load(folder, golden=str(tmp_path / "golden.json"), prompts={"query": "ask: ", "document": "passage: "})
    assert {problem.split(",")[0] for problem in await golden.check(changed)} == {"text 2", "text 5", "text 8"}
    without = load(folder, golden=str(tmp_path / "golden.json"), prompts={"document": "passage: "})
    with pytest.raises(ConfigError, match="does not fit the model x: 'query'"):
        await golden.check(without)


async def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """A file that is missing, damaged, of another revision or of another kind of model is refused with the way out."""
    folder, path = write_tiny_model(tmp_path / "a"), tmp_path / "golden.json"
    model = load(folder, golden=str(path))
    with pytest.raises(ConfigError, match=r"golden\.json: cannot be read: No such file or directory; restore it, or leave `golden` out"):
        await golden.check(model)
    path.write_text('{"revision": 1}')
    with pytest.raises(ConfigError, match=r"golden\.json: revision: Input should be a valid string; restore it"):
        await golden.check(model)
    made = await golden.make(model, made_by="a test")
    golden.write(path, made.model_copy(update={"revision": "sha256:0"}))
    with pytest.raises(ConfigError, match=r"is of revision sha256:0, and the model's files are sha256:.*verify x --make-golden"):
        await golden.check(model)
    for harm, said in (
        (
            {"dense": "", "sparse": golden.GoldenSparse(ids=(1,), weights=(1.0,))},
            r"text 1 asks for \['sparse'\], the model gives pooled, unit",
        ),
        ({"dense": ""}, "text 1 asks for nothing"),
        ({"dense": "#"}, r"texts\.0\.dense: Value error, Only base64 data is allowed"),
        ({"sparse": golden.GoldenSparse.model_construct(ids=(2, 1), weights=(1.0, 1.0))}, "2 ids must ascend"),
    ):
        golden.write(path, made.model_copy(update={"texts": (made.texts[0].model_copy(update=harm),)}))
        with pytest.raises(ConfigError, match=said):
            await golden.check(model)
    ranking = golden.GoldenRanking(query="a", documents=("b",), scores=(1.0,))
    golden.write(path, made.model_copy(update={"texts": (), "rankings": (ranking,)}))
    with pytest.raises(ConfigError, match="holds rankings, and the model is no reranker"):
        await golden.check(model)


def test_how_near_is_near_enough_depends_on_the_precision() -> None:
    """Cosine 0.99999 and 1e-4 of a value at exact, 0.999 at fast, 0.99 at small; scores by their differences."""
    random = np.random.default_rng(1)
    golden_vector = random.standard_normal(384).astype(np.float32)
    golden_vector /= np.linalg.norm(golden_vector)
    noise = random.standard_normal(384).astype(np.float32)
    noise -= (noise @ golden_vector) * golden_vector
    noise /= np.linalg.norm(noise)
    passed = {
        precision: [
            angle for angle in (0.0005, 0.004, 0.03, 0.1, 0.3) if not compare("it", golden_vector, golden_vector + angle * noise, limit)
        ]
        for precision, limit in LIMITS.items()
    }
    assert passed == {"exact": [0.0005], "fast": [0.0005, 0.004, 0.03], "small": [0.0005, 0.004, 0.03, 0.1]}
    scores = np.array([8.0, -4.0, 0.5], np.float32)
    assert [bool(differences("it", scores, scores + 0.3, limit)) for limit in LIMITS.values()] == [True, False, False]
    assert compare("it", golden_vector, golden_vector[:10], LIMITS["small"]) == ["it: 10 values, 384 in the file"]
    assert compare("it", golden_vector, np.full(384, np.nan, np.float32), LIMITS["small"])


async def test_sparse_vectors_and_token_vectors_are_compared(tmp_path: Path) -> None:
    """A model of three answers has all three in its file; a weight, an id or a token's vector that changed is found."""
    folder, path = write_tiny_model(tmp_path / "three", pooling="cls"), tmp_path / "golden.json"
    for name, rows in (("sparse_linear", 1), ("colbert_linear", 24)):
        checkpoints.save(folder / f"{name}.pt", tiny_tensors({"weight": (rows, 32), "bias": (rows,)}))
    made = await written(load(folder), path)
    first = made.texts[0]
    assert first.dense
    assert first.multi_vector
    assert not made.texts[-1].multi_vector
    sparse = next(text for text in made.texts if text.sparse is not None and text.sparse.ids)
    assert sparse.sparse is not None
    named = load(folder, golden=str(path))
    assert await golden.check(named) == []
    ids, weights = sparse.sparse.ids, sparse.sparse.weights
    vectors = np.frombuffer(base64.b64decode(first.multi_vector), "<f4").copy()
    vectors[24:48] = vectors[24:48][::-1]
    for text, changes, said in (
        (sparse, {"sparse": golden.GoldenSparse(ids=ids, weights=(weights[0] + 1.0, *weights[1:]))}, "text 1, sparse: the cosine"),
        (sparse, {"sparse": golden.GoldenSparse(ids=ids[1:], weights=weights[1:])}, "text 1, sparse: the cosine"),
        (first, {"multi_vector": golden.packed(vectors)}, "text 1, multi-vector, token 2: the cosine"),
        (first, {"multi_vector": golden.packed(vectors[24:])}, f"text 1, multi-vector: {vectors.size} values, {vectors.size - 24} in"),
    ):
        golden.write(path, made.model_copy(update={"texts": (text.model_copy(update=changes),)}))
        problems = await golden.check(named)
        assert problems[0].startswith(said), problems
