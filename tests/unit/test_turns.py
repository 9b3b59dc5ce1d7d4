"""Turns on threads: nobody who asks for little waits behind one who floods."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from quadrate.standing import NOBODY, Priority, Standing
from quadrate.testing.tokenizers import letter_tokenizer
from quadrate.tokenizer import TextTokenizer
from quadrate.turns import Lines, Turns, on_behalf


async def ask(turns: Turns, done: list[str], standing: Standing, gate: threading.Event | None = None) -> None:
    """Run a function that notes whose it was, on somebody's behalf."""
    on_behalf.set(standing)

    def work() -> None:
        if gate is not None:
            assert gate.wait(30)
        done.append(standing.tenant)

    await turns.run(work, cost=10)


async def test_who_asks_for_little_goes_next_and_bulk_last() -> None:
    """Behind a flood, another tenant's call is the next to run, and what is bulk is the last."""
    gate, done = threading.Event(), []
    with ThreadPoolExecutor(1) as executor:
        turns = Turns(executor, 1)
        first = asyncio.create_task(ask(turns, done, Standing("flood"), gate))
        await asyncio.sleep(0)
        rest = [asyncio.create_task(ask(turns, done, Standing("bulk", Priority.BULK)))]
        rest += [asyncio.create_task(ask(turns, done, Standing("flood"))) for _ in range(20)]
        rest += [asyncio.create_task(ask(turns, done, Standing("quiet")))]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(first, *rest)
    assert done.index("quiet") <= 2
    assert done[-1] == "bulk"


async def test_one_who_leaves_takes_no_turn_with_it() -> None:
    """Callers who leave while they wait, or while theirs runs, leave the turns to others, and never more run than there are threads."""
    gate, done = threading.Event(), []
    with ThreadPoolExecutor(2) as executor:
        turns = Turns(executor, 1)
        running = asyncio.create_task(ask(turns, done, Standing("gone"), gate))
        waiting = asyncio.create_task(ask(turns, done, Standing("gone")))
        last = asyncio.create_task(ask(turns, done, Standing("last")))
        await asyncio.sleep(0)
        running.cancel()
        waiting.cancel()
        await asyncio.gather(running, waiting, return_exceptions=True)
        assert not done
        gate.set()
        await last
    assert done == ["gone", "last"]


async def test_large_texts_are_tokenised_in_turns() -> None:
    """Tokenising what is large takes turns, and gives what it gives in place."""
    reader = TextTokenizer.from_json(letter_tokenizer(), max_tokens=512)
    texts = ["the cat sat on the mat " * 100, "dog"]
    found = await asyncio.gather(*(reader.encode_async(texts) for _ in range(8)))
    assert found == [reader.encode(texts)] * 8


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(Priority), st.floats(0.1, 10), st.floats(0.1, 5)), max_size=40))
def test_what_goes_before_a_newcomer_is_never_underestimated_by_more_than_a_turn_of_each(
    sent: list[tuple[str, Priority, float, float]],
) -> None:
    """What is served before a newcomer costs as much as was said, give or take one turn of each tenant."""

    async def run() -> None:
        lines = Lines()
        for name, priority, cost, _ in sent:
            lines.add(Standing(name, priority), cost)
        said = lines.ahead(Standing("new"), 1.0)
        mine, before = lines.add(Standing("new"), 1.0), 0.0
        while (waiter := lines.first()) is not mine:
            assert waiter is not None
            lines.serve(waiter)
            before += waiter.cost
        assert abs(before - said) <= 3 * 10 + 1
        while (waiter := lines.first()) is not None:
            lines.serve(waiter)
        assert not len(lines)
        assert lines.ahead(NOBODY, 1.0) == 0.0

    asyncio.run(run())
