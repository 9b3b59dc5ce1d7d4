"""The mesh as a user starts it: `quadrate up`, real weights, real Envoy, free ports."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest

from quadrate.config.shipped import shipped
from quadrate.testing.ports import free_block

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Protocol

    import numpy.typing as npt

    class StartMesh(Protocol):
        """Gives a mesh as a context manager."""

        def __call__(self, *arguments: str, environment: dict[str, str] | None = None) -> contextlib.AbstractContextManager[Mesh]:
            """Take flags of `up` besides the ports, and variables of its environment."""


LEAST_TELLING_CHARACTERS = 20
"""A shorter text may stand in a log by chance."""
GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@dataclass(frozen=True, slots=True)
class Mesh:
    """A running mesh.

    Args:
        ports: The first port of each kind of process, and the edge's.
        state: The folder under which `quadrate` keeps its state and its logs.
    """

    ports: dict[str, int]
    state: Path

    @property
    def url(self) -> str:
        """Where REST is."""
        return f"http://{self.edge}"

    @property
    def edge(self) -> str:
        """`host:port` of Envoy."""
        return f"127.0.0.1:{self.ports['port']}"

    def target(self, role: str, *, number: int = 0, http: bool = False) -> str:
        """Return `host:port` of a gateway or worker: `gateway`, `embed` or `rerank`."""
        return f"127.0.0.1:{self.ports[f'{role}-port'] + 10 * number + http}"

    def logs(self) -> str:
        """Return all that has been logged, the supervisor's words included."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.state.rglob("*.log*")))

    def process_logs(self) -> str:
        """Return what edge, gateways and workers have logged, whole lines only: Envoy flushes its buffer in the middle of one, too."""
        found = (path.read_text(errors="replace") for path in sorted(self.state.rglob("*.log")) if path.stem != "supervisor")
        return "".join(text[: text.rfind("\n") + 1] for text in found)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `quadrate` with these arguments, of this mesh's state."""
        environment = {**os.environ, "XDG_STATE_HOME": str(self.state)}
        line = [sys.executable, "-m", "quadrate.cli", *arguments]
        return subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=60)


def flags(ports: dict[str, int]) -> list[str]:
    """Return the flags of `quadrate up` for these ports."""
    return [part for name, port in ports.items() for part in (f"--{name}", str(port))]


def mesh_ports() -> dict[str, int]:
    """Return ports for a whole mesh, in a range that nobody listens on, by the flags that set them."""
    first = free_block(100)
    return {"port": first, "admin-port": first + 1, "gateway-port": first + 10, "embed-port": first + 40, "rerank-port": first + 70}


@contextlib.contextmanager
def running(state: Path, *arguments: str, environment: dict[str, str] | None = None) -> Iterator[Mesh]:
    """Run a mesh in the background, with these flags of `up` besides the ports, and stop it at the end."""
    ports = mesh_ports()
    mesh = Mesh(ports, state)
    line = [sys.executable, "-m", "quadrate.cli", "up", "--detach", *flags(ports), *arguments]
    known = {**os.environ, "XDG_STATE_HOME": str(state), **(environment or {})}
    started = subprocess.run(line, env=known, capture_output=True, text=True, check=False, timeout=120)
    assert started.returncode == 0, started.stdout + started.stderr + mesh.logs()[-4000:]
    try:
        yield mesh
    finally:
        stopped = mesh.command("down", "--port", str(ports["port"]))
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr


@dataclass(frozen=True, slots=True)
class Reference:
    """What sentence-transformers makes of some texts on the same weights.

    Args:
        texts: Texts that the model reads whole.
        vectors: Their vectors, float32[len(texts), 384].
    """

    texts: tuple[str, ...]
    vectors: npt.NDArray[np.float32]

    def check(self, vectors: Sequence[Sequence[float]] | npt.NDArray[np.float32], places: slice | Sequence[int] = slice(None)) -> None:
        """Assert that vectors are those of the texts at these places: same width, length one, cosine of at least 0.99999."""
        given = np.asarray(vectors, dtype=np.float64)
        wanted = self.vectors[places].astype(np.float64)
        assert given.shape == wanted.shape
        assert np.allclose(np.linalg.norm(given, axis=1), 1, atol=1e-5)
        cosines = (given * wanted).sum(axis=1) / np.linalg.norm(given, axis=1) / np.linalg.norm(wanted, axis=1)
        assert cosines.min() >= 0.99999, cosines


@dataclass(frozen=True, slots=True)
class Ranking:
    """A query, documents and the scores that the reference implementation gives them.

    Args:
        scores: One for each document, in the documents' order.
    """

    query: str
    documents: tuple[str, ...]
    scores: tuple[float, ...]

    def check(self, results: Sequence[tuple[int, float]], *, top_n: int | None = None) -> None:
        """Assert that results, of index and score, are the best documents in order, each with its score."""
        order = sorted(range(len(self.scores)), key=lambda place: (-self.scores[place], place))[:top_n]
        assert [index for index, _ in results] == order
        assert [score for _, score in results] == pytest.approx([self.scores[place] for place in order], abs=1e-4)


def golden(longest_characters: int) -> Reference:
    """Return the golden texts that are no longer than so many characters."""
    texts = json.loads((GOLDEN / "minilm.json").read_text("utf-8"))["texts"]
    places = [place for place, text in enumerate(texts) if len(text) <= longest_characters]
    return Reference(tuple(texts[place] for place in places), np.load(GOLDEN / "minilm.npz")["vectors"][places])


@pytest.fixture(scope="session")
def reference() -> Reference:
    """A few short texts, for all wires."""
    return golden(100)


@pytest.fixture(scope="session")
def whole_reference() -> Reference:
    """All 200 texts, of all lengths up to the model's maximum and beyond it, where they are cut on the right."""
    return golden(100_000)


@pytest.fixture(scope="session")
def ranking() -> Ranking:
    """A query with documents and their scores."""
    found = json.loads((GOLDEN / "minilm-rerank.json").read_text("utf-8"))
    return Ranking(found["query"], tuple(found["documents"]), tuple(found["scores"]))


@pytest.fixture(scope="session")
def start_mesh(tmp_path_factory: pytest.TempPathFactory) -> StartMesh:
    """A function that gives a mesh as a context manager: flags of `up`, and variables of its environment."""

    def start(*arguments: str, environment: dict[str, str] | None = None) -> contextlib.AbstractContextManager[Mesh]:
        return running(tmp_path_factory.mktemp("mesh"), *arguments, environment=environment)

    return start


@pytest.fixture
def free_ports() -> dict[str, int]:
    """Ports for a whole mesh, by the flags that set them."""
    return mesh_ports()


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """The quick start: shipped configuration, no keys, one process of each kind."""
    with running(tmp_path_factory.mktemp("mesh")) as found:
        yield found
    logs = found.logs()
    assert '"message":"request"' in logs
    assert not [text for text in golden(1_000).texts if len(text) > LEAST_TELLING_CHARACTERS and text in logs], "a log holds users' texts"


@pytest.fixture(scope="session")
def rest(mesh: Mesh) -> Iterator[httpx.Client]:
    """A plain HTTP client of the mesh."""
    with httpx.Client(base_url=mesh.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def guarded_key() -> str:
    """A key of the guarded mesh, whose owner is called alice."""
    return "sk-a-key-that-no-log-may-show"


@pytest.fixture(scope="session")
def guarded(start_mesh: StartMesh, guarded_key: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh that asks for keys, and lets the pages of one origin call."""
    folder = tmp_path_factory.mktemp("configs")
    shutil.copytree(shipped("configs"), folder, dirs_exist_ok=True)
    keys = f"api_keys: [{{key: {guarded_key}, name: alice}}, another-key]"
    (folder / "auth.yaml").write_text(f"{keys}\nallow_anonymous_without_api_keys: false\n")
    with start_mesh("--config", str(folder), environment={"EDGE_CORS_ORIGINS": "https://app.example.com"}) as found:
        yield found
