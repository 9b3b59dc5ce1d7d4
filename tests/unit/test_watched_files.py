"""Files that are looked at: when they are edited, and when they are done being edited."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from quadrate.config import watched
from quadrate.config.auth import AuthFile
from quadrate.config.models import ModelsFile
from quadrate.config.rate_limits import RateLimitsFile
from quadrate.config.routing import RoutingFile
from quadrate.config.watched import WatchedFiles, refuse_empty
from quadrate.config.yamlfile import load
from quadrate.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from quadrate.config.yamlfile import Schema

LOOK_SECONDS = 0.01


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file, and little patience with those who write it."""
    monkeypatch.setattr(watched, "SETTLE_SECONDS", 0.05)
    monkeypatch.setattr(watched, "MOST_SETTLING_SECONDS", 0.5)
    (tmp_path / "file.yaml").write_text("a: 1")
    return tmp_path / "file.yaml"


async def edited(files: WatchedFiles, *, or_the_same: bool = False) -> bool:
    """Wait for an edit, not for ever."""
    async with asyncio.timeout(10):
        return await files.edited(or_the_same=or_the_same)


async def test_the_first_look_finds_files_edited(path: Path) -> None:
    """What was read before may be older than what is looked at."""
    assert not await edited(WatchedFiles((path,), interval_seconds=LOOK_SECONDS))


async def test_an_edit_a_removal_and_a_return_are_edits(path: Path) -> None:
    """And nothing is, while nothing happens."""
    files = WatchedFiles((path, path.with_name("other.yaml")), interval_seconds=LOOK_SECONDS)
    await edited(files)
    for change in (lambda: path.write_text("a: 22"), path.unlink, lambda: path.write_text("a: 22"), path.with_name("other.yaml").touch):
        waiting = asyncio.create_task(edited(files))
        done, _ = await asyncio.wait([waiting], timeout=10 * LOOK_SECONDS)
        assert not done
        change()
        assert not await waiting


async def test_a_file_of_the_same_size_and_time_is_another_if_it_is_another(path: Path) -> None:
    """A deployment may put files of the same time in each other's place."""
    files = WatchedFiles((path,), interval_seconds=LOOK_SECONDS)
    await edited(files)
    other = path.with_name("next.yaml")
    other.write_text("a: 2")
    found = path.stat()
    os.utime(other, ns=(found.st_atime_ns, found.st_mtime_ns))
    other.replace(path)
    await edited(files)


async def test_a_file_that_is_being_written_is_left_until_it_rests(path: Path) -> None:
    """It is told once, when its writer is done; one whose writer never is, after a while."""
    files = WatchedFiles((path,), interval_seconds=LOOK_SECONDS)
    await edited(files)
    waiting = asyncio.create_task(edited(files))
    for size in range(8):
        path.write_text("a: 1" + size * " ")
        done, _ = await asyncio.wait([waiting], timeout=0.02)
        assert not done
    path.write_text("a: 2")
    await waiting
    assert path.read_text() == "a: 2"
    waiting = asyncio.create_task(edited(files))
    for size in range(1000):
        path.write_text("a: 1" + size * " ")
        done, _ = await asyncio.wait([waiting], timeout=0.02)
        if done:
            break
    assert waiting.done()


async def test_who_asks_is_answered_without_an_edit(path: Path) -> None:
    """With an interval of 0 it is the only way."""
    files = WatchedFiles((path,), interval_seconds=0)
    waiting = asyncio.create_task(edited(files))
    files.ask()
    assert await waiting
    path.write_text("a: 2")
    waiting = asyncio.create_task(edited(files))
    done, _ = await asyncio.wait([waiting], timeout=0.1)
    assert not done
    files.ask()
    assert await waiting


async def test_files_that_were_refused_are_looked_at_as_they_are(path: Path) -> None:
    """What they were refused for may lie elsewhere, and be mended there."""
    files = WatchedFiles((path,), interval_seconds=LOOK_SECONDS)
    await edited(files)
    assert not await edited(files, or_the_same=True)


def test_an_empty_file_is_refused(path: Path) -> None:
    """It is what a file is at first when it is written again; one that is not there is for others to refuse."""
    refuse_empty(path)
    refuse_empty(path.with_name("nothing.yaml"))
    path.write_text("")
    with pytest.raises(ConfigError, match=r"is empty; write \{\} if nothing is meant"):
        refuse_empty(path)


@pytest.mark.parametrize("schema", [RoutingFile, AuthFile, RateLimitsFile, ModelsFile])
def test_the_way_out_of_an_empty_file_is_one(schema: type[Schema], path: Path) -> None:
    """What `refuse_empty` says to write is taken for every file."""
    path.write_text("{}\n")
    refuse_empty(path)
    assert load(path, schema) == schema()
