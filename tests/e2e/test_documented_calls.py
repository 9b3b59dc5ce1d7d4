"""Every call that README and docs/api.md show is made as it stands there, and answers what stands there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.conftest import Mesh

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/api.md")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"-?\d+\.\d+")


@dataclass(frozen=True, slots=True)
class Shown:
    """One call on a page, and the answer shown below it, if one is."""

    page: str
    text: str
    answer: str = ""

    def __str__(self) -> str:
        return f"{self.page}: {self.text.splitlines()[0][:70]}"


def _blocks(language: str) -> Iterator[Shown]:
    for page in PAGES:
        blocks = [(found[1], found[2]) for found in _BLOCK.finditer((ROOT / page).read_text(encoding="utf-8"))]
        for (kind, text), (next_kind, answer) in zip(blocks, [*blocks[1:], ("end", "")], strict=True):
            if kind == language:
                yield Shown(page, text, answer if next_kind == "" else "")


def _commands() -> list[Shown]:
    """Commands that call a mesh; those with an answer below stand alone in their block."""
    return [
        Shown(block.page, line, block.answer)
        for block in _blocks("sh")
        for line in block.text.splitlines()
        if line.startswith(("curl ", "grpcurl ", ".venv/bin/quadrate "))
    ]


@pytest.mark.parametrize("shown", _commands(), ids=str)
def test_a_shown_command_answers_what_is_shown(shown: Shown, mesh: Mesh, require_program: Callable[[str], str]) -> None:
    """It ends well, tells no error, and where an answer is shown the answer is that one."""
    program, *arguments = shlex.split(shown.text.replace("localhost:8085", mesh.edge))
    if program == ".venv/bin/quadrate":
        line = [sys.executable, "-m", "quadrate.cli", *arguments, "--url", mesh.edge]
    else:
        line = [require_program(program), *arguments]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert '"error"' not in done.stdout
    if shown.answer:
        _check(shown.answer, done.stdout)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # examples do not close what a script's end closes
@pytest.mark.parametrize("shown", list(_blocks("python")), ids=str)
def test_a_shown_program_prints_what_is_shown(
    shown: Shown, mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a comment behind `print` says is what is printed."""
    (tmp_path / "texts.txt").write_text("a text\nanother\n")
    monkeypatch.chdir(tmp_path)
    exec(compile(shown.text.replace("localhost:8085", mesh.edge), str(shown), "exec"), {})  # noqa: S102 - our own pages
    printed = capsys.readouterr().out.splitlines()
    for promised in re.findall(r"^ *print\(.*\)  # (.*)$", shown.text, flags=re.MULTILINE):
        assert promised in printed


def test_the_pages_show_calls() -> None:
    """The README shows a call of each kind; nothing here passes because a pattern finds nothing."""
    kinds = {shown.text.split()[0] for shown in _commands() if shown.page == "README.md"}
    assert kinds == {"curl", "grpcurl", ".venv/bin/quadrate"}
    assert len(list(_blocks("python"))) >= 4


def _check(shown: str, answer: str) -> None:
    """Compare an answer with a shown one: as JSON where both are, otherwise the numbers up to where the shown one leaves out."""
    try:
        _check_same(json.loads(shown.replace("[…]", '"…"')), json.loads(answer))
    except json.JSONDecodeError:
        begin = shown.split("…", 1)[0].strip()
        wanted = [float(number) for number in _NUMBER.findall(begin)]
        assert wanted
        assert [float(number) for number in _NUMBER.findall(answer)[: len(wanted)]] == pytest.approx(wanted, abs=1e-4)
        assert _NUMBER.split(answer)[0] == _NUMBER.split(begin)[0]


def _check_same(shown: Any, answer: Any) -> None:
    if shown == "…":
        return
    if isinstance(shown, dict):
        assert set(shown) <= set(answer)
        for key in set(shown) - {"id", "timings"}:
            _check_same(shown[key], answer[key])
    elif isinstance(shown, list):
        assert len(shown) == len(answer)
        for one, other in zip(shown, answer, strict=True):
            _check_same(one, other)
    elif isinstance(shown, float):
        assert answer == pytest.approx(shown, abs=1e-4)
    else:
        assert answer == shown
