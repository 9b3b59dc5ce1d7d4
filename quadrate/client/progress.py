"""A progress bar for long ingestions, on standard error; rich is imported only when one is shown."""

from __future__ import annotations

from collections.abc import Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def progress_bar(*, shown: bool, total: int | None, title: str) -> Iterator[Callable[[], None]]:
    """Give a function to call once for each item that is done. Nothing is drawn where standard error is no terminal.

    Args:
        shown: False gives a function that does nothing.
        total: How many items there will be; None draws no end.
        title: What stands before the bar.
    """
    if not shown:
        yield lambda: None
        return
    from rich.console import Console  # noqa: PLC0415 - see above
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    class Rate(TextColumn):
        """Items a second, once there is something to say."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f}/s" if task.speed else "")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(""), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)


def length(items: object) -> int | None:
    """Return how many items there are, where that is known without reading them."""
    return len(items) if isinstance(items, Sized) else None
