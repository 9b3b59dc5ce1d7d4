"""Parsers of bodies, messages, headers and files, under atheris: whatever comes is read, or refused in our words."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.chaos.mesh import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TARGETS = ("json_body", "openai_body", "rerank_body", "cohere_body", "messages", "headers", "files", "cut_ids", "framed")
"""Those of tests/chaos/parsers.py, which only a process of its own may import: atheris changes what it imports, and ends the process."""
LARGEST_BYTES = 2_048
MOST_MIB = 1_024
"""Of memory that reading may take."""


@pytest.mark.parametrize("target", TARGETS)
def test_no_bytes_break_a_parser(target: str, tmp_path: Path, length: Callable[[int, int], int]) -> None:
    """So many inputs, each made of those before that reached something new."""
    limits = (
        f"-runs={length(20_000, 2_000_000)}",
        f"-max_total_time={length(5, 600)}",
        f"-max_len={LARGEST_BYTES}",
        "-seed=1",
        "-timeout=20",
        f"-rss_limit_mb={MOST_MIB + _inherited_mib()}",
    )
    command = (sys.executable, "-m", "tests.chaos.parsers", target, *limits, f"-artifact_prefix={tmp_path}/")
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-1_500:]}\n{done.stderr[-3_000:]}\n{[one.read_bytes() for one in tmp_path.iterdir()]}"


def _inherited_mib() -> int:
    """Return what counts as used from the start: libFuzzer goes by the peak, and a process begins with that of the one that starts it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
