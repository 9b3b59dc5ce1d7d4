"""The catalogue of models, watched: a model whose card was edited is loaded again, beside the one that answers, and takes over from it.

What is not served here may change as it will: a model is loaded by the card that the file has at that moment. A bad file changes nothing.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from quadrate.config import lock
from quadrate.config.watched import WatchedFiles, refuse_empty
from quadrate.errors import ConfigError
from quadrate.telemetry import log

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quadrate.config.models import ModelCard
    from quadrate.config.worker import WorkerSettings
    from quadrate.telemetry import Telemetry
    from quadrate.worker.catalogue import Catalogue, Entry
    from quadrate.worker.loading import Loader


class CatalogueReload:
    """Keeps the models of a worker as the catalogue file has them. An async context manager: inside it, the file is looked at.

    Args:
        settings: Where the file is, and how often to look.
        catalogue: The models.
        loader: What loads them.
        task: `embed` or `rerank`.
        telemetry: Where it is counted.
    """

    def __init__(self, settings: WorkerSettings, catalogue: Catalogue, loader: Loader, *, task: str, telemetry: Telemetry) -> None:
        self.problem = ""
        """Why the file as it is now is not in force; empty if it is."""
        self._path = settings.models_path
        self._catalogue = catalogue
        self._loader = loader
        self._task = task
        self._metrics = telemetry.metrics
        self._prefix = telemetry.prefix
        self._files = WatchedFiles((self._path, lock.path_of(self._path)), interval_seconds=settings.models_reload_interval_seconds)
        self._tried: dict[str, ModelCard] = {}
        """The card by which each model was told to be loaded last."""
        self._missing: frozenset[str] = frozenset()
        self._watcher: asyncio.Task[None] | None = None
        self._tell_state(successful=True)

    def ask(self) -> None:
        """Read the file now, and try again what could not be loaded."""
        self._files.ask()

    def report(self) -> dict[str, str]:
        """Return what readiness says of it."""
        return {"status": "refused" if self.problem else "ok", "reason": self.problem}

    async def __aenter__(self) -> Self:
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            is_asked = await self._files.edited(or_the_same=bool(self.problem))
            try:
                self._take(await asyncio.to_thread(self._read), is_asked=is_asked)
            except ConfigError as error:
                self._refuse(str(error))
            except Exception as error:  # noqa: BLE001 - whatever an edit brings about, the next one is to be looked at
                self._refuse(f"it could not be used ({type(error).__name__}); tell whoever maintains this program")

    def _read(self) -> Mapping[str, ModelCard]:
        """Return the cards for our task. On a thread. Raises ConfigError."""
        refuse_empty(self._path)
        return {alias: card for alias, card in lock.load(self._path).models.items() if card.task == self._task}

    def _take(self, cards: Mapping[str, ModelCard], *, is_asked: bool) -> None:
        """Load again what is served by another card than the file's. What it does not have any more goes on until it is unloaded."""
        if self.problem:
            log.info("catalogue is right again")
            self._tell_state(successful=True)
        self.problem = ""
        served = {entry.alias: entry for entry in self._catalogue.entries}
        self._warn_of_missing(frozenset(served.keys() - cards.keys()))
        edited = [alias for alias in sorted(served.keys() & cards.keys()) if self._is_due(served[alias], cards[alias], is_asked=is_asked)]
        for alias in edited:
            log.info("a model is loaded by the card that the catalogue has now", model=alias)
            self._tried[alias] = cards[alias]
            self._loader.load(alias)
        if edited:
            self._metrics.counter(f"{self._prefix}_config_reloads_total", "applied").inc()

    def _is_due(self, entry: Entry, card: ModelCard, *, is_asked: bool) -> bool:
        """Whether a model is to be loaded by a card: it is another than it has and than was tried last, or somebody asks to try again."""
        failed = entry.engine is None and entry.progress is None
        return (is_asked and failed) or card not in (entry.card, self._tried.get(entry.alias))

    def _warn_of_missing(self, missing: frozenset[str]) -> None:
        if missing - self._missing:
            log.warn("models are served that the catalogue does not have any more", models=sorted(missing), file=str(self._path))
        self._missing = missing

    def _refuse(self, problem: str) -> None:
        if problem != self.problem:
            self._metrics.counter(f"{self._prefix}_config_reloads_total", "refused").inc()
            log.error("catalogue refused; models stay as they are", reason=problem)
        self.problem = problem
        self._tell_state(successful=False)

    def _tell_state(self, *, successful: bool) -> None:
        self._metrics.gauge(f"{self._prefix}_config_last_reload_successful").set(successful)
