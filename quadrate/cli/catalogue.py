"""The models a command may use: those of a configuration folder, and those that `--model` adds."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pydantic

from quadrate.config import lock
from quadrate.config.models import FolderSource, HubSource, ModelCard, ModelsFile
from quadrate.errors import ConfigError, StoreError
from quadrate.runtime import store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Given:
    """One `--model ALIAS=SOURCE`, taken apart."""

    alias: str
    folder: Path | None
    repository: str
    revision: str | None

    @classmethod
    def parse(cls, text: str) -> Given:
        """Read `ALIAS=FOLDER`, `ALIAS=ORG/NAME` or `ALIAS=ORG/NAME@REVISION`; raises ConfigError for anything else.

        What begins with `/`, `.` or `~`, or is a folder that exists, is a folder.
        """
        alias, separator, source = text.partition("=")
        if not separator or not alias or not source:
            raise ConfigError(f"--model {text}: write ALIAS=FOLDER or ALIAS=ORG/NAME, for example my-model=BAAI/bge-small-en-v1.5.")
        if not _ALIAS.fullmatch(alias):
            raise ConfigError(f"--model {text}: an alias is letters, digits, `.`, `_` and `-`, 64 at most, the first a letter or a digit.")
        folder = Path(source).expanduser().absolute()
        if source.startswith(("/", ".", "~")) or folder.is_dir():
            return cls(alias, folder, "", None)
        repository, _, revision = source.partition("@")
        return cls(alias, None, repository, revision or None)


def load(folder: Path, added: Sequence[str]) -> ModelsFile:
    """Return the catalogue of a configuration folder with the models of `--model`, each pinned to what it is now.

    Raises:
        ConfigError: The file or a `--model` cannot be used.
        StoreError: A model of `--model` cannot be looked at.
    """
    file = lock.load(folder / "models.yaml")
    if not added:
        return file
    cards = {given.alias: card_of(given, file.models) for given in map(Given.parse, added)}
    names = {(card.served_name, card.task) for card in cards.values()}
    others = {alias: card for alias, card in file.models.items() if (card.served_name, card.task) not in names}
    try:
        return ModelsFile(models={**others, **cards})
    except pydantic.ValidationError as exc:
        raise ConfigError("; ".join(f"--model: {error['msg'].removeprefix('Value error, ')}" for error in exc.errors())) from exc


def card_of(given: Given, known: Mapping[str, ModelCard] | None = None) -> ModelCard:
    """Write the card of a model: what it is for is told by its own config.json.

    One that the catalogue describes, by its alias or by its name on the hub, keeps what is said of it there: only its source is another.
    """
    described = _described(given, known or {})
    try:
        if given.folder is not None:
            source = FolderSource(type="folder", path=given.folder)
            if described is not None:
                return described.model_copy(update={"source": source, "files": {}})
            return ModelCard(served_name=given.alias, source=source, **_task(_local_config(given.folder), str(given.folder)))
        hub = store.hub_client()
        commit = hub.resolve(given.repository, given.revision)
        found = HubSource(type="hub", repository=given.repository, revision=commit)
        if described is not None:
            return described.model_copy(update={"source": found, "files": {}})
        task = _task(hub.read_small(given.repository, commit, "config.json"), given.repository)
        return ModelCard(served_name=given.repository, source=found, **task)
    except StoreError as exc:
        raise StoreError(f"--model {given.alias}: {exc}") from exc
    except pydantic.ValidationError as exc:
        raise ConfigError(f"--model {given.alias}: {exc.errors()[0]['msg']}") from exc


def _described(given: Given, known: Mapping[str, ModelCard]) -> ModelCard | None:
    """Return the catalogue's card of a model that is added by its alias or by its name on the hub."""
    if given.alias in known:
        return known[given.alias]
    return next((card for card in known.values() if given.repository and given.repository in _names(card)), None)


def _names(card: ModelCard) -> tuple[str, ...]:
    return (card.served_name, *([card.source.repository] if isinstance(card.source, HubSource) else []))


def _local_config(folder: Path) -> bytes:
    try:
        return (folder / "config.json").read_bytes()
    except OSError as exc:
        raise StoreError(f"{folder}/config.json: {exc.strerror}; give a folder that holds config.json and model.safetensors.") from exc


def _task(config: bytes, origin: str) -> dict[str, Any]:
    """Return the card's fields that say what a model is for: a classifier with one label reranks, anything else embeds."""
    try:
        architectures = json.loads(config).get("architectures") or [""]
    except (ValueError, AttributeError) as exc:
        raise StoreError(f"the config.json of {origin} is no JSON object; the folder is damaged or holds no model.") from exc
    task: Literal["embed", "rerank"] = "rerank" if str(architectures[0]).endswith("ForSequenceClassification") else "embed"
    return {"task": task, "scoring": "cross_encoder" if task == "rerank" else None}
