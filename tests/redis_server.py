"""A Redis of a test's own, which can be killed, paused and started again on the same port."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from typing import TYPE_CHECKING, Self

from redis.asyncio import Redis
from redis.exceptions import RedisError

from quadrate.testing.ports import free_port

if TYPE_CHECKING:
    from pathlib import Path

LONG_SECONDS = 30.0


class RedisServer:
    """One `redis-server` that keeps nothing on disk. An async context manager.

    Args:
        program: The path of `redis-server` or `valkey-server`.
        folder: Where it runs.
        options: What else its command line says.
    """

    def __init__(self, program: str, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
        self._command += options
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        self._launch()
        async with asyncio.timeout(LONG_SECONDS), self.client() as client:
            while not await _answers(client):
                await asyncio.sleep(0.02)

    def _launch(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        """End it at once, as a lost machine would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Let it hang: connections stay and nothing is answered."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused one go on."""
        self._send(signal.SIGCONT)

    def client(self) -> Redis:
        """Return a client of it."""
        return Redis.from_url(self.url, protocol=2, decode_responses=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.kill()

    def _send(self, number: signal.Signals) -> None:
        assert self._process is not None, "it does not run"
        self._process.send_signal(number)


async def _answers(client: Redis) -> bool:
    try:
        return bool(await client.ping())
    except (RedisError, OSError):
        return False
