"""The real weights against vectors that sentence-transformers made of them (tools/golden_vectors.py makes them again)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from quadrate.config import yamlfile
from quadrate.config.models import ModelsFile
from quadrate.config.worker import EmbedSettings
from quadrate.runtime import engine, store
from quadrate.runtime.packing import Reading
from quadrate.v1.options_pb2 import RIGHT

if TYPE_CHECKING:
    from quadrate.runtime.engine import Model

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture(scope="module")
def minilm() -> Model:
    """Return the quick start's model, got from the store or fetched into it."""
    card = yamlfile.load(ROOT / "configs" / "models.yaml", ModelsFile).models["minilm"]
    return engine.load("minilm", card, store.ensure("minilm", card), EmbedSettings(threads=2))


def test_vectors_equal_those_of_sentence_transformers(minilm: Model) -> None:
    """200 texts of every length, and beyond the limit as sentence-transformers cuts, have its vectors, to 1e-5 of the largest value."""
    texts = json.loads((GOLDEN / "minilm.json").read_text("utf-8"))["texts"]
    golden = np.load(GOLDEN / "minilm.npz")["vectors"]
    assert len(texts) == len(golden) >= 200
    encoded = minilm.tokenizer.encode(texts)
    kept = [minilm.tokenizer.fit(ids, RIGHT, param="input") for ids in encoded]
    readings = [Reading.of(minilm.tokenizer.read(ids)) for ids, _ in kept]
    lengths = {len(reading) for reading in readings}
    assert {len(readings[0]) > 2, min(lengths) <= 4, max(lengths) == 256} == {True}
    assert sum(removed > 0 for _, removed in kept) >= 50
    found = np.stack([row for start in range(0, len(texts), 5) for row in _run(minilm, readings[start : start + 5])])
    cosines = (found.astype(np.float64) * golden).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(golden, axis=1)
    assert cosines.min() >= 0.999999
    assert np.abs(found - golden).max() <= 1e-5 * np.abs(golden).max()


def _run(model: Model, readings: list[Reading]) -> list[np.ndarray]:
    return list(model.session.run(readings, ["unit"], wide=False)["unit"])
