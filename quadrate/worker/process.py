"""A worker process: ports first, then models; and when a model fails, out, so that the supervisor starts a new one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Self

from quadrate.config.worker import load_worker_settings
from quadrate.errors import ConfigError
from quadrate.health import Health
from quadrate.runtime import memory
from quadrate.runtime.scheduler import Scheduler
from quadrate.runtime.sessions import CUDA, choose
from quadrate.server import Server, run
from quadrate.telemetry import Telemetry, log
from quadrate.worker.admin import AdminService
from quadrate.worker.catalogue import Catalogue
from quadrate.worker.loading import Loader
from quadrate.worker.meter import TelemetryMeter
from quadrate.worker.models import ModelService
from quadrate.worker.reload import CatalogueReload
from quadrate.worker.rules import rules_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from quadrate.config.worker import WorkerSettings
    from quadrate.runtime.jobs import Lane

EXIT_CONFIG = 2
"""Something configured cannot be used: starting again will not help."""
EXIT_FAILED = 70
"""A model failed, or none could be loaded: a new process may do better (sysexits.h, EX_SOFTWARE)."""
WATCH_SECONDS = 1.0
TRIM_SECONDS = 10
"""How often free memory is given back while work goes on: without it, minutes of random lengths leave ever more holes."""
LAST_CALLS_SECONDS = 0.2


class Worker:
    """One worker: its server, its models, their scheduler. An async context manager; entering it opens the ports, models load after that.

    Args:
        settings: What it is told.
        task: `embed` or `rerank`.
        services: Makes its services from the catalogue and the settings.
        telemetry: Where calls are counted, logged and traced.

    Raises ConfigError when it cannot be as it is told.
    """

    def __init__(
        self, settings: WorkerSettings, *, task: str, services: Callable[[Catalogue, Any], Sequence[Any]], telemetry: Telemetry
    ) -> None:
        self._on_gpu = choose(settings.device, settings.precision).provider == CUDA
        self._settings = settings
        self._telemetry = telemetry
        name = f"quadrate.v1.{'EmbedService' if task == 'embed' else 'RerankService'}"
        health = Health()
        self.catalogue = Catalogue(settings, task=task, service=name, health=health, telemetry=telemetry)
        self.loader = Loader(self.catalogue, settings, task=task, telemetry=telemetry)
        self.reload = CatalogueReload(settings, self.catalogue, self.loader, task=task, telemetry=telemetry)
        self.server = Server(
            telemetry=telemetry,
            health=health,
            services=[*services(self.catalogue, settings), ModelService(self.catalogue), AdminService(self.catalogue, self.loader)],
            host=settings.host,
            port=settings.port,
            http_port=settings.http_port,
            readiness=self._readiness,
            reflection_on=settings.reflection,
            drain_seconds=settings.drain_seconds,
            notice_seconds=settings.drain_notice_seconds,
            tls=settings.tls,
        )
        self.scheduler: Scheduler
        self.status = 0
        """What the process exits with."""
        self.loaded = asyncio.Event()
        """Set when every model is ready or given up."""
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        settings = self._settings
        if settings.session == "null":
            log.warn("the session is null: answers come from no model, for measurements only")
        await self.server.start()
        rules = rules_of(settings, on_gpu=self._on_gpu)
        self.scheduler = Scheduler(rules, meter=TelemetryMeter(self._telemetry), on_failure=self._failed)
        self.loader.scheduler = self.scheduler
        self._tasks = [asyncio.create_task(self._load()), asyncio.create_task(self._watch())]
        await self.reload.__aenter__()
        return self

    def _readiness(self) -> tuple[bool, dict[str, object]]:
        serving, report = self.catalogue.readiness()
        return serving, {**report, "configuration": self.reload.report()}

    async def __aexit__(self, *_: object) -> None:
        await self.reload.__aexit__()
        await self.server.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.loader.close()
        if not await self.scheduler.close():
            log.fatal("a run does not end; the process leaves without it")
            os._exit(EXIT_FAILED)

    async def _load(self) -> None:
        loads = await self.loader.load_configured()
        if all(load.error is not None for load in loads):
            misconfigured = all(load.is_misconfigured for load in loads)
            self._leave("no model could be loaded", EXIT_CONFIG if misconfigured else EXIT_FAILED)
        self.loaded.set()

    async def _watch(self) -> None:
        """Look for stuck runs and tell how much waits, once a second."""
        metrics, prefix = self._telemetry.metrics, self._telemetry.prefix
        runs = trimmed = busy_seconds = floor_bytes = 0
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self.scheduler.watch()
            before, runs = runs, self.scheduler.runs
            busy_seconds += 1
            if runs != trimmed and (runs == before or busy_seconds >= TRIM_SECONDS):  # a second of rest after work, or long work
                trimmed, busy_seconds = runs, 0
                if memory.resident_bytes() > floor_bytes + memory.WORTH_BYTES:
                    await asyncio.to_thread(memory.give_back)
                    floor_bytes = memory.resident_bytes()
            for alias, (tokens, seconds) in self.scheduler.queued().items():
                metrics.gauge(f"{prefix}_queue_tokens", alias).set(tokens)
                metrics.gauge(f"{prefix}_queue_estimated_seconds", alias).set(seconds)

    def _failed(self, lane: Lane) -> None:
        if self.catalogue.failed(lane):
            self._leave(f"the model {lane.name} failed", EXIT_FAILED)

    def _leave(self, reason: str, status: int) -> None:
        """Stop the process, a moment from now: calls that are on their way are answered UNAVAILABLE rather than cut off."""
        self.status = status
        asyncio.get_running_loop().call_later(LAST_CALLS_SECONDS, self.server.ask_to_stop, reason)


def main(kind: type[WorkerSettings], *, task: str, services: Callable[[Catalogue, Any], Sequence[Any]]) -> int:
    """Run a worker until told to stop, or until a model fails. Returns the exit status: 0, EXIT_CONFIG or EXIT_FAILED."""
    try:
        return run(_serve(kind, task, services))
    except ConfigError as error:
        log.fatal("cannot start", reason=str(error))
        return EXIT_CONFIG


async def _serve(kind: type[WorkerSettings], task: str, services: Callable[[Catalogue, Any], Sequence[Any]]) -> int:
    telemetry = Telemetry.start(component=f"{task}_worker", prefix=task)
    # A runner that has an answer must not wait the usual 5 ms for the event loop's thread to give way.
    sys.setswitchinterval(0.0005)
    memory.settle()
    worker = Worker(load_worker_settings(kind), task=task, services=services, telemetry=telemetry)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, worker.reload.ask)
    async with worker:
        await worker.server.run()
    if not worker.loaded.is_set() or worker.loader.is_loading:
        os._exit(worker.status)  # a thread still fetches or loads, and nobody waits for it any more
    return worker.status
