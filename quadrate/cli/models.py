"""`quadrate models`: which models are described and which are here; checking and removing them."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from quadrate import __version__
from quadrate.config import lock
from quadrate.config.models import FolderSource, HubSource, WheelSource
from quadrate.config.worker import EmbedSettings, RerankSettings, load_worker_settings
from quadrate.errors import ConfigError, StoreError
from quadrate.runtime import store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quadrate.config.models import ModelCard
    from quadrate.config.worker import Precision
    from quadrate.runtime.store import StoredModel


UNVERIFIED = 3
"""The exit status of `verify` where nothing was wrong, and a model has no golden vectors."""


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


def verify(config: Path, aliases: Sequence[str], *, make_golden: bool, precision: Precision) -> int:
    """Hash the files of the models that are here, run each against its golden vectors, and say what is wrong.

    A folder of one's own has no hashes to be held against; it is loaded instead, as a worker would. Returns 1 if anything is wrong, and
    otherwise UNVERIFIED if a model has no golden vectors: whether it answers right, nothing here can tell.

    Args:
        config: The configuration folder.
        aliases: Which models; all if empty.
        make_golden: Whether to write the golden vectors of what each model gives now, in exact arithmetic, instead of comparing them.
        precision: The class of arithmetic that is compared.
    """
    verdicts, fetchable = set(), False
    for alias, card in _cards(config, aliases).items():
        stored, lines = _hashed(alias, card)
        verdict = "damaged" if lines else "good" if stored else "not in the store"
        if stored is not None and not lines and (card.golden or make_golden or isinstance(card.source, FolderSource)):
            problems, notes = _proven(config, alias, card, stored, make_golden=make_golden, precision=precision)
            verdict, lines = "wrong" if problems else "good", [*problems, *notes]
        if verdict == "good" and not card.golden and not make_golden:
            verdict, lines = "not verified", [_unverified(alias, card)]
        print("\n".join([f"{alias}: {verdict}", *(f"  {line}" for line in lines)]))
        if verdict != "not in the store" or alias in aliases:
            verdicts.add(verdict)
            fetchable |= verdict in {"damaged", "not in the store"} and not isinstance(card.source, FolderSource)
    if fetchable:
        print("`quadrate models pull ALIAS` gets a model anew where a file is missing or damaged.")
    if verdicts - {"good", "not verified"}:
        return 1
    return UNVERIFIED if "not verified" in verdicts else 0


def _unverified(alias: str, card: ModelCard) -> str:
    """Say what was looked at of a model without golden vectors, and what was not."""
    done = "its files can be loaded" if isinstance(card.source, FolderSource) else "its files are what was fetched; it was not run"
    return (
        f"{done}. Its card names no golden vectors to compare its answers with: "
        f"`quadrate models verify {alias} --make-golden` makes them once you trust what it answers."
    )


def _hashed(alias: str, card: ModelCard) -> tuple[StoredModel | None, list[str]]:
    """Return a model that is here, and what is wrong with its files."""
    if isinstance(card.source, FolderSource):
        try:
            return store.ensure(alias, card), []
        except StoreError as exc:
            return None, [str(exc)]
    stored = store.kept(card)
    problems = store.verify(stored) if stored else []
    if stored and not problems and store.find(card) is None:
        problems = [f"{stored.path} does not hold the files that the model's card names."]
    return stored, problems


def _proven(
    config: Path, alias: str, card: ModelCard, stored: StoredModel, *, make_golden: bool, precision: Precision
) -> tuple[list[str], list[str]]:
    """Load a model and compare it with its golden vectors, or make them; return what is wrong and what is to be said."""
    # Imported here: they bring ONNX Runtime, which nothing else of this command needs.
    from quadrate.runtime import engine, golden  # noqa: PLC0415

    try:
        kind = EmbedSettings if card.task == "embed" else RerankSettings
        settings = load_worker_settings(kind, precision="exact" if make_golden else precision)
        model = engine.load(alias, card, stored, settings)
        if not make_golden and not card.golden:
            return [], []
        if not make_golden:
            problems = asyncio.run(golden.check(model))
            return problems, [] if problems else [f"golden vectors match in precision {precision}"]
        path = Path(card.golden) if card.golden else config / "golden" / f"{alias}.json"
        golden.write(path, asyncio.run(golden.make(model, made_by=f"quadrate {__version__}")))
    except ConfigError as exc:
        return [str(exc)], []
    named = "" if card.golden else f"; name it in the model's card: `golden: golden/{alias}.json`"
    return [], [f"wrote {path}{named}"]


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


def card(config: Path, alias: str) -> int:
    """Print all that is known of a model without loading it, as JSON: its card, its lock put in, and where its files are."""
    found = _cards(config, [alias])[alias]
    print(json.dumps({**_row(alias, found), "card": found.model_dump(mode="json", exclude_defaults=True)}, indent=2, ensure_ascii=False))
    return 0


def _cards(config: Path, aliases: Sequence[str]) -> dict[str, ModelCard]:
    """Return the cards of the aliases, or all; raises ConfigError for an unknown one."""
    cards = lock.load(config / "models.yaml").models
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
        "path": str(stored.path) if stored else _folder(card.source),
        "license": card.license,
        "description": card.description,
    }


def _folder(source: WheelSource | HubSource | FolderSource) -> str | None:
    """Return the folder of one's own that a model is used from, if it is there."""
    return str(source.path) if isinstance(source, FolderSource) and source.path.is_dir() else None


def _origin(source: WheelSource | HubSource | FolderSource) -> str:
    if isinstance(source, WheelSource):
        return f"wheel {source.package}=={source.version}"
    return f"hub {source.repository}" if isinstance(source, HubSource) else f"folder {source.path}"
