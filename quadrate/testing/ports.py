"""Ports that nobody listens on."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, suppress


def free_port() -> int:
    """Return a TCP port of the loopback interface that is free now. Another process may take it before the caller does."""
    return free_ports(1)[0]


def free_ports(count: int) -> tuple[int, ...]:
    """Return so many free ports, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return tuple(int(taken.getsockname()[1]) for taken in sockets)


def free_block(length: int) -> int:
    """Return the first of `length` ports in a row that are all free now, below those that the kernel gives out by itself."""
    while True:
        first = random.randrange(20_000, 30_000, 100)  # noqa: S311 - not a secret
        with suppress(OSError), ExitStack() as stack:
            for port in range(first, first + length):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return first
