"""Which addresses a worker's name stands for."""

from __future__ import annotations

import asyncio

import pytest

from gateway.upstreams import names
from gateway.upstreams.names import Names, is_name
from quadrate.errors import ConfigError


@pytest.mark.parametrize("target", ["127.0.0.1:7997", "[::1]:7997", "localhost:7997"])
def test_an_address_stands_for_itself(target: str) -> None:
    """Nothing is resolved; neither is localhost, which is one machine by two addresses."""
    assert not is_name(target)
    assert Names(_nothing).of(target) == (target,)


class Book:
    """A name server, and what was made of its answers."""

    def __init__(self) -> None:
        self.addresses: tuple[str, ...] = ("10.0.0.1",)
        self.changes = 0
        self.failures = 0
        self.changed_once = asyncio.Event()
        self.asked = asyncio.Event()

    async def resolve(self, host: str, port: int) -> tuple[str, ...]:
        """Answer."""
        assert (host, port) == ("workers", 7997)
        self.asked.set()
        return self.addresses

    async def changed(self) -> None:
        """Take note, or fail."""
        if self.failures:
            self.failures -= 1
            raise ConfigError("A certificate is being renewed.")
        self.changes += 1
        self.changed_once.set()

    async def until_changed(self) -> None:
        """Wait for the next change that is taken."""
        self.changed_once.clear()
        await asyncio.wait_for(self.changed_once.wait(), 10)


async def _nothing() -> None:
    pass


@pytest.fixture
def book(monkeypatch: pytest.MonkeyPatch) -> Book:
    """A name server that is asked often."""
    monkeypatch.setattr(names, "RESOLVE_SECONDS", 0.01)
    return Book()


async def test_a_name_stands_for_each_of_its_addresses(book: Book) -> None:
    """From the start, and as they change; an answer of none, or one that cannot be used yet, changes nothing for good."""
    found = Names(book.changed, book.resolve)
    assert found.of("workers:7997") == ("workers:7997",)
    await found.start()
    assert found.of("workers:7997") == ("10.0.0.1:7997",)
    book.addresses = ("10.0.0.1", "fd00::2")
    await book.until_changed()
    assert found.of("workers:7997") == ("10.0.0.1:7997", "[fd00::2]:7997")
    book.addresses, before = (), book.changes
    for _ in range(3):
        book.asked.clear()
        await asyncio.wait_for(book.asked.wait(), 10)
    assert found.of("workers:7997") == ("10.0.0.1:7997", "[fd00::2]:7997")
    assert book.changes == before
    book.failures, book.addresses = 2, ("10.0.0.3",)
    await book.until_changed()
    assert book.failures == 0
    await found.stop()


async def test_a_name_that_is_gone_from_the_file_is_forgotten(book: Book) -> None:
    """It is resolved no more."""
    found = Names(book.changed, book.resolve)
    found.of("workers:7997")
    found.keep([])
    assert not found._known
    await found.start()
    await found.stop()


async def test_a_real_name_server_is_asked() -> None:
    """Addresses of IPv4 go before those of IPv6; what does not exist has none."""
    assert await names._resolve("localhost", 7997) == ("127.0.0.1",)
    assert await names._resolve("no-such-host.invalid", 7997) == ()


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example"])
async def test_what_can_be_no_name_stands_for_nothing(host: str) -> None:
    """It ends no search for the others."""
    assert await names._resolve(host, 7997) == ()
