"""What is right in each file and leads nowhere in another: a key for a model that has no route, a limit for a caller who has no key.

Routes of which none is enabled lead nowhere, too. None of it is a reason to refuse the files: routes, keys and limits may be written one
after the other, and by different people.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quadrate.config.rate_limits import without_owner

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quadrate.config.auth import AuthFile
    from quadrate.config.rate_limits import Limit, RateLimitsFile
    from quadrate.config.routing import RoutingFile


NOTHING_ENABLED = "no model is enabled, so nothing can be served: add one to embeddings or rerank, or enable one that is there"
_NO_ROUTE = "no route has this as its `model`: correct it, or add the route"


def loose_ends(routing: RoutingFile, auth: AuthFile, limits: RateLimitsFile) -> tuple[str, ...]:
    """Return a sentence for each, without any key."""
    aliases = frozenset(route.model for route in (*routing.embeddings, *routing.rerank))
    return (*_of_routes(routing), *_of_keys(auth, aliases), *_of_limits(limits, aliases), *_of_callers(limits, auth))


def _of_routes(routing: RoutingFile) -> Iterator[str]:
    if not routing.enabled:
        yield f"routing.yaml: {NOTHING_ENABLED}"


def _of_keys(auth: AuthFile, aliases: frozenset[str]) -> Iterator[str]:
    for key in auth.api_keys:
        if unknown := sorted(set(key.models) - aliases):
            yield f"auth.yaml: {key.principal} may call {', '.join(unknown)}; {_NO_ROUTE}"


def _of_limits(limits: RateLimitsFile, aliases: frozenset[str]) -> Iterator[str]:
    named = {"default": limits.default, "anonymous": limits.anonymous}
    named |= {f"entry {place} of per_api_key": limit for place, limit in enumerate(limits.per_api_key.values(), 1)}
    for name, limit in named.items():
        if unknown := sorted(_models(limit) - aliases):
            yield f"rate_limits.yaml: {name} limits {', '.join(unknown)}; {_NO_ROUTE}"


def _models(limit: Limit | None) -> set[str]:
    return set(limit.models) if limit is not None else set()


def _of_callers(limits: RateLimitsFile, auth: AuthFile) -> Iterator[str]:
    if auth.jwt is not None:  # entries may name callers by token
        return
    for place in without_owner(limits, auth):
        yield f"rate_limits.yaml: entry {place} of per_api_key is no key of auth.yaml, and no name of one: correct it, or take it out"
