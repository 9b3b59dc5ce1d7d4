"""The cost model learns how fast a machine is."""

from __future__ import annotations

import numpy as np
import pytest

from quadrate.runtime.batching import Limits
from quadrate.runtime.cost import CostModel, Shape

SHAPE = Shape(per_token=21e6, per_place=9_216)
LIMITS = Limits(tokens=256, texts=64)


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


def test_wide_runs_are_learnt_apart() -> None:
    """Wide runs are learnt apart: they neither change what narrow ones are believed to take, nor are believed to take as long."""
    model = taught(0.0004, 100e9)
    before = model.seconds([46])
    for _ in range(20):
        model.learn([46], before / 1.8, wide=True)
    assert model.seconds([46], wide=True) == pytest.approx(before / 1.8, rel=0.02)
    assert model.seconds([46]) == before
    assert model.seconds([92], wide=True) == pytest.approx(model.seconds([92]) / 1.8, rel=0.05)


def test_a_model_that_was_only_seen_to_run_alone_is_believed_to_take_as_long() -> None:
    """Until a narrow run was seen, wide ones tell how fast the model is; afterwards they are multiples of narrow ones."""
    model = CostModel(SHAPE)
    for _ in range(4):
        model.learn([12], 0.5, wide=True)
    assert model.seconds([12]) == pytest.approx(0.5)
    assert model.seconds([12], wide=True) == pytest.approx(0.5)
    assert model.share(12, LIMITS) == pytest.approx(0.5)
    model.learn([12], 0.9)
    assert model.seconds([12]) == pytest.approx(0.9)
    model.learn([12], 0.3, wide=True)
    assert model.seconds([12], wide=True) == pytest.approx(0.3)
    assert model.share(12, LIMITS) == pytest.approx(0.9)


def test_long_texts_are_learnt_beside_short_ones() -> None:
    """Long texts whose attention is slower than the matrix products are predicted right, and short ones stay so."""
    model = CostModel(SHAPE)

    def seconds(lengths: list[int]) -> float:
        slow = 3 * SHAPE.per_place * max(lengths) ** 2 * len(lengths) if max(lengths) > 1000 else 0.0
        return 0.0005 + (SHAPE.operations(lengths) + slow) / 100e9

    random = np.random.default_rng(0)
    for number in range(400):
        lengths = [4000] if number % 20 == 0 else random.integers(3, 60, random.integers(1, 9)).tolist()
        model.learn(lengths, seconds(lengths))
    for lengths in ([8], [40, 44, 48, 50], [4000]):
        assert model.seconds(lengths) == pytest.approx(seconds(lengths), rel=0.15)
    assert model.share(4000, LIMITS) == pytest.approx(seconds([4000]), rel=0.15)


def test_sizes_never_seen_are_believed_to_be_as_their_nearest() -> None:
    """Sizes that were never seen are corrected as the nearest ones that were."""
    model = taught(0.0004, 100e9)
    assert model.seconds([6000]) == pytest.approx(SHAPE.operations([6000]) / 100e9, rel=0.2)


def test_a_text_is_priced_at_no_less_than_its_part_of_a_full_run() -> None:
    """Where runs take a second however little they carry, a text that leaves no room for another of its length takes a second."""
    model = CostModel(SHAPE)
    model.learn([10], 1.0)
    for _ in range(20):
        model.learn([32] * 8, 1.0)
    assert model.share(32, LIMITS) == pytest.approx(1 / 8, rel=0.05)
    assert model.share(120, LIMITS) == pytest.approx(1 / 2, rel=0.1)
    assert model.share(200, LIMITS) == pytest.approx(1.0, rel=0.1)


def test_what_was_never_tried_may_take_a_quarter_of_what_small_runs_tell() -> None:
    """A text much longer than all that was seen may take a quarter of its prediction; once such a text has run, what it took counts."""
    model = CostModel(SHAPE)
    for _ in range(4):
        model.learn([12], 0.5, wide=True)
    model.learn([12], 0.9)
    unseen = model.at_best(8000, 2)
    assert unseen == pytest.approx(model.seconds([8000]) / 4 / 2)
    assert model.at_best(12, 1) == pytest.approx(0.9)
    model.learn([8000], 7.0, wide=True)
    assert model.at_best(8000, 2) == pytest.approx(7.0)
    assert model.at_best(8000, 1) == pytest.approx(model.seconds([8000]) / 4)
    model.learn([8000], 13.0)
    assert model.at_best(8000, 1) == pytest.approx(13.0)
