"""How models come into a worker that runs, are replaced, and go.

Loads go on one after another, in order of arrival, so that each one sees what memory is left. The old engine of an alias answers until
the new one has proven itself; then one assignment on the event loop switches, and what the old one has begun it finishes. *Two loads of
one alias*: the second joins the first while that has not begun, and otherwise follows it, since the catalogue may have changed meanwhile.
*Unloading while it loads*: the model goes at once, and the load ends in an error when its thread comes back; nothing of it stays.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quadrate.config import lock
from quadrate.errors import ConfigError, LoadFailed, ModelNotFound, QuadrateError, StoreError
from quadrate.runtime import engine as engines
from quadrate.runtime import memory, store
from quadrate.runtime.engine import Engine
from quadrate.telemetry import log
from quadrate.worker.catalogue import TASKS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from quadrate.config.models import ModelCard
    from quadrate.config.worker import WorkerSettings
    from quadrate.runtime.jobs import Lane
    from quadrate.runtime.scheduler import Scheduler
    from quadrate.runtime.sessions import Session
    from quadrate.telemetry import Telemetry
    from quadrate.worker.catalogue import Catalogue

FETCHED, BUILT = 0.6, 0.9
"""How much of loading is done when the files are here, and when the sessions are open."""
LINGER_SECONDS = 5.0
"""How long an engine whose tokenizer is another than its successor's takes requests: gateways learn of a change within a second or two."""
STEP_SECONDS = 0.2
"""How often progress is told."""
MIB = 2**20


class Load:
    """One model on its way in. `error` says why it failed, once it is `done`."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.done = asyncio.Event()
        self.error: LoadFailed | ModelNotFound | None = None
        self.is_misconfigured = False
        """Whether trying again would not help."""
        self.is_unwanted = False
        """Whether it was unloaded meanwhile."""

    async def steps(self) -> AsyncIterator[None]:
        """Give a moment to look at its progress now and then until it is done. Raises LoadFailed, ModelNotFound."""
        while not self.done.is_set():
            yield
            try:
                await asyncio.wait_for(self.done.wait(), STEP_SECONDS)
            except TimeoutError:
                continue
        if self.error is not None:
            raise self.error
        yield


@dataclass(frozen=True, slots=True, eq=False)
class _Leaving:
    """What is left of an engine that takes no new requests."""

    alias: str
    lane: Lane
    session: Session
    weight_bytes: int
    unused: asyncio.Event
    """Set when nobody holds the engine any more, so that no request can come to its lane."""

    @classmethod
    def of(cls, engine: Engine) -> _Leaving:
        unused, loop = asyncio.Event(), asyncio.get_running_loop()
        weakref.finalize(engine, _set, loop, unused).atexit = False
        return cls(engine.model.alias, engine.lane, engine.model.session, engine.model.weight_bytes, unused)


class Loader:
    """Loads and unloads the models of a catalogue.

    Args:
        catalogue: What it keeps true.
        settings: The worker's.
        task: `embed` or `rerank`.
        telemetry: Where loads are counted and traced.
    """

    def __init__(self, catalogue: Catalogue, settings: WorkerSettings, *, task: str, telemetry: Telemetry) -> None:
        self._catalogue = catalogue
        self._settings = settings
        self._task = task
        self._telemetry = telemetry
        self._turn = asyncio.Lock()
        self._waiting: dict[str, Load] = {}
        self._running: Load | None = None
        self._abandoned = False
        self._leaving: set[_Leaving] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.scheduler: Scheduler
        """Set before the first load."""

    @property
    def is_loading(self) -> bool:
        """Whether a thread may be busy with a load, even one that nobody waits for any more."""
        return self._abandoned or self._running is not None

    async def load_configured(self) -> list[Load]:
        """Load the models that the catalogue began with, one after another."""
        loads = [self.load(alias) for alias in self._catalogue.aliases]
        for load in loads:
            await load.done.wait()
        return loads

    def load(self, alias: str) -> Load:
        """Begin to load a model of the catalogue file as it is now, or to load it again. What comes of it is told by the Load."""
        load = self._waiting.get(alias)
        if load is None:
            load = self._waiting[alias] = Load(alias)
            self._spawn(self._take_turn(load))
        return load

    async def unload(self, alias: str) -> None:
        """Drop a model, and return when its memory was given back. Requests that it has begun are finished. Raises ModelNotFound."""
        loads = [load for load in (self._waiting.pop(alias, None), self._running) if load is not None and load.alias == alias]
        for load in loads:
            load.is_unwanted = True
        if self._catalogue.find(alias) is None:
            if loads:
                return
            known = ", ".join(entry.alias for entry in self._catalogue.entries) or "none"
            raise ModelNotFound(f"This worker has no model {alias!r} loaded. It has {known}.", param="model")
        engine = self._catalogue.drop(alias).engine
        log.info("model unloaded", model=alias)
        if engine is not None:
            leaving = _Leaving.of(engine)
            del engine
            await asyncio.shield(self._spawn(self._retire(leaving)))

    async def close(self) -> None:
        """Stop what is under way. A thread that fetches or builds goes on until its step is done."""
        self._abandoned = self.is_loading
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _take_turn(self, load: Load) -> None:
        async with self._turn:
            if self._waiting.get(load.alias) is load:
                del self._waiting[load.alias]
            self._running = load
            try:
                await self._load(load)
            except ModelNotFound as error:
                self._fail(load, str(error), is_misconfigured=True)
                load.error = error
            except (ConfigError, StoreError, QuadrateError) as error:
                self._fail(load, str(error), is_misconfigured=isinstance(error, ConfigError))
            except Exception as error:  # noqa: BLE001 - whatever a library raised, a model must not stay "loading" for ever
                self._fail(load, f"loading raised {type(error).__name__}: {error}", is_misconfigured=False)
            finally:
                self._running = None
                load.done.set()

    def _fail(self, load: Load, reason: str, *, is_misconfigured: bool) -> None:
        reason = reason.removeprefix(f"{load.alias}: ")  # as the store begins its sentences
        log.error("model cannot be served", model=load.alias, reason=reason)
        load.is_misconfigured = is_misconfigured
        load.error = LoadFailed(f"{load.alias} was not loaded: {reason}", param="model")
        if not load.is_unwanted:
            self._catalogue.give_up(load.alias, reason)

    def _card(self, alias: str) -> ModelCard:
        """Return the card as the catalogue file has it now. Raises ModelNotFound, ConfigError."""
        cards = lock.load(self._settings.models_path).models
        card = cards.get(alias)
        if card is None or card.task != self._task:
            known = ", ".join(name for name, card in cards.items() if card.task == self._task) or "none"
            where = f"{self._settings.models_path} has no {TASKS[self._task]} model {alias!r}"
            raise ModelNotFound(f"{where}; there are: {known}.", param="model")
        return card

    async def _load(self, load: Load) -> None:
        started, started_ns = time.monotonic(), time.time_ns()
        _refuse_unwanted(load)
        card = await asyncio.to_thread(self._card, load.alias)
        _refuse_unwanted(load)
        self._catalogue.begin(load.alias, card)
        engine = await self._build(load, card)
        try:
            await engine.prove()
            _refuse_unwanted(load)
        except BaseException:
            leaving = _Leaving.of(engine)
            del engine
            self._spawn(self._retire(leaving))
            raise
        before = self._catalogue.switch(load.alias, engine)
        if before is not None:
            self._spawn(self._linger(load.alias, before, reads_alike=before.model.tokenizer.sha256 == engine.model.tokenizer.sha256))
        self._note(engine, time.monotonic() - started, started_ns)

    async def _build(self, load: Load, card: ModelCard) -> Engine:
        """Get the files and open the sessions, within the memory budget."""
        progress = _Fetching(functools.partial(self._progressed, load.alias), asyncio.get_running_loop())
        stored = await asyncio.to_thread(store.ensure, load.alias, card, progress=progress)
        _refuse_unwanted(load)
        self._catalogue.progress(load.alias, FETCHED)
        self._refuse_what_does_not_fit(load.alias, await asyncio.to_thread(store.weight_bytes, stored.path, graph=card.graph))
        model = await asyncio.to_thread(engines.load, load.alias, card, stored, self._settings)
        self._catalogue.progress(load.alias, BUILT)
        return Engine(model, self.scheduler)

    def _progressed(self, alias: str, part: float) -> None:
        self._catalogue.progress(alias, FETCHED * part)

    def _refuse_what_does_not_fit(self, alias: str, needed_bytes: int) -> None:
        """Raise ConfigError if a model would take more than the budget leaves."""
        budget = self._settings.memory_budget_mib
        if budget is None:
            return
        held = {entry.alias: entry.engine.model.weight_bytes for entry in self._catalogue.entries if entry.engine is not None}
        leaving = sum(one.weight_bytes for one in self._leaving)
        left = budget * MIB - sum(held.values()) - leaving
        if needed_bytes <= left:
            return
        again = f" Loading it again needs room for both; unload {alias} first if it may be away meanwhile." if alias in held else ""
        name = f"{self._settings.model_config.get('env_prefix', '')}MEMORY_BUDGET_MIB"
        loaded = ", ".join(f"{other} {_mib(size)}" for other, size in held.items()) or "nothing"
        raise ConfigError(
            f"its weights take about {_mib(needed_bytes)} MiB, and {_mib(max(0, left))} of {name}={budget} are left "
            f"(loaded, in MiB: {loaded}).{again} Unload a model, or raise {name}."
        )

    def _note(self, engine: Engine, seconds: float, started_ns: int) -> None:
        model, metrics, prefix = engine.model, self._telemetry.metrics, self._telemetry.prefix
        self._telemetry.traces.single("load model", started_ns, time.time_ns(), {"quadrate.model": model.alias})
        metrics.gauge(f"{prefix}_model_load_seconds", model.alias).set(seconds)
        metrics.gauge(f"{prefix}_model_memory_bytes", model.alias).set(model.weight_bytes)
        facts = {"revision": model.revision, "provider": model.session.provider, "seconds": round(seconds, 3)}
        log.info("model ready", model=model.alias, max_tokens=model.facts.max_tokens, memory_mib=_mib(model.weight_bytes), **facts)

    async def _linger(self, alias: str, engine: Engine, *, reads_alike: bool) -> None:
        """Let go of an engine that has a successor, once no caller can come with ids that only it can read."""
        if not reads_alike:
            await asyncio.sleep(LINGER_SECONDS)
            self._catalogue.forget_former(alias, engine)
        leaving = _Leaving.of(engine)
        del engine
        await self._retire(leaving)

    async def _retire(self, leaving: _Leaving) -> None:
        """Close a session when the last request that uses it has ended, and give its memory back."""
        self._leaving.add(leaving)
        try:
            await _wait(leaving.unused)
            while self.scheduler.busy(leaving.lane):  # noqa: ASYNC110 - what a cancelled caller had begun ends on a thread, unannounced
                await asyncio.sleep(STEP_SECONDS / 4)
            leaving.session.close()
            await asyncio.to_thread(memory.give_back)
            log.info("model closed", model=leaving.alias, memory_mib=_mib(leaving.weight_bytes))
        finally:
            self._leaving.discard(leaving)


class _Fetching:
    """A store's progress as a part of the whole, from any thread, told no more often than needed.

    Args:
        tell: Called on the loop's thread with a part from 0 to 1.
        loop: The event loop.
    """

    def __init__(self, tell: Callable[[float], None], loop: asyncio.AbstractEventLoop) -> None:
        self._tell = tell
        self._loop = loop
        self._files: dict[str, tuple[int, int]] = {}
        self._told = time.monotonic()

    def __call__(self, label: str, done_bytes: int, total_bytes: int | None) -> None:
        """See Progress."""
        self._files[label] = (done_bytes, total_bytes or 0)
        now = time.monotonic()
        whole = sum(total for _, total in self._files.values())
        if whole and now - self._told >= STEP_SECONDS:
            self._told = now
            self._loop.call_soon_threadsafe(self._tell, sum(done for done, _ in self._files.values()) / whole)


def _refuse_unwanted(load: Load) -> None:
    if load.is_unwanted:
        raise LoadFailed("it was unloaded while it loaded; load it again if it is wanted", param="model")


async def _wait(unused: asyncio.Event) -> None:
    """Wait for an event of a finalizer. An engine in a cycle, such as a failed request leaves behind, has to be collected."""
    while not unused.is_set():
        try:
            await asyncio.wait_for(unused.wait(), 1.0)
        except TimeoutError:
            gc.collect()


def _set(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(event.set)


def _mib(size_bytes: int) -> int:
    return round(size_bytes / MIB)
