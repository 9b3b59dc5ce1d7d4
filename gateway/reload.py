"""The gateway's files, watched: an edit takes effect as a whole, or not at all.

    look ──(a file is another than before)──► settle ──► read and check all ──► use at once
                                                              │
                                                              └──(something is wrong)──► nothing changes; log, metric and readiness
                                                                                         say so; looked at again each time

Files are looked at every few seconds and whenever a signal asks.
"""

from __future__ import annotations

import asyncio
import datetime
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from quadrate.config.auth import AuthFile, load_auth
from quadrate.config.loose_ends import loose_ends
from quadrate.config.rate_limits import RateLimitsFile, load_rate_limits
from quadrate.config.routing import RoutingFile, load_routing
from quadrate.config.watched import WatchedFiles, refuse_empty
from quadrate.errors import ConfigError
from quadrate.telemetry import log

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from quadrate.config.gateway import GatewaySettings
    from quadrate.config.mapping import MoreNames
    from quadrate.config.tls import Stamp
    from quadrate.telemetry import Metrics


MOST_LINES = 5
"""So many lines of what is wrong are told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What the files say, each in itself right, and the names that variables add."""

    routing: RoutingFile
    auth: AuthFile
    limits: RateLimitsFile
    more_names: MoreNames
    upstream_tls: Stamp = ()
    """Tells the files by which upstreams are called over TLS from their successors."""

    @classmethod
    def load(cls, settings: GatewaySettings) -> Configuration:
        """Read all files. Raises ConfigError, which names file, line and what is allowed."""
        routing = load_routing(settings.routing_path)
        settings.more_names.check(routing)
        return cls(
            routing=routing,
            auth=load_auth(settings.auth_path),
            limits=load_rate_limits(settings.rate_limits_path),
            more_names=settings.more_names,
            upstream_tls=settings.upstream_tls.checked(),
        )

    def loose_ends(self) -> tuple[str, ...]:
        """Return what leads nowhere, a sentence each."""
        return (*loose_ends(self.routing, self.auth, self.limits), *self.more_names.loose_ends(self.routing))

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
        self.loose_ends: tuple[str, ...] = ()
        """What leads nowhere in the configuration in force."""
        self.problem = ""
        """Why the files as they are now are not in force; empty if they are."""
        self._settings = settings
        self._paths = (settings.routing_path, settings.auth_path, settings.rate_limits_path, *settings.upstream_tls.paths)
        self._files = WatchedFiles(self._paths, interval_seconds=settings.routing_reload_interval_seconds)
        self._use = use
        self._metrics = metrics
        self._task: asyncio.Task[None] | None = None
        self._note_applied()

    def ask(self) -> None:
        """Read the files again now, whether they look changed or not."""
        self._files.ask()

    def report(self) -> dict[str, Any]:
        """Return what readiness says of it."""
        state = {"status": "refused" if self.problem else "ok", "since": self._since, "reason": self.problem}
        return {**state, "loose_ends": list(self.loose_ends)}

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            is_asked = await self._files.edited(or_the_same=bool(self.problem))
            await self.look(is_asked=is_asked)

    async def look(self, *, is_asked: bool = False) -> None:
        """Read the files, and let them take effect if they say something else than before, or somebody asked."""
        try:
            configuration = await asyncio.to_thread(self._read)
            await self._take(configuration, is_asked=is_asked)
        except ConfigError as error:
            self._refuse(str(error))
        except Exception as error:  # noqa: BLE001 - whatever an edit brings about, the next one is to be looked at
            self._refuse(f"it could not be used ({type(error).__name__}); tell whoever maintains this program")

    def _read(self) -> Configuration:
        """Read all files. On a thread. Raises ConfigError."""
        for path in self._paths:
            refuse_empty(path)
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
        self.loose_ends = self.configuration.loose_ends()[:MOST_LINES]
        if self.loose_ends:
            log.warn("configuration has loose ends", found=self.loose_ends)

    def _refuse(self, problem: str) -> None:
        """Tell a problem once, and stay as we are."""
        problem = _shortened(problem)
        if problem != self.problem:
            self._metrics.counter("router_config_reloads_total", "refused").inc()
            log.error("configuration refused; the former one stays in force", reason=problem)
        self._metrics.gauge("router_config_last_reload_successful").set(0)
        self.problem = problem


def _shortened(problem: str) -> str:
    """Return the first lines of a problem: a slip may break every entry of a long file."""
    lines = problem.splitlines()
    more = [f"and {len(lines) - MOST_LINES} more; `quadrate config check` has them all"] if len(lines) > MOST_LINES else []
    return "\n".join([*lines[:MOST_LINES], *more])
