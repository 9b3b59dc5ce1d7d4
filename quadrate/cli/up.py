"""`quadrate up`: check everything, write it down, and become the supervisor that runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import quadrate
from quadrate.cli import assemble, banner, certs, logfile, preflight, progress, pull
from quadrate.cli.plan import Folder
from quadrate.config.models import HubSource
from quadrate.errors import ConfigError
from quadrate.runtime import folder as model_folder
from quadrate.runtime import store

if TYPE_CHECKING:
    from quadrate.cli.assemble import Mesh, Options

_ANY = {"0.0.0.0", "::"}  # noqa: S104 - compared, not listened on


def prepare(options: Options) -> Folder:
    """Check the whole mesh and write its plan; nothing is started. Raises ConfigError and StoreError."""
    folder = Folder.of(options.port)
    if folder.is_running():
        running = folder.read_state()
        pid = f" (pid {running.pid})" if running else ""
        raise ConfigError(
            f"A mesh already runs on port {options.port}{pid}: see it with `quadrate status`, stop it with "
            f"`quadrate down --port {options.port}`, or start another one with --port and its companions."
        )
    preflight.check_environment(options.precision, tls=options.tls)
    mesh = assemble.read(options)
    preflight.check_packages(workers=bool(mesh.cards))
    preflight.check_ports(options.host, mesh.ports())
    if _lock_models(mesh):
        mesh = assemble.read(options)
    planned = assemble.plan(mesh, folder)
    _fetch_models(mesh)
    folder.create()
    if options.tls:
        certs.make(folder.certificates, [] if options.host in _ANY else [options.host], days=certs.DAYS)
    assemble.write(mesh, folder)
    folder.banner.write_text(banner.text(mesh, planned, folder))
    folder.write_plan(planned)
    logfile.begin(folder.logs)
    return folder


def run(folder: Folder) -> NoReturn:
    """Become the supervisor. Its process holds nothing of this one, so that it stays small."""
    _import_the_same_code()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, _supervisor(folder))  # noqa: S606 - no shell is wanted


def detach(folder: Folder) -> int:
    """Start the supervisor in the background, wait until the mesh answers or has failed, and return the exit code."""
    _import_the_same_code()
    with (folder.logs / "supervisor.log").open("wb") as output:
        process = subprocess.Popen(
            _supervisor(folder), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    while not _settled(folder, process):
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    state = folder.read_state()
    if process.poll() is None and state is not None and state.state == "ready":
        print(folder.banner.read_text().replace(banner.WITH_TERMINAL, ""))
        for trouble in state.troubles:
            print(trouble, file=sys.stderr)
        return 0
    print((folder.logs / "supervisor.log").read_text(errors="replace"), file=sys.stderr, end="")
    return process.returncode or 1


def _import_the_same_code() -> None:
    """Let all processes of the mesh import what this one did: `python -m gateway` must not find a `gateway` of the folder one is in."""
    os.environ["PYTHONSAFEPATH"] = "1"
    home = Path(quadrate.__file__).resolve().parents[1]
    if home.name not in {"site-packages", "dist-packages"}:  # a checkout
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(home), os.environ.get("PYTHONPATH"))))


def _settled(folder: Folder, process: subprocess.Popen[bytes]) -> bool:
    """Whether the supervisor has ended, or says that the mesh answers."""
    state = folder.read_state()
    return process.poll() is not None or (state is not None and state.pid == process.pid and state.state == "ready")


def _supervisor(folder: Folder) -> list[str]:
    return [sys.executable, "-m", "quadrate.cli.supervisor", str(folder.path)]


def _lock_models(mesh: Mesh) -> bool:
    """Pull the models of the hub that are to be served and were never pulled; returns whether there were any."""
    unlocked = {alias: card for alias, card in mesh.cards.items() if isinstance(card.source, HubSource) and not card.source.revision}
    with progress.shown() as show:
        for alias, card in unlocked.items():
            pull.locked(mesh.options.config / "models.yaml", alias, card, watch=show)
    return bool(unlocked)


def _fetch_models(mesh: Mesh) -> None:
    """Get what is not here yet, so that a model that cannot be had or served is told before anything runs."""
    with progress.shown() as show:
        stored = {alias: store.ensure(alias, card, progress=show) for alias, card in mesh.cards.items()}
    for alias, card in mesh.cards.items():
        try:
            model_folder.read(stored[alias].path, card)
        except ConfigError as exc:
            raise ConfigError(f"{alias}: {exc}") from exc
