"""What is known already: looked for by key, here and at the store that gateways share; and what a caller may say about it."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Literal

from gateway.cache import keys
from gateway.cache.memory import Memory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.cache.shared import Shared
    from gateway.upstreams.errand import Errand
    from gateway.upstreams.pool import Pool
    from quadrate.server import Call
    from quadrate.telemetry import Metrics

HEADER = "x-quadrate-cache"
"""What an answer says of itself: `hit` or `partial`. Absent where all of it was computed: headers go ahead of their answer, in a message of
their own, and an edge whose gateway is lost between the two cannot ask another one."""


class Wish(Enum):
    """What `cache-control` asks for (RFC 9111, section 5.2.1)."""

    USE = "use"
    RENEW = "no-cache"
    """Compute it, and keep what comes."""
    NONE = "no-store"
    """Neither look nor keep."""


class Cache:
    """Answers by key, bounded in memory.

    Args:
        metrics: Gets `router_cache_*`.
        max_bytes: The most that this process keeps; 0: it keeps and looks for nothing.
        scope: `mesh`: who asks does not matter. `key`: each API key has answers of its own, so that nobody can tell by the time of an
            answer what another one asked.
        shared: The store of all gateways, if there is one.
    """

    def __init__(self, metrics: Metrics, *, max_bytes: int, scope: Literal["mesh", "key"] = "mesh", shared: Shared | None = None) -> None:
        self._memory = Memory(max_bytes)
        self._scope = scope
        self._shared = shared
        self._metrics = metrics
        if max_bytes:
            metrics.gauge("router_cache_bytes").set_function(lambda: float(self._memory.bytes))
            metrics.gauge("router_cache_entries").set_function(lambda: float(len(self._memory)))

    def keys(self, errand: Errand) -> list[bytes] | None:
        """Return the key of each text or document, in order; None where nothing may be kept."""
        if not self._memory.max_bytes or errand.in_text:
            return None
        model = keys.maker(errand.read_by.card, scope=errand.principal.name if self._scope == "key" else "")
        if model is None:
            return None
        request = errand.request
        return list(keys.of_texts(model, request) if errand.method == "embed" else keys.of_documents(model, request))  # type: ignore[arg-type] # by method

    def may_know(self, pool: Pool, call: Call) -> bool:
        """Whether answers of a model may be known for a call."""
        return bool(self._memory.max_bytes) and wish(call) is Wish.USE and keys.maker(pool.facts.card) is not None

    async def find(self, model: str, wanted: Sequence[bytes]) -> list[bytes | None]:
        """Return what is known under each key."""
        found = [self._memory.get(key) for key in wanted]
        if self._shared is not None and None in found:
            await self._ask(wanted, found)
        hits = len(found) - found.count(None)
        if hits:
            self._metrics.counter("router_cache_hits_total", model).inc(hits)
        if hits < len(found):
            self._metrics.counter("router_cache_misses_total", model).inc(len(found) - hits)
        return found

    def keep(self, entries: Mapping[bytes, bytes]) -> None:
        """Remember values, and let the other gateways know them."""
        gone = sum(self._memory.put(key, value) for key, value in entries.items())
        if gone:
            self._metrics.counter("router_cache_evictions_total").inc(gone)
        if self._shared is not None:
            self._shared.put(entries)

    async def _ask(self, wanted: Sequence[bytes], found: list[bytes | None]) -> None:
        """Put into `found` what the other gateways know of what is missing there."""
        assert self._shared is not None  # noqa: S101 - callers looked
        places = [place for place, value in enumerate(found) if value is None]
        for place, value in zip(places, await self._shared.get([wanted[place] for place in places]), strict=True):
            if value is not None:
                found[place] = value
                self._memory.put(wanted[place], value)


def wish(call: Call) -> Wish:
    """Return what a caller says of cached answers. Directives that we do not know are none of our business, as the RFC wants."""
    said = call.metadata.get("cache-control")
    if not said:
        return Wish.USE
    directives = {directive.strip().lower() for directive in said.split(",")}
    if Wish.NONE.value in directives:
        return Wish.NONE
    return Wish.RENEW if directives & {Wish.RENEW.value, "max-age=0"} else Wish.USE
