"""One reading of the routing file: names to models. It never changes; a file that was edited makes a new one."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from quadrate.errors import ModelNotFound, PermissionDenied
from quadrate.shown import shown
from quadrate.v1 import model_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from gateway.auth.principal import Principal
    from gateway.upstreams.pool import Pool
    from quadrate.config.auth import Task

    MoreNames = Mapping[tuple[int, str], str]

EMBED, RERANK = model_pb2.TASK_EMBED, model_pb2.TASK_RERANK
_WHERE = {EMBED: "embeds texts: call POST /v1/embeddings or EmbedService", RERANK: "reranks: call POST /v1/rerank or RerankService"}
_TASKS: dict[int, Task] = {EMBED: "embed", RERANK: "rerank"}
_LONGEST_NAME = 100


class Table:
    """All models, by the names that requests use.

    Args:
        pools: The models.
        more_names: Names besides those of their routes, with what they stand for, as far as there is such a model.
    """

    def __init__(self, pools: Iterable[Pool], more_names: MoreNames = MappingProxyType({})) -> None:
        self.pools = tuple(pools)
        named = {(pool.task, name): pool for pool in self.pools for name in pool.route.names}
        found = {(task, name): named.get((task, target)) for (task, name), target in more_names.items()}
        self._by_name = {key: pool for key, pool in found.items() if pool is not None} | named

    def get(self, task: int, name: str) -> Pool | None:
        """Return the model of a name for a task, enabled or not."""
        return self._by_name.get((task, name))

    def find(self, task: int, name: str, principal: Principal) -> Pool:
        """Return the enabled model of a name for a task.

        Raises:
            ModelNotFound: There is none, it is switched off, or it is for another task.
            PermissionDenied: The caller may not call it, or not for this task.
        """
        pool = self._by_name.get((task, name))
        if pool is None or not pool.route.enabled:
            raise self._not_found(task, name, principal)
        self._check(pool, principal)
        return pool

    def any_task(self, name: str, principal: Principal) -> Pool:
        """As `find`, for a name alone; an embedding model goes before a reranker of the same name."""
        task = next((task for task in (EMBED, RERANK) if (task, name) in self._by_name), None)
        if task is None:
            raise _unknown(name, [pool.alias for pool in self.visible(principal, with_disabled=False)])
        return self.find(task, name, principal)

    @staticmethod
    def _check(pool: Pool, principal: Principal) -> None:
        task = _TASKS[pool.task]
        if not principal.may_ask_for(task):
            raise PermissionDenied(f"The key of this request may not {task}. Ask the operator of this service for one that may.")
        if not principal.may_call(pool.alias):
            raise PermissionDenied(f"The key of this request may not call the model '{pool.alias}'.", param="model")

    def visible(self, principal: Principal, *, with_disabled: bool) -> Iterator[Pool]:
        """Give the models that a caller may know of, ordered by name."""
        for pool in sorted(self.pools, key=lambda pool: pool.alias):
            if principal.may_call(pool.alias) and principal.may_ask_for(_TASKS[pool.task]) and (pool.route.enabled or with_disabled):
                yield pool

    def _not_found(self, task: int, name: str, principal: Principal) -> ModelNotFound:
        other = RERANK if task == EMBED else EMBED
        if (other, name) in self._by_name and (task, name) not in self._by_name:
            return ModelNotFound(f"The model '{name}' {_WHERE[other]}.", param="model")
        return _unknown(name, [pool.alias for pool in self.visible(principal, with_disabled=False) if pool.task == task])


def _unknown(name: str, served: list[str]) -> ModelNotFound:
    known = f"Models for this call: {', '.join(served)}." if served else "No model is served for this call."
    return ModelNotFound(f"The model '{shown(name, _LONGEST_NAME)}' does not exist here or is switched off. {known}", param="model")
