"""Getting models: a hub model is fixed to a commit, its files are fetched, and both are locked beside models.yaml."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quadrate.cli import catalogue, progress
from quadrate.config import lock, yamlfile
from quadrate.config.models import HubSource, ModelsFile
from quadrate.errors import ConfigError
from quadrate.runtime import store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from quadrate.config.models import ModelCard
    from quadrate.runtime.store import Progress, StoredModel


def pull(config: Path, names: Sequence[str], *, update: bool) -> int:
    """Get models and name the folder of each.

    Args:
        config: The configuration folder.
        names: Aliases, or names of the hub, each perhaps with `@REVISION`.
        update: Whether to take the newest commit of a model that is locked already.

    Raises ConfigError, StoreError.
    """
    models_path = config / "models.yaml"
    cards = yamlfile.load(models_path, ModelsFile).models
    lines = []
    with progress.shown() as watch:
        for name in names:
            alias, revision = _known(name, cards)
            if alias:
                stored = locked(models_path, alias, cards[alias], revision=revision, update=update, watch=watch)
                lines.append(f"{alias}: {stored.path} ({stored.revision})")
            else:
                lines += _strange(name, models_path, watch)
    print("\n".join(lines))
    return 0


def locked(models_path: Path, alias: str, card: ModelCard, *, revision: str = "", update: bool = False, watch: Progress) -> StoredModel:
    """Return a model of the catalogue, fetched if need be; one of the hub is locked to what it is now.

    Args:
        models_path: The catalogue.
        alias: The model's name in it.
        card: As the catalogue has it, without its lock.
        revision: A branch, a tag or a commit to take instead of the main branch.
        update: Whether to look again although it is locked.
        watch: Is told how far it is.

    Raises ConfigError, StoreError.
    """
    source = card.source
    if not isinstance(source, HubSource):
        if revision:
            raise ConfigError(f"{alias}@{revision}: only models of a hub have revisions to choose from.")
        return store.ensure(alias, card, progress=watch)
    path = lock.path_of(models_path)
    lock.check_writable(path)
    before = lock.read(path).models.get(alias)
    commit = _commit(alias, source, before, revision, update=update)
    same = before is not None and before.repository == source.repository and before.revision == commit
    files = card.files or (before.files if before is not None and same else {})
    fixed = card.model_copy(update={"source": source.model_copy(update={"revision": commit}), "files": files})
    stored = store.ensure(alias, fixed, progress=watch)
    lock.put(path, alias, lock.Locked(repository=source.repository, revision=commit, files=store.hashes(stored)))
    return stored


def _commit(alias: str, source: HubSource, before: lock.Locked | None, revision: str, *, update: bool) -> str:
    """Return the commit to take: the card's, the one asked for, the locked one, or the newest."""
    if source.revision:
        if revision and not source.revision.startswith(revision):
            raise ConfigError(f"{alias}@{revision}: its card in models.yaml names the revision {source.revision}; change it there.")
        return source.revision
    if before is not None and before.repository == source.repository and not (revision or update):
        return before.revision
    commit: str = store.hub_client().resolve(source.repository, revision or None)
    return commit


def _known(name: str, cards: Mapping[str, ModelCard]) -> tuple[str, str]:
    """Return the alias that a name means, empty if the catalogue has none, and the revision it asks for."""
    name, _, revision = name.partition("@")
    if name in cards:
        return name, revision
    served = [alias for alias, card in cards.items() if isinstance(card.source, HubSource) and card.source.repository == name]
    if served:
        return served[0], revision
    if "/" not in name:
        raise ConfigError(f"models.yaml describes no {name!r}; it has: {', '.join(cards)}. A model of the hub is named ORG/NAME.")
    return "", revision


def _strange(name: str, models_path: Path, watch: Progress) -> list[str]:
    """Get a model of the hub that the catalogue does not have, and say how it can be served."""
    alias = name.partition("@")[0].rpartition("/")[2].lower()
    card = catalogue.card_of(catalogue.Given.parse(f"{alias}={name}"))
    stored = store.ensure(alias, card, progress=watch)
    source = f"{{type: hub, repository: {card.served_name}, revision: {stored.revision}}}"
    scoring = f", scoring: {card.scoring}" if card.scoring else ""
    return [
        f"{name}: {stored.path} ({stored.revision})",
        f"  {models_path} does not describe it. Serve it by `quadrate up --model {alias}={card.served_name}@{stored.revision}`,",
        f"  or add: {alias}: {{served_name: {card.served_name}, task: {card.task}{scoring}, source: {source}}}",
    ]
