"""What tests share that break a running mesh: the mesh, and how long they may go on.

`python -m pytest tests/chaos` takes minutes; with QUADRATE_CHAOS=full tests go on for as long as it takes to be sure, an hour and more.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from tests.chaos.mesh import Shape, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.chaos.mesh import ChaosMesh

    StartMesh = Callable[..., AbstractContextManager[ChaosMesh]]

HERE = Path(__file__).resolve().parent
LengthT = TypeVar("LengthT", int, float)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything here, and give it the time that it takes."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.chaos)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(7200 if is_full() else 300))


def is_full() -> bool:
    """Whether tests run for as long as it takes to be sure, rather than for as long as one likes to wait."""
    return os.environ.get("QUADRATE_CHAOS") == "full"


@pytest.fixture(scope="session")
def length() -> Callable[[LengthT, LengthT], LengthT]:
    """Return a function that takes a number for an ordinary run and one for QUADRATE_CHAOS=full, and gives the one that counts."""
    return lambda ordinary, full: full if is_full() else ordinary


@pytest.fixture(scope="session")
def start_mesh(tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], str]) -> StartMesh:
    """Return a function that gives a mesh as a context manager; it takes the arguments of Shape."""

    @contextmanager
    def start(**shape: Any) -> Iterator[ChaosMesh]:
        if shape.get("redis"):
            require_program("redis-server")
        with running(Shape(**shape), tmp_path_factory.mktemp("chaos")) as mesh:
            yield mesh

    return start
