"""What all tests share: outside programs, the parity extra, the small model, and the order of the run.

A test that needs something which is not part of the Python environment says so by a fixture or a mark from here. It is skipped with
a sentence that names what is missing; with QUADRATE_REQUIRE_ALL=1, as in CI, it fails instead.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent
ORDER = ("unit", "service", "e2e", "parity")
INSTALL = {
    "grpcurl": "go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3",
    "promtool": "apt-get install prometheus",
    "redis-server": "apt-get install redis-server",
    "wrk": "apt-get install wrk",
    "curl": "apt-get install curl",
}
CANNOT_BE_INSTALLED_IN_CI = {"grpc_health_probe"}
PARITY_MODULES = ("torch", "transformers", "sentence_transformers")


def _absent(what: str, *, exempt: bool = False) -> None:
    """End the test: skipped, or failed where everything must be there."""
    if os.environ.get("QUADRATE_REQUIRE_ALL") == "1" and not exempt:
        pytest.fail(f"{what} QUADRATE_REQUIRE_ALL=1 forbids to go on without it.", pytrace=False)
    pytest.skip(what)


@pytest.fixture(scope="session")
def require_program() -> Callable[[str], str]:
    """Return a function that gives the path of a program, and skips the test where there is none."""

    def require(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            _absent(
                f"needs the program {name}, which is not on the PATH ({INSTALL.get(name, 'see its own documentation')}).",
                exempt=name in CANNOT_BE_INSTALLED_IN_CI,
            )
        return str(path)

    return require


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Hold back tests marked `parity` where the parity extra is not installed."""
    if item.get_closest_marker("parity") is None:
        return
    missing = [name for name in PARITY_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        _absent(f"needs the parity extra: {', '.join(missing)} cannot be imported (make install-parity).")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run fast tests first: unit, service, e2e, parity, and within each the order of the files."""

    def rank(item: pytest.Item) -> int:
        parts = item.path.relative_to(ROOT / "tests").parts
        return ORDER.index(parts[0]) if parts[0] in ORDER else len(ORDER)

    items.sort(key=rank)
