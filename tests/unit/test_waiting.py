"""The order of what waits: a pure structure over deadlines, shares and the work done for each tenant."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadrate.runtime.cost import CostModel, Shape
from quadrate.runtime.jobs import Job, Lane, Tenant, Text
from quadrate.runtime.packing import Reading
from quadrate.runtime.waiting import MOST_KNOWN, Line, Tenants
from quadrate.standing import Priority, Standing

if TYPE_CHECKING:
    from collections.abc import Sequence

LANE = Lane("fake", None, CostModel(Shape(1.0, 0.0), speed=1000.0))  # type: ignore[arg-type]  # nothing runs here
READING = Reading.of(np.zeros(1, np.int32))


def job(tenant: Tenant, *, lane: Lane = LANE) -> Job:
    """Return a request."""
    nothing: Any = None
    return Job(lane, ("unit",), None, tenant, nothing, [], 0.0, None, 0)


def texts(of: Job, *entries: tuple[float, float], seconds: float = 1.0) -> list[Text]:
    """Return a job's texts, for each when its share comes and when it is due, and count them."""
    found = [
        Text(of, of.lane, place, READING, 1, seconds, False, start, due, ((), place, b"")) for place, (start, due) in enumerate(entries)
    ]
    of.waiting_seconds[0] += seconds * len(found)
    return found


def order(line: Line, most: int = 1000) -> list[Text]:
    """Return the first texts in order; none is ever late."""
    return line.window(most, 0.0, lambda _: False)


def serve(line: Line, tenants: Tenants, runs: int) -> list[str]:
    """Run the first text so many times and return whose each was."""
    served = []
    for _ in range(runs):
        (first,) = order(line, 1)
        tenants.charge([first])
        first.out = True
        line.sweep()
        served.append(first.job.tenant.name)
    return served


def fill(tenants: Tenants, line: Line, name: str, count: int, *, seconds: float = 1.0, **standing: Any) -> Tenant:
    """Let a tenant send a request of so many texts that may all run."""
    tenant = tenants.of(Standing(name, **standing))
    if not line.has(tenant):
        tenants.lift(tenant)
    line.add(tenant, texts(job(tenant), *[(tenant.clock, 10.0)] * count, seconds=seconds))
    return tenant


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0, 100)), min_size=1, max_size=60))
def test_what_a_share_has_come_to_goes_by_when_it_is_due(entries: list[tuple[float, float]]) -> None:
    """Inside a tenant the earliest due goes first among those whose share has come, and the others follow as theirs come."""
    line, tenant = Line(kind=0), Tenant("one")
    for entry in entries:
        line.add(tenant, texts(job(tenant), entry))
    found = order(line)
    ready = [text.due for text in found if text.start <= tenant.clock]
    later = [text.start for text in found if text.start > tenant.clock]
    assert len(found) == len(entries)
    assert ready == sorted(ready)
    assert later == sorted(later)
    assert all(text.start <= tenant.clock for text in found[: len(ready)])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 5.0)), min_size=2, max_size=60))
def test_tenants_who_have_work_waiting_get_as_much_done(sent: list[tuple[str, float]]) -> None:
    """Between two tenants who both have work waiting, no more than one text of each stands between what was done for them."""
    tenants, line = Tenants(), Line(kind=0)
    for name, seconds in sent:
        fill(tenants, line, name, 20, seconds=seconds)
    largest = max(seconds for _, seconds in sent)
    while True:
        waiting = {text.job.tenant for text in line if not text.out}
        if len(waiting) < len({name for name, _ in sent}):
            break
        used = [tenant.used for tenant in waiting]
        assert max(used) - min(used) <= largest + 1e-6
        serve(line, tenants, 1)


def test_a_tenant_is_charged_by_work_and_not_by_texts() -> None:
    """Who sends texts of four times the work gets a quarter as many of them run."""
    tenants, line = Tenants(), Line(kind=0)
    fill(tenants, line, "large", 40, seconds=4.0)
    fill(tenants, line, "small", 40, seconds=1.0)
    served = serve(line, tenants, 25)
    assert 19 <= served.count("small") <= 21


@given(st.lists(st.floats(0.25, 8.0), min_size=2, max_size=6))
def test_tenants_get_work_done_by_their_weights(weights: list[float]) -> None:
    """What was done for tenants who all have work waiting, divided by their weights, differs by no more than one text of each."""
    tenants, line = Tenants(), Line(kind=0)
    mine = [fill(tenants, line, str(number), 200, weight=weight) for number, weight in enumerate(weights)]
    served = serve(line, tenants, 150)
    for one, other in itertools.pairwise(mine):
        assert abs(one.used - other.used) <= 1 / one.weight + 1 / other.weight + 1e-6
        assert served.count(one.name) / one.weight == pytest.approx(one.used)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(Priority), st.floats(0.1, 5.0)), min_size=1, max_size=30))
def test_interactive_texts_go_before_bulk_whoever_sends_them(sent: list[tuple[str, Priority, float]]) -> None:
    """Whatever was done for whom, no bulk text goes before an interactive one, and bulk is shared by the same rule."""
    tenants, line = Tenants(), Line(kind=0)
    for name, priority, seconds in sent:
        fill(tenants, line, name, 3, seconds=seconds, priority=priority)
    priorities = [text.job.tenant.priority for text in order(line)]
    assert len(priorities) == 3 * len(sent)
    assert priorities == sorted(priorities)


def test_bulk_costs_a_tenant_nothing_among_interactive_ones() -> None:
    """Who has had much done in bulk, while others had nothing to do, is no later for it when it asks in a hurry."""
    tenants, line = Tenants(), Line(kind=0)
    fill(tenants, line, "busy", 200, priority=Priority.BULK)
    serve(line, tenants, 150)
    fill(tenants, line, "other", 20)
    fill(tenants, line, "busy", 20)
    served = serve(line, tenants, 20)
    assert 9 <= served.count("busy") <= 11


def test_nobody_saves_up_turns_by_being_away() -> None:
    """Who comes after others have had much work done begins where they stand, and takes turns with them."""
    tenants, line = Tenants(), Line(kind=0)
    fill(tenants, line, "early", 100)
    serve(line, tenants, 50)
    fill(tenants, line, "late", 100)
    served = serve(line, tenants, 20)
    assert 9 <= served.count("late") <= 11


def test_a_quiet_tenant_goes_before_one_that_floods() -> None:
    """A single request of another tenant runs next, whatever one tenant has waiting."""
    tenants, line = Tenants(), Line(kind=0)
    fill(tenants, line, "flood", 500)
    serve(line, tenants, 10)
    fill(tenants, line, "quiet", 1)
    assert "quiet" in serve(line, tenants, 2)


def test_what_will_go_before_a_text_is_known_before_it_is_put_in() -> None:
    """The work ahead of a newcomer is its own tenant's, and of others no more than its fair share lets by."""
    tenants, line = Tenants(), Line(kind=0)
    flood = fill(tenants, line, "flood", 500)
    quiet = tenants.of(Standing("quiet"))
    tenants.lift(quiet)
    assert line.ahead(texts(job(quiet), (0.0, 10.0))[0]) == pytest.approx(0.0)
    assert line.ahead(texts(job(flood), (0.0, 10.0))[0]) == pytest.approx(500.0)
    assert line.ahead(texts(job(flood), (0.0, 9.0))[0]) == pytest.approx(0.0)
    assert line.seconds == pytest.approx(500.0)


@pytest.mark.parametrize("weight", [0.5, 1.0, 2.0])
def test_what_will_go_before_a_text_follows_the_weights(weight: float) -> None:
    """Of a tenant of twice the weight, half as much of others goes before what it has sent."""
    tenants, line = Tenants(), Line(kind=0)
    fill(tenants, line, "flood", 500)
    mine = fill(tenants, line, "mine", 20, weight=weight)
    tenants.lift(mine)
    assert line.ahead(texts(job(mine), (0.0, 11.0))[0]) == pytest.approx(20.0 + 20 / weight, abs=1.5)


def test_bulk_waits_for_all_interactive_work_and_interactive_for_no_bulk() -> None:
    """What will go before a bulk text is all that is interactive; before an interactive one, nothing that is bulk."""
    tenants, line = Tenants(), Line(kind=0)
    fill(tenants, line, "one", 30)
    fill(tenants, line, "two", 70, priority=Priority.BULK)
    bulk, interactive = tenants.of(Standing("three", Priority.BULK)), tenants.of(Standing("three"))
    assert line.ahead(texts(job(bulk), (0.0, 10.0))[0]) == pytest.approx(30.0)
    assert line.ahead(texts(job(interactive), (0.0, 10.0))[0]) == pytest.approx(0.0)
    assert line.seconds_down_to(Priority.INTERACTIVE) == pytest.approx(30.0)
    assert line.seconds_down_to(Priority.BULK) == pytest.approx(100.0)


def test_work_for_several_is_paid_by_all_of_them() -> None:
    """Who wait for the same work share its price."""
    tenants = Tenants()
    one, other = tenants.of(Standing("one")), tenants.of(Standing("other"))
    (first,), (second,) = texts(job(one), (0.0, 1.0)), texts(job(other), (0.0, 1.0))
    first.twins = second.twins = [first, second]
    tenants.charge([first])
    assert (one.used, other.used) == (0.5, 0.5)


@given(st.lists(st.booleans(), min_size=1, max_size=80))
def test_what_nobody_wants_any_more_is_passed_by_and_let_go_of(gone: Sequence[bool]) -> None:
    """What nobody wants any more is passed by, and let go of with the next sweep."""
    line, tenant = Line(kind=0), Tenant("one")
    for is_gone in gone:
        line.add(tenant, texts(one := job(tenant), (0.0, 1.0)))
        one.over = is_gone
    assert len(order(line)) == gone.count(False)
    line.sweep()
    assert len(list(line)) == gone.count(False)
    assert bool(line) == (False in gone)


def test_tenants_who_left_are_forgotten() -> None:
    """Names of tenants without requests do not gather without end."""
    tenants, line = Tenants(), Line(kind=0)
    for number in range(10 * MOST_KNOWN):
        tenant = fill(tenants, line, f"tenant-{number}", 1)
        serve(line, tenants, 1)
        tenant.jobs -= 1
    assert len(tenants._known) <= MOST_KNOWN
