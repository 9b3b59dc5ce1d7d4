"""The processes' command lines: they take the environment, and say so."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.processes import eventually

if TYPE_CHECKING:
    from pathlib import Path

LONG_SECONDS = 60
PROGRAMS = ("gateway", "embed_worker", "rerank_worker", "quadrate.edge")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program with these arguments."""
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, check=False, timeout=LONG_SECONDS)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_starts_nothing_and_tells_where_variables_are(program: str) -> None:
    """Exit status 0, on stdout."""
    done = run(program, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: python -m {program}")
    assert "docs/configuration.md" in done.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_arguments_that_mean_nothing_are_refused(program: str) -> None:
    """Exit status 2, with what was wrong."""
    done = run(program, "--port", "8000")
    assert (done.returncode, done.stdout) == (2, "")
    assert "unrecognized arguments: --port" in done.stderr


async def test_an_edge_leaves_nothing_behind(tmp_path: Path) -> None:
    """However Envoy ends. While it runs, its configuration is there."""
    scratch, envoy = tmp_path / "scratch", tmp_path / "envoy"
    scratch.mkdir()
    envoy.write_text('#!/bin/sh\ntest -f "$2" && exec sleep 600\n')
    envoy.chmod(0o700)
    environment = {**os.environ, "TMPDIR": str(scratch), "EDGE_ENVOY_PATH": str(envoy)}
    with subprocess.Popen([sys.executable, "-m", "quadrate.edge"], env=environment) as edge:  # noqa: ASYNC220 - it starts at once
        try:
            await eventually(lambda: psutil.Process(edge.pid).name() == "sleep", "it becomes Envoy")
            assert list(scratch.glob("quadrate-edge-*/envoy.yaml"))
        finally:
            edge.kill()
    await eventually(lambda: not list(scratch.iterdir()), "the folder goes")
