"""The plan: a pure function over lengths and order."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from quadrate.runtime.batching import MOST_SKIPS, WIDEST_VIEW, WINDOW, Limits, Waste, passed_over, plan

LIMITS = Limits(tokens=256, texts=64)
LENGTHS = st.lists(st.integers(1, 512), min_size=1, max_size=WINDOW)


@dataclass(eq=False)
class Text:
    """A waiting text."""

    tokens: int
    skips: int = 0
    lane: str = "model"
    came: int = field(default=0)


def texts(*lengths: int) -> list[Text]:
    """Return texts of one lane that nobody has passed over."""
    return [Text(length, came=came) for came, length in enumerate(lengths)]


def chosen(waiting: list[Text], limits: Limits = LIMITS, *, runners: int = 1) -> list[int]:
    """Return the plan."""
    return plan(waiting, limits, runners=runners)


def run_all(waiting: list[Text], limits: Limits = LIMITS, *, newcomers: list[Text] | None = None, runners: int = 1) -> list[list[Text]]:
    """Plan until nothing waits, as the scheduler does; for each text that runs, a newcomer joins behind, or none."""
    waiting, coming, runs = list(waiting), list(newcomers or ()), []
    while waiting:
        places = plan(waiting[: limits.window], limits, runners=runners)
        for place in passed_over(places):
            waiting[place].skips += 1
        runs.append([waiting[place] for place in places])
        waiting = [text for place, text in enumerate(waiting) if place not in set(places)]
        waiting += coming[: len(places)]
        del coming[: len(places)]
    return runs


def view(run: list[Text]) -> float:
    """Return the places of a run's padded view for each of its tokens."""
    return len(run) * max(text.tokens for text in run) / sum(text.tokens for text in run)


@given(LENGTHS, st.integers(1, 600), st.integers(1, 70), st.integers(1, 4))
def test_every_plan_keeps_the_limits_and_takes_the_first(lengths: list[int], tokens: int, most: int, runners: int) -> None:
    """Every plan keeps the limits and takes the first; only a text that is alone may be longer than a run may be."""
    places = plan(texts(*lengths), Limits(tokens, most), runners=runners)
    assert places == sorted(set(places))
    assert places[0] == 0
    assert len(places) <= most
    assert len(places) == 1 or sum(lengths[place] for place in places) <= tokens


@given(LENGTHS, st.lists(st.integers(1, 512), max_size=300), st.integers(1, 600), st.integers(1, 70), st.integers(1, 4))
def test_every_text_runs_exactly_once(lengths: list[int], later: list[int], tokens: int, most: int, runners: int) -> None:
    """Every text runs exactly once, whatever comes behind it."""
    waiting, newcomers = texts(*lengths), texts(*later)
    ran = [text for run in run_all(waiting, Limits(tokens, most), newcomers=newcomers, runners=runners) for text in run]
    assert len(ran) == len(lengths) + len(set(map(id, ran)) & set(map(id, newcomers)))
    assert set(map(id, waiting)) <= set(map(id, ran))
    assert len(ran) == len(set(map(id, ran)))


@given(LENGTHS, st.lists(st.integers(1, 64), max_size=400), st.lists(st.sampled_from("ab"), min_size=500, max_size=500))
def test_nobody_is_passed_over_more_often_than_agreed(lengths: list[int], later: list[int], lanes: list[str]) -> None:
    """Nobody is passed over more than MOST_SKIPS times, however many short texts of whatever model keep coming."""
    waiting, newcomers = texts(*lengths), texts(*later)
    for text, lane in zip(waiting + newcomers, lanes, strict=False):
        text.lane = lane
    for run in run_all(waiting, newcomers=newcomers):
        assert len({text.lane for text in run}) == 1
        assert all(text.skips <= MOST_SKIPS for text in run)


@given(LENGTHS, st.integers(64, 600))
def test_the_view_stays_narrow_where_more_waits_than_one_run_holds(lengths: list[int], tokens: int) -> None:
    """Attention's view stays below 1.3 places a token wherever more waits than one run holds."""
    waiting = texts(*lengths)
    run = [waiting[place] for place in plan(waiting, Limits(tokens, 64))]
    if sum(lengths) > tokens:
        assert len(run) == 1 or view(run) < WIDEST_VIEW


@given(st.lists(st.integers(1, 60), min_size=2, max_size=4))
def test_few_texts_run_together_if_that_wastes_less_than_two_runs(lengths: list[int]) -> None:
    """Few texts, which one run holds, run together where their padding costs less than the start of another run."""
    assert sum(lengths) <= LIMITS.tokens
    run = [texts(*lengths)[place] for place in chosen(texts(*lengths))]
    if len(run) < len(lengths):
        empty = len(lengths) * max(lengths) - sum(lengths)
        together = Waste().each(sum(lengths), empty, max(lengths)) * sum(lengths)
        assert together > Waste().start / 2


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


def test_a_run_may_have_more_texts_than_the_window_usually_shows() -> None:
    """Where a run may have more texts than are usually looked at, as many are looked at."""
    limits = Limits(tokens=16_384, texts=200)
    assert limits.window == 200
    assert len(chosen(texts(*[20] * 200), limits)) == 200
    assert Limits(tokens=256, texts=8).window == WINDOW


def test_who_was_passed_over_too_often_lets_nobody_by() -> None:
    """Nobody behind a text that was passed over too often runs before it."""
    waiting = texts(20, 250, 20, 20, 20)
    waiting[1].skips = MOST_SKIPS
    assert chosen(waiting) == [0]
    assert chosen(waiting[1:]) == [0]


def test_models_never_share_a_run() -> None:
    """Models never share a run."""
    waiting = texts(20, 20, 20)
    waiting[1].lane = "another"
    assert chosen(waiting) == [0, 2]
    assert passed_over([0, 2]) == [1]


def test_wide_models_mind_padding_less() -> None:
    """Wide models mind padding less."""
    assert Waste.of(1024).pair < Waste.of(384).pair
