"""Which replicas are told from their like."""

from __future__ import annotations

from gateway.upstreams.outliers import FAILURES_IN_ROW, FIRST_SECONDS, LONGEST_SECONDS, Record, fault, most_aside


def record(*, good: int = 0, bad: int = 0, seconds: float = 0.02, tokens: int = 100) -> Record:
    """Return what a replica did: so many answers that took so long each, after so many failures."""
    found = Record()
    for _ in range(bad):
        found.failure()
    for _ in range(good):
        found.answered(seconds, tokens)
    return found


def test_failures_in_a_row_count_at_once() -> None:
    """However little it was asked; an answer between them begins the count anew."""
    assert not fault(record(bad=FAILURES_IN_ROW - 1), [])
    assert "in a row" in fault(record(bad=FAILURES_IN_ROW), [])
    assert not fault(record(bad=FAILURES_IN_ROW, good=1), [])


def test_half_of_its_calls_failed_is_too_many() -> None:
    """Of some calls at least, in whatever order."""
    assert "50%" in fault(record(bad=10, good=10), [])
    assert not fault(record(bad=9, good=20), [])


def test_slow_is_what_is_slower_than_the_others_for_the_same_work() -> None:
    """By much, and by a time that anybody notices."""
    others = [record(good=20), record(good=20, seconds=0.03)]
    assert "slower than the others" in fault(record(good=20, seconds=0.3), others)
    assert not fault(record(good=20, seconds=0.05), others), "twice as slow"
    assert not fault(record(good=20, seconds=0.3, tokens=2_000), others), "long texts take long"
    assert not fault(record(good=20, seconds=0.09), [record(good=20, seconds=0.001)]), "ninety milliseconds are none"
    assert not fault(record(good=20, seconds=0.3), []), "there is nobody to compare with"
    assert not fault(record(good=20, seconds=0.3), [record(good=3)]), "the other did too little to tell"


def test_all_slow_is_load() -> None:
    """Nobody is put aside for it."""
    group = [record(good=50, seconds=3.0) for _ in range(3)]
    assert not any(fault(one, [other for other in group if other is not one]) for one in group)


def test_it_stays_away_longer_each_time() -> None:
    """Up to a minute; a minute of doing well makes it a first time again."""
    found, now = record(bad=FAILURES_IN_ROW), 1_000.0
    stays = []
    for _ in range(6):
        stays.append(found.put_aside("it failed", now))
        assert not found.come_back(now + stays[-1] - 0.1)
        now += stays[-1]
        assert found.come_back(now)
        assert not found.come_back(now)
    assert stays == [FIRST_SECONDS * factor for factor in (1, 2, 4, 8)] + [LONGEST_SECONDS] * 2
    assert found.put_aside("it failed", now + LONGEST_SECONDS + 1) == FIRST_SECONDS


def test_one_that_came_back_is_on_probation() -> None:
    """One failure sends it away again, one answer ends that."""
    found = record(bad=FAILURES_IN_ROW)
    found.put_aside("it failed", 0.0)
    found.come_back(FIRST_SECONDS)
    assert not fault(found, [])
    found.failure()
    assert fault(found, [])
    found.answered(0.1, 10)
    assert not fault(found, [])


def test_what_was_long_ago_does_not_count() -> None:
    """A quarter of a minute later it is as good as new."""
    found = record(bad=20, good=20)
    for _ in range(15):
        found.age()
    assert not fault(found, [])


def test_at_most_half_are_put_aside() -> None:
    """Of one, none."""
    assert [most_aside(count) for count in (1, 2, 3, 4, 10)] == [0, 1, 1, 2, 5]
