"""What `quadrate models pull` has locked: each hub model's commit and the hashes of its files, in `models.lock.json` beside models.yaml.

A card that names no revision means "the one that was locked": what is served changes when somebody pulls again, never by itself. The
lock is made to be committed with models.yaml. `QUADRATE_MODELS_LOCK_PATH` puts it elsewhere, for folders that cannot be written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import pydantic

from quadrate.config import yamlfile
from quadrate.config.models import Alias, HubSource, InnerPath, ModelCard, ModelsFile, Sha256
from quadrate.config.yamlfile import Schema
from quadrate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic_core import ErrorDetails

VARIABLE = "QUADRATE_MODELS_LOCK_PATH"


class Locked(Schema):
    """One hub model as it was when it was pulled."""

    repository: str
    revision: Annotated[str, pydantic.StringConstraints(pattern=r"^[0-9a-f]{40}$")]
    files: dict[InnerPath, Sha256]


class LockFile(Schema):
    """All of them, by alias."""

    models: dict[Alias, Locked] = pydantic.Field(default_factory=dict)


def path_of(models_path: Path) -> Path:
    """Return where the lock of a catalogue lies."""
    given = os.environ.get(VARIABLE)
    return Path(given).expanduser().absolute() if given else models_path.parent / "models.lock.json"


def read(path: Path) -> LockFile:
    """Return a lock; an empty one if there is no file. Raises ConfigError for a damaged one."""
    if not path.exists():
        return LockFile()
    try:
        return LockFile.model_validate_json(path.read_bytes())
    except (OSError, pydantic.ValidationError) as exc:
        said = _fault(exc.errors()[0]) if isinstance(exc, pydantic.ValidationError) else exc.strerror
        raise ConfigError(f"{path}: cannot be used: {said}; restore it, or delete it and run `quadrate models pull` again.") from exc


def _fault(error: ErrorDetails) -> str:
    where = ".".join(map(str, error["loc"]))
    return f"{where}: {error['msg']}" if where else error["msg"]


def load(models_path: Path) -> ModelsFile:
    """Return the catalogue with what is locked put into its cards, and the paths of golden vectors made absolute.

    Raises ConfigError if the catalogue or its lock cannot be used.
    """
    file = yamlfile.load(models_path, ModelsFile)
    locks = read(path_of(models_path)).models
    folder = models_path.absolute().parent
    return ModelsFile(models={alias: _completed(card, locks.get(alias), folder) for alias, card in file.models.items()})


def put(path: Path, alias: str, locked: Locked) -> bool:
    """Lock a model; the others stay as they are. Returns whether that changed the file.

    Raises ConfigError if it cannot be written.
    """
    try:
        with _alone(path.parent):
            before = read(path)
            after = LockFile(models=dict(sorted({**before.models, alias: locked}.items())))
            if after == before:
                return False
            new = path.with_name(f".{path.name}.new")
            new.write_text(after.model_dump_json(indent=2) + "\n", encoding="utf-8")
            new.replace(path)
    except OSError as exc:
        raise _not_writable(path, exc.strerror or type(exc).__name__) from exc
    return True


def check_writable(path: Path) -> None:
    """Raise ConfigError if a lock cannot be written, before anything is fetched that it would have to name."""
    if not os.access(path.parent, os.W_OK):
        raise _not_writable(path, os.strerror(errno.EACCES) if path.parent.is_dir() else os.strerror(errno.ENOENT))


def _not_writable(path: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"{path}: cannot be written: {reason}. It holds the revisions and hashes of the models that were pulled; make its folder "
        f"writable, work on a copy of the configuration folder with --config, or name another file by {VARIABLE}."
    )


def _completed(card: ModelCard, locked: Locked | None, folder: Path) -> ModelCard:
    changes: dict[str, object] = {}
    if card.golden:
        changes["golden"] = str(folder / card.golden)
    source = card.source
    if isinstance(source, HubSource) and locked and locked.repository == source.repository and source.revision in ("", locked.revision):
        changes["source"] = source.model_copy(update={"revision": locked.revision})
        changes["files"] = card.files or locked.files
    return card.model_copy(update=changes) if changes else card


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from changing a lock in this folder meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
