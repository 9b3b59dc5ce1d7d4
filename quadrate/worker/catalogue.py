"""The models of one worker: their names, their states, and how they come to answer.

loading ──(files got, sessions open, a canary answered)──► ready ──(a run failed or is stuck)──► unavailable, and the process leaves
   └──────(cannot be had or cannot be served right)──────► unavailable, and the process leaves unless another model is ready
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from quadrate.config import yamlfile
from quadrate.config.models import ModelsFile
from quadrate.errors import ConfigError, ModelNotFound, QuadrateError, StoreError, Unavailable
from quadrate.runtime import engine, store
from quadrate.runtime.engine import Engine
from quadrate.telemetry import log
from quadrate.v1 import model_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quadrate.config.models import ModelCard
    from quadrate.config.worker import WorkerSettings
    from quadrate.health import Health
    from quadrate.runtime.jobs import Lane
    from quadrate.runtime.scheduler import Scheduler
    from quadrate.telemetry import Telemetry

_TASKS = {"embed": "embedding", "rerank": "reranking"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One model: its card, its state and, once that is READY, its engine."""

    alias: str
    card: ModelCard
    state: model_pb2.ModelState = model_pb2.MODEL_STATE_LOADING
    reason: str = "loading"
    engine: Engine | None = None


class Catalogue:
    """The models that the settings name. Belongs to the event loop.

    Raises ConfigError if the file cannot be read, or does not have them, or they are for another task.
    """

    def __init__(self, settings: WorkerSettings, *, task: str, service: str, health: Health, telemetry: Telemetry) -> None:
        self._settings = settings
        self._task = task
        self._service = service
        self._health = health
        self._telemetry = telemetry
        self.is_misconfigured = True
        """Whether each model that could not be loaded cannot be served as it is configured: trying again would not help."""
        cards = yamlfile.load(settings.models_path, ModelsFile).models
        chosen = _chosen(settings, cards, task)
        self._entries = {alias: Entry(alias, cards[alias]) for alias in chosen}
        self._names = {card.served_name: alias for alias, card in cards.items() if alias in chosen}
        self._names.update({name: _resolve(alias, cards, task) for name, alias in settings.model_mapping.items()})
        self._names.update({alias: alias for alias in chosen})
        for name in ("", service, *(f"model/{alias}" for alias in chosen)):
            health.set(name, serving=False, reason="loading")
        health.set("quadrate.v1.ModelService", serving=True)

    @property
    def entries(self) -> Sequence[Entry]:
        """All models, by alias."""
        return sorted(self._entries.values(), key=lambda entry: entry.alias)

    def entry(self, name: str) -> Entry:
        """Return a model by alias or served name. Raises ModelNotFound."""
        alias = self._names.get(name)
        if alias is None:
            known = ", ".join(entry.alias for entry in self.entries)
            raise ModelNotFound(f"This worker serves no {_TASKS[self._task]} model of this name. It serves {known}.", param="model")
        return self._entries[alias]

    def engine(self, name: str) -> Engine:
        """Return a model that can run now. Raises ModelNotFound, Unavailable."""
        entry = self.entry(name)
        if entry.engine is None:
            raise Unavailable(f"The model {entry.alias} does not answer yet: {entry.reason}. Try again.", retry_after_seconds=1.0)
        return entry.engine

    async def load(self, scheduler: Scheduler) -> bool:
        """Load all models one after another. Returns whether one of them answers."""
        for alias in list(self._entries):
            await self._load(alias, scheduler)
        return any(entry.engine is not None for entry in self._entries.values())

    async def _load(self, alias: str, scheduler: Scheduler) -> None:
        started, started_ns = time.monotonic(), time.time_ns()
        card = self._entries[alias].card
        try:
            model = await asyncio.to_thread(lambda: engine.load(alias, card, store.ensure(alias, card, progress=_progress), self._settings))
            loaded = Engine(model, scheduler)
            await loaded.prove()
        except (ConfigError, StoreError, QuadrateError) as error:
            self._give_up(alias, str(error), is_misconfigured=isinstance(error, ConfigError))
            return
        except Exception as error:  # noqa: BLE001 - whatever a library raised, a model must not stay "loading" for ever
            self._give_up(alias, f"loading raised {type(error).__name__}: {error}", is_misconfigured=False)
            return
        seconds = time.monotonic() - started
        self._set(alias, model_pb2.MODEL_STATE_READY, "", loaded)
        self._telemetry.traces.single("load model", started_ns, time.time_ns(), {"quadrate.model": alias})
        metrics, prefix = self._telemetry.metrics, self._telemetry.prefix
        metrics.gauge(f"{prefix}_model_load_seconds", alias).set(seconds)
        metrics.gauge(f"{prefix}_model_memory_bytes", alias).set(model.weight_bytes)
        facts = {"revision": model.revision, "provider": model.session.provider, "seconds": round(seconds, 3)}
        log.info("model ready", model=alias, max_tokens=model.facts.max_tokens, **facts)

    def _give_up(self, alias: str, reason: str, *, is_misconfigured: bool) -> None:
        self.is_misconfigured &= is_misconfigured
        self._set(alias, model_pb2.MODEL_STATE_UNAVAILABLE, reason)
        log.error("model cannot be served", model=alias, reason=reason)

    def failed(self, lane: Lane) -> None:
        """State that a model answers no more."""
        self._set(lane.name, model_pb2.MODEL_STATE_UNAVAILABLE, lane.failed)
        log.error("model failed", model=lane.name, reason=lane.failed)

    def _set(self, alias: str, state: model_pb2.ModelState, reason: str, loaded: Engine | None = None) -> None:
        self._entries[alias] = replace(self._entries[alias], state=state, reason=reason, engine=loaded)
        serving = loaded is not None
        self._telemetry.metrics.gauge(f"{self._telemetry.prefix}_model_serving", alias).set(serving)
        self._health.set(f"model/{alias}", serving=serving, reason=reason)
        some = any(entry.engine is not None for entry in self._entries.values())
        for name in ("", self._service):
            self._health.set(name, serving=some, reason="no model answers")

    def readiness(self) -> tuple[bool, dict[str, object]]:
        """Return whether something can be served, and the report for GET /health/ready."""
        ready = [entry for entry in self._entries.values() if entry.engine is not None]
        status = "ok" if len(ready) == len(self._entries) else "degraded" if ready else "unavailable"
        models = [
            {"name": entry.alias, "status": "unavailable" if entry.engine is None else "ok", "reason": entry.reason}
            for entry in self.entries
        ]
        return bool(ready), {"status": status, "models": models}


def _chosen(settings: WorkerSettings, cards: dict[str, ModelCard], task: str) -> list[str]:
    names = (*settings.model_name, *settings.model_mapping.values())
    chosen = list(dict.fromkeys(_resolve(name, cards, task) for name in names))
    if not chosen:
        raise ConfigError(f"no model is named; name one of {settings.models_path}: {', '.join(cards)}")
    return chosen


def _resolve(name: str, cards: dict[str, ModelCard], task: str) -> str:
    """Return the alias for an alias or a served name."""
    if name in cards and cards[name].task == task:
        return name
    found = [alias for alias, card in cards.items() if card.served_name == name and card.task == task]
    if not found:
        known = ", ".join(alias for alias, card in cards.items() if card.task == task) or "none"
        raise ConfigError(f"model {name!r} is not in the catalogue for {_TASKS[task]}; there are: {known}")
    return found[0]


def _progress(label: str, done_bytes: int, total_bytes: int | None) -> None:
    log.debug("fetching", what=label, done_bytes=done_bytes, total_bytes=total_bytes)
