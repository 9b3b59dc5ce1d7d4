"""Models of the Hugging Face hub, fetched by its own client.

HF_HOME, HF_HUB_CACHE, TRANSFORMERS_CACHE, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE therefore mean what they mean elsewhere: files
come out of the same cache and go into it, so a model that another program has fetched is not fetched again.
"""

from __future__ import annotations

import errno
import functools
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from tqdm.std import tqdm

from quadrate.errors import StoreError
from quadrate.runtime.store.files import git_sha1, inside, needed, place, sha256

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quadrate.config.models import HubSource, ModelCard
    from quadrate.runtime.store.progress import Progress

    _Tqdm = tqdm[Any]
else:
    _Tqdm = tqdm  # generic in its stubs alone

_FAILURES = (OSError, EntryNotFoundError, httpx2.HTTPError)
"""What the client raises when something is not to be had."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_SHA1 = re.compile(r"[0-9a-f]{40}")
_NO_ENTRY = (401, 403)


def fetch(source: HubSource, card: ModelCard, into: Path, *, offline: bool, progress: Progress) -> list[str]:
    """Put the model's files into `into` and return their names. Finished files are not fetched again after an interruption.

    Raises:
        StoreError: The hub cannot be reached, refuses, has no such thing, or serves something else than the card or it itself says;
            or there is no room.
    """
    local_only = offline or constants.HF_HUB_OFFLINE
    try:
        names = sorted(card.files) or _names(source, card.graph, local_only=local_only)
        missing = [name for name in names if not _is_cached(source, name)]
        if missing and not local_only:
            _announce(source, missing, progress)
        for name in names:
            place(_verified(source, name, card.files.get(name), local_only=local_only, progress=progress), into / name)
    except _FAILURES as exc:
        raise StoreError(_explain(exc, source, local_only=local_only)) from exc
    return names


def _announce(source: HubSource, names: Sequence[str], progress: Progress) -> None:
    """Tell the size of each file that is to be fetched, so that the whole is known from the start.

    This asks once without retries: the client would take half a minute to say that there is no network.
    """
    info = HfApi().model_info(source.repository, revision=source.revision, files_metadata=True)
    sizes = {file.rfilename: file.size for file in info.siblings or ()}
    for name in names:
        progress(name, 0, sizes.get(name))


def resolve(repository: str, revision: str | None) -> str:
    """Return the commit that a branch, a tag or (None) the main branch stands for now; offline, for when it was last fetched.

    Raises:
        StoreError: As `fetch`.
    """
    try:
        if constants.HF_HUB_OFFLINE:
            return _commit_of_cached(repository, revision or "main")
        return str(HfApi().model_info(repository, revision=revision).sha)
    except _FAILURES as exc:
        raise StoreError(_explain(exc, repository, local_only=constants.HF_HUB_OFFLINE)) from exc


def read_small(repository: str, revision: str, name: str) -> bytes:
    """Return the content of one small file, such as config.json.

    Raises:
        StoreError: As `fetch`.
    """
    try:
        return Path(hf_hub_download(repository, name, revision=revision, cache_dir=_cache())).read_bytes()
    except _FAILURES as exc:
        raise StoreError(_explain(exc, repository, local_only=constants.HF_HUB_OFFLINE)) from exc


class _Bar(_Tqdm):
    """A bar of the client's that draws nothing and hands its bytes on to a Progress."""

    monitor_interval = 0  # no thread that watches over the drawing

    def __init__(self, progress: Progress, name: str, **settings: Any) -> None:
        self._progress = progress
        self._name = name
        super().__init__(**settings)

    def update(self, n: float | None = 1) -> bool | None:
        drawn = super().update(n)
        self._progress(self._name, int(self.n), int(self.total) if self.total else None)
        return drawn

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draw nothing."""


def _cache() -> str:
    """Return the cache's folder: TRANSFORMERS_CACHE where it is set, as transformers reads it, otherwise the client's own choice."""
    return os.environ.get("TRANSFORMERS_CACHE") or constants.HF_HUB_CACHE


def _names(source: HubSource, graph: str | None, *, local_only: bool) -> list[str]:
    """Choose the files that serving needs from what the repository has, or offline from what was fetched of it."""
    if not local_only:
        listed = HfApi().list_repo_files(source.repository, revision=source.revision)
        return needed(listed, origin=f"{source.repository} at {source.revision[:12]}", graph=graph)
    config = try_to_load_from_cache(source.repository, "config.json", cache_dir=_cache(), revision=source.revision)
    if not isinstance(config, str):
        raise LocalEntryNotFoundError(source.repository)
    return needed(inside(Path(config).parent), origin=f"what is cached of {source.repository}", graph=graph)


def _is_cached(source: HubSource, name: str) -> bool:
    return isinstance(try_to_load_from_cache(source.repository, name, cache_dir=_cache(), revision=source.revision), str)


def _verified(source: HubSource, name: str, expected: str | None, *, local_only: bool, progress: Progress) -> Path:
    """Return the path of a file in the cache whose hash is right; one that is not is fetched once more."""
    get = functools.partial(
        hf_hub_download,
        source.repository,
        name,
        revision=source.revision,
        cache_dir=_cache(),
        tqdm_class=functools.partial(_Bar, progress, name),
    )
    path = Path(get(local_files_only=local_only))
    if not _is_right(path, expected) and not local_only:
        path = Path(get(force_download=True))
    if not _is_right(path, expected):
        raise StoreError(
            f"{name} of {source.repository} is corrupt: its SHA-256 is {sha256(path)}, not {expected or 'the one the hub states'}. "
            f"Remove {path} and try again; if it stays so, the hub serves another file than the model's card describes."
        )
    return path


def _is_right(path: Path, expected: str | None) -> bool:
    """Compare with the card's hash, or without one with the hash by which the hub's client names the file in its cache."""
    if expected is not None:
        return sha256(path) == expected
    stated = path.resolve().name
    if _SHA256.fullmatch(stated):
        return sha256(path) == stated
    return git_sha1(path) == stated if _GIT_SHA1.fullmatch(stated) else True


def _commit_of_cached(repository: str, revision: str) -> str:
    """Return the commit that a revision was when it was fetched; what was fetched by a commit alone, as we do, must be the only one."""
    config = try_to_load_from_cache(repository, "config.json", cache_dir=_cache(), revision=revision)
    if isinstance(config, str):
        return Path(config).parent.name
    snapshots = Path(_cache()) / repo_folder_name(repo_id=repository, repo_type="model") / "snapshots"
    commits = [path.parent.name for path in snapshots.glob("*/config.json")]
    if revision != "main" or len(commits) != 1:
        raise LocalEntryNotFoundError(repository)
    return commits[0]


def _explain(exc: Exception, source: HubSource | str, *, local_only: bool) -> str:
    """Turn what the client raised into a sentence with the way out."""
    repository = source if isinstance(source, str) else source.repository
    return f"{repository} {_refusal(exc, repository, local_only=local_only) or _failure(exc)}"


def _refusal(exc: Exception, repository: str, *, local_only: bool) -> str | None:
    """Say why there is no such thing for this user, or return None if that is not the trouble."""
    if isinstance(exc, GatedRepoError):
        return f"is gated: accept its terms at {constants.ENDPOINT}/{repository} and set HF_TOKEN to a token of that account."
    if isinstance(exc, RepositoryNotFoundError) or _status(exc) in _NO_ENTRY:
        return f"is not at {constants.ENDPOINT}, or is private: check the name, and set HF_TOKEN if it needs one."
    if isinstance(exc, RevisionNotFoundError):
        return "has no such revision: correct it, or leave it out to take the newest."
    if isinstance(exc, LocalEntryNotFoundError) and local_only:
        return "is not on this machine and fetching is switched off: unset HF_HUB_OFFLINE and QUADRATE_OFFLINE once to fetch it."
    if isinstance(exc, EntryNotFoundError) and not isinstance(exc, LocalEntryNotFoundError):
        return f"lacks a file that its card names ({_first_line(exc)}): correct `files` in models.yaml."
    return None


def _failure(exc: Exception) -> str:
    """Say what went wrong on the way."""
    if isinstance(exc, OSError) and exc.errno == errno.ENOSPC:
        return "does not fit on the disk: free some space, or point HF_HOME and QUADRATE_MODEL_STORE at a larger one."
    status = _status(exc)
    cause = f"answered {status}" if status else f"cannot be reached ({_first_line(exc.__cause__ or exc)})"
    return (
        f"cannot be fetched: {constants.ENDPOINT} {cause}. Check the network and HF_ENDPOINT, "
        "or give the model as a folder: --model ALIAS=/path/to/folder."
    )


def _status(exc: BaseException | None) -> int | None:
    """Return the HTTP status that the hub answered with, wherever it stands in the chain of causes."""
    while exc is not None:
        if isinstance(exc, HfHubHTTPError):
            return exc.response.status_code
        exc = exc.__cause__
    return None


def _first_line(exc: BaseException) -> str:
    text = str(exc).strip().splitlines()
    return text[0].strip() if text else type(exc).__name__
