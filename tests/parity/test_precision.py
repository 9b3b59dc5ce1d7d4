"""Every kind of model in the catalogue in every class of precision: near what float32 gives, and the same in any company."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from quadrate.config import yamlfile
from quadrate.config.models import FolderSource, ModelsFile
from quadrate.config.shipped import shipped
from quadrate.errors import ConfigError
from quadrate.runtime import folder
from quadrate.runtime.graphs import build
from quadrate.runtime.packing import Reading
from quadrate.runtime.sessions import AGREEMENT, CPU, OnnxSession, Way, choose, open_session
from quadrate.runtime.weights import Weights
from tests.parity import catalogue

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from quadrate.config.worker import Precision
    from quadrate.runtime.folder import Facts
    from quadrate.runtime.sessions import Session

    Rows = Mapping[str, Sequence[NDArray[np.float32]]]

pytestmark = pytest.mark.parity

CARDS = yamlfile.load(shipped("configs") / "models.yaml", ModelsFile).models
LENGTHS = (1, 2, 9, 40, 64, 65, 130, 300, 7, 23)
RECIPES = {**catalogue.EMBEDDERS, **catalogue.RERANKERS}
NEAR: Mapping[str, float] = {"fast": 0.997, "small": 0.97}
"""Cosines. Random weights 64 wide are harder on few bits than trained ones 384 wide: errors have fewer neighbours to cancel against."""


def facts_of(path: Path, alias: str) -> Facts:
    """Make the tiny model of a card and read its folder."""
    RECIPES[alias](path)
    changes = {"source": FolderSource(type="folder", path=path), "max_tokens": catalogue.LIMIT, "golden": "", "files": None}
    return folder.read(path, CARDS[alias].model_copy(update=changes))


def opened(facts: Facts, way: Way) -> Session:
    """Open the model in a class of precision."""
    return open_session(build(facts, Weights(facts.path), way.arithmetic, way.kernels), way, threads=2)


def readings(lengths: Sequence[int], seed: int) -> list[Reading]:
    """Return random texts."""
    random = np.random.default_rng(seed)
    return [Reading.of(random.integers(4, 100, length).astype(np.int32)) for length in lengths]


def cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Return the cosine of all values of two results."""
    return float(np.vdot(one, other) / max(np.linalg.norm(one) * np.linalg.norm(other), 1e-12))


@pytest.mark.parametrize("precision", NEAR)
@pytest.mark.parametrize("alias", RECIPES)
def test_every_kind_of_model_runs_in_every_class(tmp_path: Path, alias: str, precision: Precision) -> None:
    """Each output of short and long texts is near what float32 gives, and does not depend on the company."""
    try:
        way = choose("cpu", precision)
    except ConfigError as reason:
        pytest.skip(str(reason))
    facts = facts_of(tmp_path / "model", alias)
    exact = opened(facts, Way("exact", CPU, "float32"))
    assert isinstance(exact, OnnxSession)
    session, texts = opened(facts, way), readings(LENGTHS, seed=3)
    outputs = list(build(facts, Weights(facts.path)).outputs)
    expected, found = exact.run(texts, outputs, wide=False), session.run(texts, outputs, wide=False)
    for output in outputs:
        check_near(expected[output], found[output], precision)
    for place, text in enumerate(texts):
        alone = session.run([text], outputs, wide=place % 2 == 0)
        for output in outputs:
            largest = max(1.0, float(np.abs(found[output][place]).max()))
            assert np.abs(alone[output][0] - found[output][place]).max() <= AGREEMENT[precision] * largest


def check_near(expected: Sequence[NDArray[np.float32]], found: Sequence[NDArray[np.float32]], precision: str) -> None:
    """Compare rows by their cosine, and the scores of all texts together by theirs."""
    if expected[0].shape[-1] == 1:
        expected, found = [np.concatenate([row.ravel() for row in expected])], [np.concatenate([row.ravel() for row in found])]
    assert min(cosine(one, other) for one, other in zip(expected, found, strict=True)) >= NEAR[precision]
