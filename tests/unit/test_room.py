"""The gateway's own room: a bound for all, and for each caller a part that leaves some to others."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.overload.room import Place, Room
from quadrate.errors import Overloaded
from quadrate.standing import Priority, Standing

FLOOD, OTHER = Standing("flood"), Standing("other")


def room(requests: int = 100, size_bytes: int = 1_000) -> Room:
    """Return a room whose clock stands still."""
    return Room(requests=requests, size_bytes=size_bytes, clock=lambda: 0.0)


def fill(found: Room, standing: Standing, size_bytes: int = 1) -> list[Place]:
    """Let a caller in until it is refused."""
    places = []
    while True:
        try:
            places.append(found.enter(standing, size_bytes))
        except Overloaded:
            return places


@pytest.mark.parametrize(
    ("standing", "expected"),
    [(FLOOD, 80), (Standing("bulk", Priority.BULK), 50), (Standing("heavy", weight=2.0), 89), (Standing("light", weight=0.25), 50)],
)
def test_a_caller_alone_may_take_a_part_and_never_all(standing: Standing, expected: int) -> None:
    """A caller alone may take four fifths, half of all with bulk, more or less by its weight."""
    assert len(fill(room(), standing)) == expected


def test_who_floods_leaves_room_for_others() -> None:
    """Behind one who floods, another gets a part of what is free, and a third of what is left then."""
    found = room()
    fill(found, FLOOD)
    assert len(fill(found, OTHER)) == 16
    assert len(fill(found, Standing("third"))) >= 3


def test_bytes_are_bounded_like_requests() -> None:
    """A few large requests fill the room as many small ones do, and a request that is larger than what is free does not come in."""
    found = room()
    assert len(fill(found, FLOOD, 100)) == 8
    with pytest.raises(Overloaded):
        found.enter(OTHER, 201)
    found.enter(OTHER, 200)


def test_a_refusal_says_when_a_request_will_have_been_answered() -> None:
    """Who is refused is told to come back about when one of its requests will be through."""
    now = [0.0]
    found = Room(requests=10, size_bytes=1_000, clock=lambda: now[0])
    first = found.enter(FLOOD, 1)
    now[0] = 4.0
    first.close()
    fill(found, FLOOD)
    with pytest.raises(Overloaded) as caught:
        found.enter(FLOOD, 1)
    assert caught.value.retry_after_seconds == pytest.approx(4.0 / 8)


async def test_items_of_streams_wait_for_a_place() -> None:
    """An item that finds no room gets the place that comes free; who has gone by then takes none with it."""
    found = room(requests=2)
    first, second = found.enter(FLOOD, 1), found.enter(OTHER, 1)
    waiting = [asyncio.create_task(found.wait(Standing(name), 1)) for name in ("gone", "patient", "late")]
    await asyncio.sleep(0)
    waiting[0].cancel()
    first.close()
    await asyncio.gather(waiting[0], return_exceptions=True)
    (await waiting[1]).close()
    (await waiting[2]).close()
    second.close()
    assert (found.free_requests, found.free_bytes) == (2, 1_000)


async def test_a_place_that_comes_in_the_moment_of_leaving_is_given_back() -> None:
    """An item that is cancelled with its place already given leaves nothing taken."""
    found = room(requests=1)
    first = found.enter(FLOOD, 1)
    waiting = asyncio.create_task(found.wait(OTHER, 1))
    await asyncio.sleep(0)
    first.close()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert found.free_requests == 1


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 400), st.floats(0.01, 100), st.booleans()), max_size=200))
def test_the_room_is_never_more_than_full_and_empty_at_the_end(calls: list[tuple[str, int, float, bool]]) -> None:
    """Whoever comes and goes, the bounds hold at every moment, somebody new is let in while anything is free, and all comes back."""
    found, places = room(requests=20), []
    for name, size_bytes, weight, leaves in calls:
        try:
            places.append(found.enter(Standing(name, weight=weight), size_bytes))
        except Overloaded:
            assert name in found._held or not found.free_requests or size_bytes > found.free_bytes
        if leaves and places:
            places.pop(0).close()
        assert 0 <= found.free_requests <= 20
        assert 0 <= found.free_bytes <= 1_000
    for place in places:
        place.close()
        place.close(failed=True)
    assert (found.free_requests, found.free_bytes, found._held) == (20, 1_000, {})


async def test_an_item_that_is_too_large_now_keeps_its_place_in_its_callers_line() -> None:
    """Smaller ones of the same caller do not pass it for ever; those of others do, and all do once it has left."""
    found = room(size_bytes=100)
    first = found.enter(Standing("first"), 60)
    large = asyncio.create_task(found.wait(FLOOD, 90))
    await asyncio.sleep(0)
    small = asyncio.create_task(found.wait(FLOOD, 10))
    (await found.wait(OTHER, 10)).close()
    await asyncio.sleep(0)
    assert not small.done()
    large.cancel()
    (await small).close()
    first.close()
    assert (found.free_requests, found.free_bytes, found._waiting) == (100, 100, {})


async def test_places_of_many_who_wait_are_found_quickly() -> None:
    """A thousand callers' answers do not each look at all the items of one that has its part."""
    found = room(requests=4)
    held = [found.enter(FLOOD, 0), found.enter(FLOOD, 0)]
    looked = 0
    before = found._has_room

    def counted(standing: Standing, size_bytes: int) -> bool:
        nonlocal looked
        looked += 1
        return before(standing, size_bytes)

    found._has_room = counted  # type: ignore[method-assign] # it counts
    bulk = Standing("flood", Priority.BULK)
    waiting = [asyncio.create_task(found.wait(bulk, 0)) for _ in range(1_000)]
    await asyncio.sleep(0)
    looked = 0
    for _ in range(100):
        found.enter(OTHER, 0).close()
    assert looked <= 400
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    for place in held:
        place.close()
    assert (found.free_requests, found._held, found._waiting) == (4, {}, {})
