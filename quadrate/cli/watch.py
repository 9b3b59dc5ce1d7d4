"""`quadrate status`, `down` and `logs`: looking at a mesh that runs, and stopping it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

from quadrate.cli import logfile
from quadrate.cli.plan import Folder, MeshState, root
from quadrate.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_STOP_WITHIN_SECONDS = 8.0
_LOOK_EVERY_SECONDS = 0.1
_COLOURS = {"ready": "green", "degraded": "yellow", "starting": "yellow", "restarting": "yellow", "waiting": "dim"}


def status(port: int, *, as_json: bool) -> int:
    """Print what runs; returns 0 if the mesh answers, 1 if it does not, 3 if there is none."""
    folder = Folder.of(port)
    state = folder.read_state() if folder.is_running() else None
    if as_json:
        print(json.dumps(dataclasses.asdict(state) if state else {"address": None, "state": "stopped", "processes": []}, indent=2))
    elif state is None:
        print(f"No mesh runs on port {port}.{_others(port)} Start one with `quadrate up`.")
    else:
        _print(state)
    if state is None:
        return 3
    return 0 if state.state == "ready" and all(row.state in {"ready", "degraded"} for row in state.processes) else 1


def down(port: int) -> int:
    """Stop the mesh and wait until all its processes have ended; returns the exit code."""
    folder = Folder.of(port)
    if not folder.is_running():
        print(f"No mesh runs on port {port}.{_others(port)}")
        return 0
    state = folder.read_state()
    if state is None:
        print(f"The mesh on port {port} does not say which process it is: it has just begun, or another version started it. Try again.")
        return 1
    with contextlib.suppress(ProcessLookupError):
        os.kill(state.pid, signal.SIGTERM)
        if not _ends(folder):
            os.kill(state.pid, signal.SIGKILL)  # its processes die with it
            _ends(folder)
    print(f"The mesh on port {port} is stopped.")
    return 0


def logs(port: int, process: str | None, *, lines: int, follow: bool) -> int:
    """Print the last lines of one process's log or of all, and go on with what comes if `follow`. Raises ConfigError."""
    folder = Folder.of(port)
    files = {path.stem: path for path in sorted(folder.logs.glob("*.log"))}
    if not files:
        raise ConfigError(f"There are no logs of a mesh on port {port}.{_others(port)}")
    if process is not None and process not in files:
        raise ConfigError(f"There is no log of {process!r} for port {port}; there are: {', '.join(files)}.")
    chosen = {name: path for name, path in files.items() if process in {None, name}}
    width = max(map(len, chosen), default=0) if len(chosen) > 1 else 0
    for name, path in chosen.items():
        for line in logfile.tail(path, lines):
            _print_line(name, line, width)
    if follow:
        _follow(chosen, width)
    return 0


def _ends(folder: Folder) -> bool:
    """Wait until the supervisor has let go of its lock; False if it has not in time."""
    until = time.monotonic() + _STOP_WITHIN_SECONDS
    while folder.is_running():
        if time.monotonic() > until:
            return False
        time.sleep(_LOOK_EVERY_SECONDS)
    return True


def _others(port: int) -> str:
    """Name the ports of other meshes that run."""
    folders = sorted(root().glob("*"))
    ports = [path.name for path in folders if path.name != str(port) and Folder(path).is_running()]
    return f" There is one on port {', '.join(ports)} (--port)." if ports else ""


def _print(state: MeshState) -> None:
    from rich.console import Console  # noqa: PLC0415 - only people need it
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("name", "role", "address", "pid", "state", "restarts", "models"):
        table.add_column(column)
    for row in state.processes:
        colour = _COLOURS.get(row.state, "red")
        pid = str(row.pid or "-")
        table.add_row(row.name, row.role, row.address, pid, f"[{colour}]{row.state}[/]", str(row.restarts), ", ".join(row.models))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(f"The mesh on {state.address} is {state.state}; supervisor pid {state.pid}.\n")
    console.print(table)
    for trouble in state.troubles:
        console.print(f"\n{trouble}", markup=False, soft_wrap=True)


def _follow(files: dict[str, Path], width: int) -> None:
    """Print what is appended, until Ctrl-C. A file that was cut begins anew."""
    places = {name: logfile.end(path) for name, path in files.items()}
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            for name, path in files.items():
                places[name] = _print_new(name, path, places[name], width)
            sys.stdout.flush()
            time.sleep(_LOOK_EVERY_SECONDS)


def _print_new(name: str, path: Path, place: int, width: int) -> int:
    """Print the whole lines after `place`; returns the place after them. A log that was moved aside begins anew."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(place if size >= place else 0)
        for line in file:
            if not line.endswith(b"\n"):
                return file.tell() - len(line)
            _print_line(name, line.decode(errors="replace").rstrip("\n"), width)
        return file.tell()


def _print_line(name: str, line: str, width: int) -> None:
    print(f"{name:<{width}} | {line}" if width else line)
