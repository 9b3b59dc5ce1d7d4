"""The plan: a pure function over lengths and deadlines."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from quadrate.runtime.batching import WINDOW, Limits, Waste, plan

LIMITS = Limits(tokens=256, texts=64)


@dataclass(frozen=True)
class Text:
    """A waiting text."""

    tokens: int
    deadline: float | None = None


def texts(*lengths: int) -> list[Text]:
    """Return texts without deadlines."""
    return [Text(length) for length in lengths]


def chosen(waiting: list[Text], limits: Limits = LIMITS, **changes: float) -> list[int]:
    """Return the plan at time 0, runs taking 20 ms."""
    return plan(waiting, limits, **{"now": 0.0, "run_seconds": 0.02, **changes})  # type: ignore[arg-type]


@given(
    st.lists(st.integers(1, 512), max_size=WINDOW),
    st.integers(1, 600),
    st.integers(1, 70),
    st.integers(1, 4),
)
def test_every_plan_keeps_the_limits_and_takes_the_first(lengths: list[int], tokens: int, most: int, runners: int) -> None:
    """Every plan keeps the limits and takes the first."""
    places = plan(texts(*lengths), Limits(tokens, most), now=0.0, run_seconds=1.0, runners=runners)
    assert bool(places) == bool(lengths)
    assert places == sorted(set(places))
    if lengths:
        assert places[0] == 0
        assert len(places) <= most
        assert len(places) == 1 or sum(lengths[place] for place in places) <= tokens


@given(st.lists(st.tuples(st.integers(1, 300), st.none() | st.floats(0, 10)), min_size=1, max_size=WINDOW), st.integers(1, 4))
def test_whatever_waits_is_planned_in_the_end(entries: list[tuple[int, float | None]], runners: int) -> None:
    """Whatever waits is planned in the end."""
    waiting = [Text(*entry) for entry in entries]
    for _ in range(len(entries)):
        places = set(plan(waiting, LIMITS, now=0.0, run_seconds=1.0, runners=runners))
        waiting = [text for place, text in enumerate(waiting) if place not in places]
        if not waiting:
            break
    assert not waiting


def test_nothing_waits_nothing_runs() -> None:
    """Nothing waits nothing runs."""
    assert chosen([]) == []


def test_like_lengths_go_together() -> None:
    """Like lengths go together."""
    assert chosen(texts(20, 200, 22, 180, 19, 21)) == [0, 2, 4, 5]


def test_a_long_text_runs_alone_rather_than_make_short_ones_as_long() -> None:
    """A long text runs alone rather than make short ones as long."""
    assert chosen(texts(240, 3, 3, 3)) == [0]
    assert chosen(texts(400, 10)) == [0]


def test_small_differences_are_cheaper_than_another_run() -> None:
    """Small differences are cheaper than another run."""
    assert chosen(texts(40, 44, 48, 38)) == [0, 1, 2, 3]


def test_free_runners_share_what_waits() -> None:
    """Free runners share what waits."""
    assert len(chosen(texts(*[30] * 8), runners=2)) == 4
    assert len(chosen(texts(*[30] * 8), runners=1)) == 8
    assert chosen(texts(30), runners=2) == [0]


def test_the_most_texts_of_a_run_are_kept() -> None:
    """The most texts of a run are kept."""
    assert len(chosen(texts(*[4] * 30), Limits(tokens=256, texts=5))) == 5


def test_a_deadline_that_presses_leads() -> None:
    """A deadline that presses leads."""
    waiting = [Text(200), Text(30, deadline=9.0), Text(20, deadline=0.03), Text(190)]
    assert 2 in chosen(waiting)
    assert 0 not in chosen(waiting)
    assert 0 in chosen([Text(200), Text(20, deadline=9.0)])


def test_wide_models_mind_padding_less() -> None:
    """Wide models mind padding less."""
    assert Waste.of(1024).pair < Waste.of(384).pair
