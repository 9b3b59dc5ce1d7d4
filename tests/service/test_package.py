"""The wheel: what is installed from it works outside a checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and unpack it, as an installer does."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert built.returncode == 0, built.stdout + built.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_what_the_mesh_reads(installed: Path) -> None:
    """All packages, the configuration, Envoy's files and the description of the REST surface; no tests."""
    packages = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert packages == {"quadrate", "gateway", "embed_worker", "rerank_worker"}
    shipped = installed / "quadrate" / "_shipped"
    for name in ("configs/models.yaml", "configs/routing.yaml", "configs/auth.yaml", "configs/rate_limits.yaml"):
        assert (shipped / name).read_bytes() == (ROOT / name).read_bytes()
    assert (shipped / "envoy" / "descriptors.binpb").read_bytes() == (ROOT / "envoy" / "descriptors.binpb").read_bytes()
    assert (shipped / "openapi.yaml").is_file()


def test_the_installed_command_checks_its_own_configuration(installed: Path, tmp_path: Path) -> None:
    """Away from a checkout the shipped files are found, and Envoy accepts what is rendered from them."""
    program = "import sys; sys.path[:] = [p for p in sys.path if p not in ('', sys.argv[1])]; sys.argv[1:] = ['config', 'check']; "
    program += "from quadrate.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", program, str(ROOT)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"{installed}/quadrate/_shipped/configs")
    assert "accepts its configuration" in done.stdout


@pytest.mark.parametrize("name", ["runtime", "test", "parity"])
def test_constraints_pin_with_hashes_and_name_no_index(name: str) -> None:
    """Every line of the constraint files is a pinned version with its hashes, and no place to get it from."""
    text = (ROOT / "constraints" / f"{name}.txt").read_text()
    assert "://" not in text
    assert not re.search(r"^\s*-(?!-hash)", text, re.MULTILINE)
    entries = text.replace("\\\n", " ").strip().splitlines()
    assert len(entries) > 50
    for entry in entries:
        assert re.match(r"[\w.-]+(\[[\w,-]+\])?==[\w.!+]+ ", entry), entry
        assert "--hash=sha256:" in entry, entry


def test_larger_constraints_agree_with_smaller_ones() -> None:
    """What runs is what was tested: the test environment has the runtime's versions, the parity environment both."""

    def pinned(name: str) -> set[str]:
        return {line.split("\\")[0].strip() for line in (ROOT / "constraints" / f"{name}.txt").read_text().splitlines() if "==" in line}

    names = {entry.split("==")[0] for entry in pinned("runtime")}
    assert {entry for entry in pinned("test") if entry.split("==")[0] in names} == pinned("runtime")
    names |= {entry.split("==")[0] for entry in pinned("test")}
    versions = [{entry.split(" ")[0] for entry in pinned(name) if entry.split("==")[0] in names} for name in ("test", "parity")]
    assert versions[0] <= versions[1]


def test_the_served_packages_need_no_torch() -> None:
    """Neither torch nor transformers is installed by `make up`."""
    text = (ROOT / "constraints" / "runtime.txt").read_text()
    assert not re.search(r"^(torch|transformers|sentence-transformers)==", text, re.MULTILINE)
