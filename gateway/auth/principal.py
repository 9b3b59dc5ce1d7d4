"""Who is calling, once that is known."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller.

    Args:
        name: What it is called in logs and metrics.
        models: The aliases it may call; empty means all.
        expires: When its key stops working, in Unix seconds. None: never.
    """

    name: str
    models: frozenset[str] = frozenset()
    expires: float | None = None

    def may_call(self, alias: str) -> bool:
        """Tell whether it may call a model."""
        return not self.models or alias in self.models


ANONYMOUS = Principal("anonymous")
