"""Log files of the mesh's processes: bounded, and read from the end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

LIMIT_BYTES = 16 * 1024 * 1024
"""Above this a log is moved to `<name>.log.1`, so the two files of a process hold little more than twice as much."""
_TAIL_BYTES = 256 * 1024


def bound(log: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
    """Move a log that has grown over its limit aside. Its process goes on writing to the same file, which begins anew.

    Lines that are written between the copy and the cut are lost; the alternative, to pipe every line through the supervisor, costs
    it a core at full load.
    """
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > limit_bytes:
            with contextlib.suppress(OSError):  # a full disk is the last reason to let it grow on
                shutil.copyfile(log, log.with_suffix(".log.1"))
            with log.open("rb+") as file:
                file.truncate(0)


def tail(log: Path, lines: int) -> list[str]:
    """Return the last lines of a log, whole ones only; none if there is no log."""
    try:
        with log.open("rb") as file:
            text = _end_of(file, lines)
    except FileNotFoundError:
        return []
    whole = text[: text.rfind(b"\n") + 1].decode(errors="replace").split("\n")[:-1]
    return whole[len(whole) - min(lines, len(whole)) :]


def _end_of(file: BinaryIO, lines: int) -> bytes:
    """Return the end of a file that begins with a line and holds so many whole ones, or the whole file; at least _TAIL_BYTES are read."""
    size, wanted = file.seek(0, os.SEEK_END), _TAIL_BYTES
    while True:
        begin = max(0, size - wanted)
        file.seek(begin)
        text = file.read(size - begin)
        if not begin:
            return text
        text = text.partition(b"\n")[2]
        if text.count(b"\n") >= lines:
            return text
        wanted *= 4


def end(log: Path) -> int:
    """Return the place after the last whole line, where following begins."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        text = file.read()
    return size - len(text) + text.rfind(b"\n") + 1


def begin(folder: Path) -> None:
    """Move what a former run wrote aside, that of processes which there are no more included, so that the logs tell of this one."""
    for log in list(folder.glob("*.log")):
        log.replace(log.with_suffix(".log.1"))


def last_words(log: Path) -> str:
    """Return why a process of ours gave up, from its last FATAL line; empty if it said nothing of the kind."""
    for line in reversed(tail(log, 50)):
        with contextlib.suppress(ValueError, AttributeError):
            record = json.loads(line)
            if record.get("level") == "FATAL":
                return str(record.get("metadata", {}).get("reason") or record.get("message") or "")
    return ""
