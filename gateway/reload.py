"""The gateway's files, watched: an edit takes effect as a whole, or not at all.

    look ──(a file is another than before)──► settle ──► read and check all ──► use at once
                                                              │
                                                              └──(something is wrong)──► nothing changes; log, metric and readiness
                                                                                         say so; looked at again each time

Files are looked at every few seconds and whenever a signal asks. What is looked at is where a path leads, so that a link that is moved to
another folder, as Kubernetes does it for a ConfigMap, is an edit, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self

from quadrate.config.auth import AuthFile, load_auth
from quadrate.config.rate_limits import RateLimitsFile, load_rate_limits
from quadrate.config.routing import RoutingFile, load_routing
from quadrate.errors import ConfigError
from quadrate.telemetry import log

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from quadrate.config.gateway import GatewaySettings
    from quadrate.telemetry import Metrics

SETTLE_SECONDS = 0.2
"""Files that are being written are left alone until they have rested so long."""
MOST_SETTLING_SECONDS = 5.0
"""Files that never rest are read as they are: what is half there is refused, or it is whole."""

Mark = tuple[int, int, int, int] | None
"""Which file a path leads to, and which state of it; None where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What the files say, each in itself right."""

    routing: RoutingFile
    auth: AuthFile
    limits: RateLimitsFile

    @classmethod
    def load(cls, settings: GatewaySettings) -> Configuration:
        """Read all files. Raises ConfigError, which names file, line and what is allowed."""
        return cls(
            routing=load_routing(settings.routing_path),
            auth=load_auth(settings.auth_path),
            limits=load_rate_limits(settings.rate_limits_path),
        )

    def changed(self, before: Configuration) -> list[str]:
        """Return the names of the parts that differ."""
        return [field.name for field in fields(self) if getattr(self, field.name) != getattr(before, field.name)]


class Reload:
    """Keeps a configuration as the files have it. An async context manager: inside it, files are looked at.

    Args:
        settings: Where the files are, and how often to look.
        configuration: What is in force.
        use: Lets another take effect. What it raises as ConfigError is a reason not to; then it has changed nothing.
        metrics: Where it is counted.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        configuration: Configuration,
        use: Callable[[Configuration], Awaitable[None]],
        metrics: Metrics,
    ) -> None:
        self.configuration = configuration
        """What is in force."""
        self.problem = ""
        """Why the files as they are now are not in force; empty if they are."""
        self._settings = settings
        self._paths = (settings.routing_path, settings.auth_path, settings.rate_limits_path)
        self._marks: Sequence[Mark] = ()
        self._use = use
        self._metrics = metrics
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._note_applied()

    def ask(self) -> None:
        """Read the files again now, whether they look changed or not."""
        self._asked.set()

    def report(self) -> dict[str, str]:
        """Return what readiness says of it."""
        return {"status": "refused" if self.problem else "ok", "since": self._since, "reason": self.problem}

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        interval = self._settings.routing_reload_interval_seconds
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), interval or None)
            is_asked = self._asked.is_set()
            self._asked.clear()
            await self.look(is_asked=is_asked)

    async def look(self, *, is_asked: bool = False) -> None:
        """Look at the files, and let them take effect if they are others than before, were refused, or somebody asked."""
        found = await asyncio.to_thread(marks, self._paths)
        if found == self._marks and not self.problem and not is_asked:
            return
        try:
            self._marks = await self._settled(found)
            configuration = await asyncio.to_thread(self._read)
            await self._take(configuration, is_asked=is_asked)
        except ConfigError as error:
            self._refuse(str(error))
        except Exception as error:  # noqa: BLE001 - whatever an edit brings about, the next one is to be looked at
            self._refuse(f"it could not be used ({type(error).__name__}); the former configuration stays in force")

    async def _settled(self, found: Sequence[Mark]) -> Sequence[Mark]:
        """Wait until the files rest; return how they are then."""
        for _ in range(round(MOST_SETTLING_SECONDS / SETTLE_SECONDS)):
            before = found
            await asyncio.sleep(SETTLE_SECONDS)
            found = await asyncio.to_thread(marks, self._paths)
            if found == before:
                break
        return found

    def _read(self) -> Configuration:
        """Read all files. On a thread. Raises ConfigError."""
        for path in self._paths:
            _refuse_empty(path)
        return Configuration.load(self._settings)

    async def _take(self, configuration: Configuration, *, is_asked: bool) -> None:
        changed = configuration.changed(self.configuration)
        if changed or is_asked:
            await self._use(configuration)
            self.configuration = configuration
            self._note_applied()
            self._metrics.counter("router_config_reloads_total", "applied").inc()
            log.info("configuration taken", changed=changed)
        elif self.problem:
            self._metrics.gauge("router_config_last_reload_successful").set(1)
            log.info("configuration is right again, and as it was")
        self.problem = ""

    def _note_applied(self) -> None:
        now = datetime.datetime.now(datetime.UTC)
        self._since = now.isoformat(timespec="seconds").replace("+00:00", "Z")
        self._metrics.gauge("router_config_last_reload_successful").set(1)
        self._metrics.gauge("router_config_last_applied_timestamp_seconds").set(now.timestamp())

    def _refuse(self, problem: str) -> None:
        """Tell a problem once, and stay as we are."""
        if problem != self.problem:
            self._metrics.counter("router_config_reloads_total", "refused").inc()
            log.error("configuration refused; the former one stays in force", reason=problem)
        self._metrics.gauge("router_config_last_reload_successful").set(0)
        self.problem = problem


def marks(paths: Sequence[Path]) -> tuple[Mark, ...]:
    """Return what tells the state of files from another."""
    return tuple(_mark(path) for path in paths)


def _mark(path: Path) -> Mark:
    try:
        found = os.stat(path)  # noqa: PTH116 - as Path.stat, and one of many
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _refuse_empty(path: Path) -> None:
    """Raise ConfigError for a file without a word: so it is while somebody writes it, and it would take away every model or key."""
    with contextlib.suppress(OSError):
        if not path.stat().st_size:
            raise ConfigError(f"{path}: is empty; write {{}} if nothing is meant.")
