"""The cost model learns how fast a machine is."""

from __future__ import annotations

import numpy as np
import pytest

from quadrate.runtime.cost import CostModel, Shape

SHAPE = Shape(per_token=21e6, per_place=9_216)


def taught(start: float, speed: float, noise: float = 0.0, runs: int = 200) -> CostModel:
    """Return a model that has seen runs of a machine."""
    random = np.random.default_rng(0)
    model = CostModel(SHAPE)
    for _ in range(runs):
        lengths = random.integers(3, 60, random.integers(1, 9)).tolist()
        model.learn(lengths, (start + SHAPE.operations(lengths) / speed) * (1 + noise * random.standard_normal()))
    return model


@pytest.mark.parametrize(("start", "speed", "noise"), [(0.0004, 100e9, 0.0), (0.002, 10e9, 0.05), (0.0, 400e9, 0.1)])
def test_predictions_come_near_what_runs_take(start: float, speed: float, noise: float) -> None:
    """Predictions come near what runs take."""
    model = taught(start, speed, noise)
    for lengths in ([8], [46], [40, 44, 48, 50], [200]):
        assert model.seconds(lengths) == pytest.approx(start + SHAPE.operations(lengths) / speed, rel=0.15, abs=2e-4)


def test_one_slow_run_counts_no_more_than_four_times_its_prediction() -> None:
    """One slow run counts no more than four times its prediction."""
    model = taught(0.0004, 100e9)
    before = model.seconds([46])
    model.learn([46], 60.0)
    assert model.seconds([46]) < 2 * before


def test_runs_all_alike_still_give_a_prediction() -> None:
    """Runs all alike still give a prediction."""
    model = CostModel(SHAPE)
    for _ in range(50):
        model.learn([46], 0.01)
    assert model.seconds([46]) == pytest.approx(0.01, rel=0.05)
    assert model.seconds([92]) > model.seconds([46])


def test_attention_grows_by_the_longest_text() -> None:
    """Attention grows by the longest text."""
    assert SHAPE.operations([100, 10]) > SHAPE.operations([55, 55])
