"""`quadrate models`: which models are described and which are here; getting, checking and removing them."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from quadrate.cli import progress
from quadrate.config import yamlfile
from quadrate.config.models import FolderSource, HubSource, ModelsFile, WheelSource
from quadrate.errors import ConfigError
from quadrate.runtime import store

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from quadrate.config.models import ModelCard


def show(config: Path, *, as_json: bool) -> int:
    """Print every model of models.yaml and whether its files are here."""
    rows = [_row(alias, card) for alias, card in _cards(config, ()).items()]
    if as_json:
        print(json.dumps({"store": str(store.root()), "models": rows}, indent=2))
        return 0
    from rich.console import Console  # noqa: PLC0415 - only people need it
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="dim")
    columns = {"alias": "alias", "task": "task", "served_name": "served name", "source": "source", "path": "folder"}
    for title in columns.values():
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(row[key] or "not here yet" for key in columns))
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)
    return 0


def pull(config: Path, aliases: Sequence[str]) -> int:
    """Get the models that are not here, and name the folder of each. Raises StoreError."""
    with progress.shown() as watch:
        got = {alias: store.ensure(alias, card, progress=watch) for alias, card in _cards(config, aliases).items()}
    for alias, stored in got.items():
        print(f"{alias}: {stored.path} ({stored.revision})")
    return 0


def verify(config: Path, aliases: Sequence[str]) -> int:
    """Hash the files of the models that are here and say what is wrong; returns 1 if anything is."""
    failed = False
    for alias, card in _cards(config, aliases).items():
        stored = store.kept(card)
        problems = store.verify(stored) if stored else []
        if stored and not problems and store.find(card) is None:
            problems = [f"{stored.path} does not hold the files that the model's card names."]
        verdict = "not in the store" if stored is None else "damaged" if problems else "good"
        print("\n".join([f"{alias}: {verdict}", *(f"  {problem}" for problem in problems)]))
        failed = failed or bool(problems) or (stored is None and alias in aliases)
    if failed:
        print("`quadrate models pull ALIAS` gets a model anew where a file is missing or damaged.")
    return int(failed)


def remove(config: Path, aliases: Sequence[str]) -> int:
    """Delete models from the store. What several aliases share goes once, and is named."""
    cards = _cards(config, ())
    for alias, card in _cards(config, aliases).items():
        stored = store.kept(card)
        if stored is None:
            print(f"{alias}: not in the store")
            continue
        store.remove(stored)
        shared = [other for other, its in cards.items() if other != alias and its.source == card.source]
        print(f"{alias}: removed {stored.path}" + (f", which {', '.join(shared)} used, too" if shared else ""))
    return 0


def _cards(config: Path, aliases: Sequence[str]) -> dict[str, ModelCard]:
    """Return the cards of the aliases, or all; raises ConfigError for an unknown one."""
    cards = yamlfile.load(config / "models.yaml", ModelsFile).models
    for alias in aliases:
        if alias not in cards:
            raise ConfigError(f"{config / 'models.yaml'} describes no {alias!r}; it has: {', '.join(cards)}.")
    return {alias: cards[alias] for alias in aliases} if aliases else cards


def _row(alias: str, card: ModelCard) -> dict[str, str | None]:
    stored = store.find(card)
    return {
        "alias": alias,
        "task": card.task,
        "served_name": card.served_name,
        "source": _origin(card.source),
        "revision": stored.revision if stored else card.revision,
        "path": str(stored.path) if stored else None,
        "license": card.license,
        "description": card.description,
    }


def _origin(source: WheelSource | HubSource | FolderSource) -> str:
    if isinstance(source, WheelSource):
        return f"wheel {source.package}=={source.version}"
    return f"hub {source.repository}" if isinstance(source, HubSource) else f"folder {source.path}"
