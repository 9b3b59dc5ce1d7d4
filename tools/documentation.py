"""Writes the parts of the documentation that the code knows better: tables of errors, settings, metrics.

A part stands between two comments, `<!-- made by tools/documentation.py: NAME -->` and `<!-- end -->`. `make generate` writes them all
again; a test fails while one of them is old.

    python tools/documentation.py
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import AliasChoices
from pydantic_core import PydanticUndefined

from quadrate.config import yamlfile
from quadrate.config.edge import EdgeSettings
from quadrate.config.gateway import GatewaySettings
from quadrate.config.models import ModelCard, ModelsFile, WheelSource
from quadrate.config.worker import EmbedSettings, RerankSettings, WorkerSettings
from quadrate.errors import ERRORS, EXACT_CODES
from quadrate.telemetry.instruments import INSTRUMENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pydantic.fields import FieldInfo
    from pydantic_settings import BaseSettings

DOCS = Path(__file__).resolve().parent.parent / "docs"
FILES = ("configuration.md", "errors.md", "models.md", "observability.md")
_PLACES = {"query": "queries", "document": "documents"}
_POOLINGS: dict[str | None, str] = {
    "mean": "mean of the tokens",
    "cls": "first token",
    "last": "last token",
    "splade": "weights of words",
    None: "",
}
_PART = re.compile(r"(<!-- made by tools/documentation\.py: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def errors() -> str:
    """Every error: what it is called on each wire, whether trying again may help, and when it is raised."""
    rows = (
        f"`{error.__name__}`|`{error.status.name}`|{error.http_status}|`{error.type}`|`{error.code}`|`{error.reason}`"
        f"|{'yes' if error.retryable else 'no'}|{_sentence(error.__doc__)}"
        for error in ERRORS
    )
    return _table("class|gRPC status|HTTP|`type`|`code`|`reason`|retry?|when", rows)


def codes() -> str:
    """Every code that is more exact than its error's own."""
    return _table("`code`|class|when", (f"`{code}`|`{error.__name__}`|{when}" for code, (error, when) in EXACT_CODES.items()))


def gateway() -> str:
    """The gateway's variables."""
    return _settings(GatewaySettings)


def edge() -> str:
    """The edge's variables."""
    return _settings(EdgeSettings)


def worker() -> str:
    """The variables of both kinds of worker, and those of the rerank worker alone."""
    shared = (_pair_row(name) for name in WorkerSettings.model_fields)
    alone = (_row(RerankSettings, name) for name in RerankSettings.model_fields if name not in WorkerSettings.model_fields)
    return _table("variable|default|meaning", [*shared, *alone])


def catalogue() -> str:
    """Every model of configs/models.yaml: how it is served, and the test that holds it to its card."""
    cards = yamlfile.load(DOCS.parent / "configs" / "models.yaml", ModelsFile).models
    return _table("alias|model|licence|how it is served|test", (_model(alias, card) for alias, card in cards.items()))


def gateway_metrics() -> str:
    """What gateways count."""
    return _metrics("router")


def worker_metrics() -> str:
    """What both kinds of worker count, by the names that the embedding worker has for it."""
    return _metrics("embed")


def all_metrics() -> str:
    """What every process counts."""
    return _metrics("all")


PARTS: dict[str, Callable[[], str]] = {
    "errors": errors,
    "codes": codes,
    "gateway": gateway,
    "edge": edge,
    "worker": worker,
    "catalogue": catalogue,
    "gateway_metrics": gateway_metrics,
    "worker_metrics": worker_metrics,
    "all_metrics": all_metrics,
}


def variables(settings: type[BaseSettings], name: str) -> list[str]:
    """Return the environment variables that set a field, the one that goes first at the front."""
    alias = settings.model_fields[name].validation_alias
    if isinstance(alias, AliasChoices):
        return [choice for choice in alias.choices if isinstance(choice, str)]
    return [alias if isinstance(alias, str) else f"{settings.model_config.get('env_prefix', '')}{name.upper()}"]


def current(text: str) -> str:
    """Return a page with every part as it should be."""
    return _PART.sub(lambda found: f"{found[1]}\n{PARTS[found[2]]()}\n{found[3]}", text)


def main() -> None:
    """Write every page."""
    for name in FILES:
        page = DOCS / name
        page.write_text(current(page.read_text(encoding="utf-8")), encoding="utf-8")


def _metrics(component: str) -> str:
    found = (row for row in INSTRUMENTS if row.component == component)
    rows = (f"`{row.name}`|{row.kind}|{', '.join(f'`{label}`' for label in row.labels)}|{row.help}" for row in found)
    return _table("metric|kind|labels|what it tells", rows)


def _model(alias: str, card: ModelCard) -> str:
    test = "test_transformers.py" if isinstance(card.source, WheelSource) else "test_catalogue.py"
    tested = "" if isinstance(card.source, WheelSource) else f"`[{alias}]`"
    name = f"[{card.served_name}](https://huggingface.co/{card.served_name})"
    return f"`{alias}`|{name}|{card.license}|{'; '.join(filter(None, _served(card)))}|[{test}](../tests/parity/{test}) {tested}"


def _served(card: ModelCard) -> Iterable[str]:
    """Give what a card says of a model, in the order in which a text meets it."""
    yield card.architecture or "as its files say"
    yield from (f"`{text.replace(chr(10), '⏎')}` before {_PLACES[name]}" for name, text in card.prompts.items() if name in _PLACES)
    if card.max_tokens:
        yield f"{card.max_tokens:,} tokens"
    if card.pair:
        yield "its template around query and document"
    yield card.scoring.replace("_", " ") if card.scoring else _POOLINGS[card.pooling]
    yield "layer norm" if card.layer_norm else ""
    if card.outputs:
        yield ", ".join(card.outputs).replace("_", " ")
    if card.matryoshka_dimensions:
        yield f"widths {', '.join(map(str, card.matryoshka_dimensions))} and its own"
    if card.matryoshka_dimensions_from:
        yield f"any width from {card.matryoshka_dimensions_from}"
    if card.activation:
        yield {"none": "raw logits", "sigmoid": "sigmoid"}[card.activation]


def _settings(settings: type[BaseSettings]) -> str:
    return _table("variable|default|meaning", (_row(settings, name) for name in settings.model_fields))


def _row(settings: type[BaseSettings], name: str) -> str:
    names = " or ".join(f"`{variable}`" for variable in variables(settings, name))
    field = settings.model_fields[name]
    return f"{names}|{_default(field)}|{_sentence(field.description)}"


def _pair_row(name: str) -> str:
    """One row for the twins of a worker's setting; a variable that both share stands once, as does a default."""
    kinds = (EmbedSettings, RerankSettings)
    names = dict.fromkeys(f"`{variable}`" for kind in kinds for variable in variables(kind, name))
    defaults = dict.fromkeys(_default(kind.model_fields[name]) for kind in kinds)
    return f"{' '.join(names)}|{' / '.join(defaults)}|{_sentence(EmbedSettings.model_fields[name].description)}"


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined or field.default in (None, "", ()):
        return ""
    return f"`{_plain(field.default)}`"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "&#124;")


def _table(head: str, rows: Iterable[str]) -> str:
    """Return a Markdown table of rows whose cells are joined by bars."""
    lines = [head, "|".join("---" for _ in head.split("|")), *rows]
    return "\n".join(f"| {line.replace('|', ' | ')} |" for line in lines) + "\n"


if __name__ == "__main__":
    main()
