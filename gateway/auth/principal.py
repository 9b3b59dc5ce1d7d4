"""Who is calling, once that is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from quadrate.config.auth import ANONYMOUS_NAME

if TYPE_CHECKING:
    from quadrate.config.auth import Task


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller.

    Args:
        name: What it is called in logs and metrics, and what its limits go by. Names of keys, tokens and anonymous callers never meet.
        models: The aliases it may call. None: all.
        tasks: What it may ask for. None: everything.
    """

    name: str
    models: frozenset[str] | None = None
    tasks: frozenset[Task] | None = None

    def may_call(self, alias: str) -> bool:
        """Tell whether it may call a model."""
        return self.models is None or alias in self.models

    def may_ask_for(self, task: Task) -> bool:
        """Tell whether it may ask for a task."""
        return self.tasks is None or task in self.tasks


ANONYMOUS = Principal(ANONYMOUS_NAME)
