"""How a download tells how far it is, without knowing who watches."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called again and again while files arrive."""

    def __call__(self, label: str, done_bytes: int, total_bytes: int | None) -> None:
        """Tell that `done_bytes` of `label` are here; `total_bytes` is None while the whole is not known."""


def silent(label: str, done_bytes: int, total_bytes: int | None) -> None:
    """Watch nothing: the default where no person looks on."""
