"""The models of one worker: their names, their states, and the engines that answer for them.

loading ──(files got, sessions open, canary and golden vectors right)──► ready ──(a run failed or is stuck)──► unavailable, and the
   │                                                                     │   ▲                                   process leaves
   └──(cannot be had or cannot be served right)──► unavailable           └───┘ loaded again: the old one answers until the new one
                                                                               has proven itself, or for good if it does not

`quadrate.worker.loading` moves models from state to state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from quadrate.config import lock
from quadrate.errors import ConfigError, ModelNotFound, Unavailable
from quadrate.inputs import of_another_tokenizer
from quadrate.telemetry import log
from quadrate.v1 import model_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from quadrate.config.models import ModelCard
    from quadrate.config.worker import WorkerSettings
    from quadrate.health import Health
    from quadrate.runtime.engine import Engine
    from quadrate.runtime.jobs import Lane
    from quadrate.telemetry import Telemetry

TASKS = {"embed": "embedding", "rerank": "reranking"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One model.

    Attributes:
        alias: Its name here.
        card: What the catalogue says.
        state: Whether it can be called.
        reason: Why it is in that state, or what became of the last try to load it again.
        engine: What answers, exactly while the state is READY.
        former: What answered before, as long as callers may come with token ids that were made by its tokenizer.
        progress: How much of loading is done, from 0 to 1; None while it is not being loaded.
    """

    alias: str
    card: ModelCard
    state: model_pb2.ModelState = model_pb2.MODEL_STATE_LOADING
    reason: str = "loading"
    engine: Engine | None = None
    former: Engine | None = None
    progress: float | None = None


class Catalogue:
    """The models that the settings name, and those that were added. Belongs to the event loop.

    Raises ConfigError if the file cannot be read, or does not have them, or they are for another task.
    """

    def __init__(self, settings: WorkerSettings, *, task: str, service: str, health: Health, telemetry: Telemetry) -> None:
        self._settings = settings
        self._task = task
        self._service = service
        self._health = health
        self._telemetry = telemetry
        cards = lock.load(settings.models_path).models
        chosen = _chosen(settings, cards, task)
        self._entries = {alias: Entry(alias, cards[alias]) for alias in chosen}
        self._mapping = {name: resolve(alias, cards, task) for name, alias in settings.model_mapping.items()}
        self._names: dict[str, str] = {}
        self._name()
        for name in ("", service, *(f"model/{alias}" for alias in chosen)):
            health.set(name, serving=False, reason="loading")
        health.set("quadrate.v1.ModelService", serving=True)

    @property
    def entries(self) -> Sequence[Entry]:
        """All models, by alias."""
        return sorted(self._entries.values(), key=lambda entry: entry.alias)

    @property
    def aliases(self) -> Sequence[str]:
        """All models, in the order in which they came."""
        return tuple(self._entries)

    def entry(self, name: str) -> Entry:
        """Return a model by alias or served name. Raises ModelNotFound."""
        alias = self._names.get(name)
        if alias is None:
            known = ", ".join(entry.alias for entry in self.entries) or "none"
            raise ModelNotFound(f"This worker serves no {TASKS[self._task]} model of this name. It serves {known}.", param="model")
        return self._entries[alias]

    def engine(self, name: str, *, read_by: str = "") -> Engine:
        """Return a model that can run now.

        Args:
            name: Its alias or served name.
            read_by: The SHA-256 of the tokenizer that the request's token ids were made by; empty if that is not to be compared.

        Raises:
            ModelNotFound: There is none of this name.
            Unavailable: It does not answer now, or reads by another tokenizer.
        """
        entry = self.entry(name)
        if entry.engine is None:
            raise Unavailable(f"The model {entry.alias} does not answer yet: {entry.reason}. Try again.", retry_after_seconds=1.0)
        if not read_by or read_by == entry.engine.model.tokenizer.sha256:
            return entry.engine
        if entry.former is not None and read_by == entry.former.model.tokenizer.sha256:
            return entry.former
        raise of_another_tokenizer(entry.alias)

    # What `loading` does with them.

    def find(self, alias: str) -> Entry | None:
        """Return a model by alias."""
        return self._entries.get(alias)

    def begin(self, alias: str, card: ModelCard) -> None:
        """State that a model is being loaded. One that answers goes on with its own card.

        Raises ConfigError if the card's name is that of another model here.
        """
        for entry in self._entries.values():
            if entry.alias != alias and {card.served_name, alias} & {entry.alias, entry.card.served_name}:
                raise ConfigError(f"{alias} shares a name with {entry.alias}, which is loaded here. Load or unload that one first.")
        before = self._entries.get(alias)
        if before is not None and before.engine is not None:
            self._put(replace(before, progress=0.0))
        else:
            self._put(Entry(alias, card, progress=0.0))

    def progress(self, alias: str, part: float) -> None:
        """State how much of loading is done."""
        entry = self._entries.get(alias)
        if entry is not None and entry.progress is not None:
            self._entries[alias] = replace(entry, progress=max(entry.progress, min(1.0, part)))

    def switch(self, alias: str, engine: Engine) -> Engine | None:
        """Let a model answer that has proven itself; return the one that answered before."""
        before = self._entries[alias].engine
        reads_otherwise = before is not None and before.model.tokenizer.sha256 != engine.model.tokenizer.sha256
        former = before if reads_otherwise else None
        self._put(Entry(alias, engine.model.card, model_pb2.MODEL_STATE_READY, "", engine, former))
        return before

    def forget_former(self, alias: str, engine: Engine) -> None:
        """Send nothing more to an engine that answered before."""
        entry = self._entries.get(alias)
        if entry is not None and entry.former is engine:
            self._entries[alias] = replace(entry, former=None)

    def give_up(self, alias: str, reason: str) -> None:
        """State that a model could not be loaded; one that answers goes on. One that was never there still is not."""
        entry = self._entries.get(alias)
        if entry is None:
            return
        if entry.engine is not None:
            self._put(replace(entry, reason=f"it could not be loaded again: {reason}", progress=None))
        else:
            self._put(replace(entry, state=model_pb2.MODEL_STATE_UNAVAILABLE, reason=reason, progress=None))

    def drop(self, alias: str) -> Entry:
        """Take a model out and return it."""
        entry = self._entries.pop(alias)
        self._name()
        self._telemetry.metrics.gauge(f"{self._telemetry.prefix}_model_serving", alias).set(0)
        self._telemetry.metrics.gauge(f"{self._telemetry.prefix}_model_memory_bytes", alias).set(0)
        self._health.set(f"model/{alias}", serving=False, reason="unloaded")
        self._tell()
        return entry

    def failed(self, lane: Lane) -> bool:
        """Take note that a lane runs no more; returns whether a model answers no more for it.

        It may be that of a model that is being loaded, or was replaced: no caller depends on the first, the second has a successor.
        """
        entry = self._entries.get(lane.name)
        if entry is None or entry.engine is None or entry.engine.lane is not lane:
            log.error("a model that is not serving failed", model=lane.name, reason=lane.failed)
            return False
        self._put(replace(entry, state=model_pb2.MODEL_STATE_UNAVAILABLE, reason=lane.failed, engine=None))
        log.error("model failed", model=lane.name, reason=lane.failed)
        return True

    def readiness(self) -> tuple[bool, dict[str, object]]:
        """Return whether something can be served, and the report for GET /health/ready."""
        ready = [entry for entry in self._entries.values() if entry.engine is not None]
        status = "unavailable" if not ready else "ok" if len(ready) == len(self._entries) else "degraded"
        models = [
            {"name": entry.alias, "status": "unavailable" if entry.engine is None else "ok", "reason": entry.reason}
            for entry in self.entries
        ]
        return bool(ready), {"status": status, "models": models}

    def _put(self, entry: Entry) -> None:
        self._entries[entry.alias] = entry
        self._name()
        serving = entry.engine is not None
        self._telemetry.metrics.gauge(f"{self._telemetry.prefix}_model_serving", entry.alias).set(serving)
        self._health.set(f"model/{entry.alias}", serving=serving, reason=entry.reason)
        self._tell()

    def _name(self) -> None:
        names = {entry.card.served_name: alias for alias, entry in self._entries.items()}
        names.update({name: alias for name, alias in self._mapping.items() if alias in self._entries})
        self._names = {**names, **{alias: alias for alias in self._entries}}

    def _tell(self) -> None:
        some = any(entry.engine is not None for entry in self._entries.values())
        for name in ("", self._service):
            self._health.set(name, serving=some, reason="no model answers")


def _chosen(settings: WorkerSettings, cards: Mapping[str, ModelCard], task: str) -> list[str]:
    names = (*settings.model_name, *settings.model_mapping.values())
    chosen = list(dict.fromkeys(resolve(name, cards, task) for name in names))
    if not chosen:
        raise ConfigError(f"no model is named; name one of {settings.models_path}: {', '.join(cards)}")
    return chosen


def resolve(name: str, cards: Mapping[str, ModelCard], task: str) -> str:
    """Return the alias for an alias or a served name. Raises ConfigError if the catalogue has none for the task."""
    if name in cards and cards[name].task == task:
        return name
    found = [alias for alias, card in cards.items() if card.served_name == name and card.task == task]
    if not found:
        known = ", ".join(alias for alias, card in cards.items() if card.task == task) or "none"
        raise ConfigError(f"model {name!r} is not in the catalogue for {TASKS[task]}; there are: {known}")
    return found[0]
