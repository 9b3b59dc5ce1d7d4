"""A download's progress on a terminal; silence elsewhere."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import TaskID

    from quadrate.runtime.store import Progress


@contextlib.contextmanager
def shown() -> Iterator[Progress]:
    """Give a Progress that draws a bar for each file on a terminal, and otherwise names each file once on stderr."""
    with contextlib.ExitStack() as stack:
        yield _drawing(stack) if sys.stderr.isatty() else _naming()


def _drawing(stack: contextlib.ExitStack) -> Progress:
    """Return a Progress that draws; nothing is imported or drawn before there is something to tell."""
    bars: list[Progress] = []

    def draw(label: str, done_bytes: int, total_bytes: int | None) -> None:
        if not bars:
            bars.append(_bars(stack))
        bars[0](label, done_bytes, total_bytes)

    return draw


def _bars(stack: contextlib.ExitStack) -> Progress:
    from rich.console import Console  # noqa: PLC0415 - rich costs a tenth of a second
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    bars = stack.enter_context(Progress(*columns, console=Console(stderr=True)))
    tasks: dict[str, TaskID] = {}

    def draw(label: str, done_bytes: int, total_bytes: int | None) -> None:
        if label not in tasks:
            tasks[label] = bars.add_task(label, total=total_bytes)
        bars.update(tasks[label], completed=done_bytes, total=total_bytes)

    return draw


def _naming() -> Progress:
    """Return a Progress that says once for each file that it is being fetched."""
    told: set[str] = set()

    def name(label: str, done_bytes: int, total_bytes: int | None) -> None:  # noqa: ARG001 - the protocol's arguments
        if label not in told:
            told.add(label)
            print(f"Fetching {label}", file=sys.stderr, flush=True)

    return name
