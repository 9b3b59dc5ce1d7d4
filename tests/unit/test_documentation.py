"""The documentation says what the code does: settings, files' keys, errors, links, and what the README promises first."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from quadrate.config import auth, jwt, models, rate_limits, routing
from quadrate.config.edge import EdgeSettings
from quadrate.config.gateway import GatewaySettings
from quadrate.config.worker import EmbedSettings, RerankSettings
from quadrate.errors import ERRORS, EXACT_CODES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from pydantic_settings import BaseSettings

    from quadrate.config.yamlfile import Schema

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
PACKAGES = ("quadrate", "gateway", "embed_worker", "rerank_worker")


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """The script that writes parts of the pages."""
    spec = importlib.util.spec_from_file_location("documentation", ROOT / "tools" / "documentation.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["configuration.md", "errors.md", "models.md", "observability.md"])
def test_generated_parts_are_current(generator: Any, name: str) -> None:
    """`make generate` would change nothing."""
    text = (DOCS / name).read_text(encoding="utf-8")
    assert generator.current(text) == text, f"docs/{name} is old: run python tools/documentation.py"


@pytest.mark.parametrize("settings", [GatewaySettings, EdgeSettings, EmbedSettings, RerankSettings])
def test_every_setting_is_documented(generator: Any, settings: type[BaseSettings]) -> None:
    """Each variable stands on the page, and each has a sentence that says what it is for."""
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    for name, field in settings.model_fields.items():
        assert all(f"`{variable}`" in page for variable in generator.variables(settings, name)), name
        assert field.description, f"{settings.__name__}.{name} says nothing of itself"


def test_every_variable_that_the_code_reads_is_documented() -> None:
    """A name that is read from the environment by hand stands on the page, too. Python's own are Python's to document."""
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    read = {name for source in _sources() for name in re.findall(r'environ(?:\.get\(|\[)"([A-Z_]+)"', source)}
    names = read | {name for source in _sources() for name in re.findall(r'"((?:QUADRATE|HF)_[A-Z_]+)"', source)}
    assert sorted(name for name in names if f"`{name}`" not in page and not name.startswith("PYTHON")) == []
    assert "LOG_LEVEL" in names


@pytest.mark.parametrize(
    ("heading", "schemas"),
    [
        ("routing.yaml", [routing.RoutingFile, routing.EmbeddingRoute, routing.RerankRoute, routing.Upstream]),
        (
            "models.yaml",
            [
                models.ModelsFile,
                models.ModelCard,
                models.PairCard,
                models.Answers,
                models.WheelSource,
                models.HubSource,
                models.FolderSource,
            ],
        ),
        ("auth.yaml", [auth.AuthFile, auth.ApiKey, jwt.JwtIssuer]),
        ("rate_limits.yaml", [rate_limits.RateLimitsFile, rate_limits.Limit]),
    ],
)
def test_every_key_of_the_files_is_documented(heading: str, schemas: list[type[Schema]]) -> None:
    """Each key of a file's schema stands in a table of its section, and each key in the tables is one that the schema has."""
    section = re.split(r"^###? ", (DOCS / "configuration.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    text = next(part for part in section if part.startswith(f"{heading}\n"))
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    told = {name for row in rows for name in re.findall(r"`([a-z_0-9]+)`", " ".join(row.split("|")[1:3]))}
    keys = {name for schema in schemas for name in schema.model_fields}
    first_cells = {name for row in rows for name in re.findall(r"`([a-z_0-9]+)`", row.split("|")[1])}
    assert keys - told == set()
    assert first_cells - keys - {"wheel", "hub", "folder"} == set()


def test_every_code_of_an_error_is_documented() -> None:
    """What is more exact than its class's own code stands in the one table of those; what the edge says by itself, on the page."""
    used = {code for source in _sources() for code in re.findall(r'\b(?:code|INVALID_TOKEN) ?= ?"([a-z_]+)"', source)}
    assert used - {error.code for error in ERRORS} == set(EXACT_CODES)
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    edge = set(re.findall(r"code: ([a-z_]+)}", (ROOT / "envoy" / "envoy.yaml").read_text(encoding="utf-8")))
    assert "headers_too_large" in edge
    assert sorted(code for code in edge if f"`{code}`" not in page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file that exists, and every anchor a heading."""
    for target in re.findall(r"\]\((?!https?://|mailto:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor and linked.suffix == ".md":
            assert anchor in _anchors(linked), f"{page.name} links to {target}"


def test_the_readme_comes_to_the_point() -> None:
    """The first command stands before line 40, and both that matter stand on the first screen."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    place = {command: lines.index(command) + 1 for command in ("make up", "make test")}
    assert place["make up"] < 40
    assert place["make test"] < 60


def _sources() -> Iterator[str]:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if not path.stem.endswith(("_pb2", "_pb2_grpc")):
                yield path.read_text(encoding="utf-8")


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
