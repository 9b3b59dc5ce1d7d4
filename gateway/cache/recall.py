"""The way to a worker past what is known: only the rest of a request goes there, and only that is charged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.cache import embeddings, scores
from gateway.cache.cache import HEADER, Wish, wish
from gateway.cache.keys import is_made_by
from quadrate.errors import Internal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.cache.cache import Cache
    from gateway.dispatch import Dispatch
    from gateway.upstreams.errand import Errand
    from gateway.upstreams.pool import Pool
    from quadrate.server import Call

_KINDS = {"embed": embeddings, "rerank": scores}


class Recall:
    """Answers errands from what is known, and by workers."""

    def __init__(self, dispatch: Dispatch, cache: Cache) -> None:
        self._dispatch = dispatch
        self._cache = cache

    async def send(self, pool: Pool, errand: Errand, call: Call) -> Any:
        """Return the answer, as a worker gives it. Raises QuadrateError; then nothing was charged."""
        keys = self._cache.keys(errand)
        if keys is None:
            return await self._dispatch.send(pool, errand, call)
        wanted = wish(call)
        if wanted is Wish.NONE:
            return await self._dispatch.send(pool, errand, call)
        found: list[bytes | None] = [None] * len(keys)
        if wanted is Wish.USE:
            found = await self._cache.find(pool.alias, keys)
        missing = [place for place, value in enumerate(found) if value is None]
        if len(missing) < len(keys):
            call.log["cache"] = told = "partial" if missing else "hit"
            call.headers.append((HEADER, told))
        return await self._complete(pool, errand, call, keys, found, missing)

    async def _complete(
        self, pool: Pool, errand: Errand, call: Call, keys: Sequence[bytes], found: list[bytes | None], missing: Sequence[int]
    ) -> Any:
        """Let a worker answer what is missing, keep that, and put all together."""
        kind = _KINDS[errand.method]
        rest = kind.narrow(errand, missing) if errand.method == "rerank" or len(missing) < len(keys) else errand
        if not missing:
            await self._dispatch.charge(pool, rest, call)
            known = kind.together(found, errand)
            known.timings.queue_seconds = known.timings.inference_seconds = 0.0
            return known
        answer = await self._dispatch.send(pool, rest, call)
        values = kind.apart(answer)
        if len(values) != len(missing):
            raise Internal(f"A worker answered {len(values)} items to {len(missing)}.")
        if is_made_by(answer.provenance, errand.read_by.card):
            self._cache.keep({keys[place]: value for place, value in zip(missing, values, strict=True)})
        if rest is errand:
            return answer
        for place, value in zip(missing, values, strict=True):
            found[place] = value
        whole = kind.together(found, errand)
        whole.timings.CopyFrom(answer.timings)
        return whole
