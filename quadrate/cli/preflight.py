"""What is checked before anything is started."""

from __future__ import annotations

import importlib.util
import socket
from typing import TYPE_CHECKING

from quadrate.config.edge import load_edge_settings
from quadrate.config.gateway import load_gateway_settings
from quadrate.config.worker import EmbedSettings, RerankSettings, load_worker_settings
from quadrate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from quadrate.config.tls import ServerTls
    from quadrate.config.worker import Precision, WorkerSettings

_ENGINE = ("onnx", "onnxruntime", "safetensors")


def missing_packages() -> list[str]:
    """Return what the workers need and is not installed here."""
    return [name for name in _ENGINE if importlib.util.find_spec(name) is None]


def check_packages(*, workers: bool) -> None:
    """Raise ConfigError if a package that the processes need is not installed."""
    missing = missing_packages() if workers else []
    if missing:
        raise ConfigError(f"The workers need {', '.join(missing)}, not installed here: pip install 'quadrate[cpu,edge]'.")


def check_environment(precision: Precision | None, *, tls: bool = False) -> None:
    """Raise ConfigError for what the processes would refuse in their environment; `precision` goes before it, and so do files of `tls`."""
    gateway = load_gateway_settings()
    given = {} if precision is None else {"precision": precision}
    workers = [load_worker_settings(kind, **given) for kind in (EmbedSettings, RerankSettings)]
    edge = load_edge_settings()
    if not tls:
        edge.check_files()
        for files, names in ((gateway.tls, "ROUTER_TLS"), (gateway.upstream_tls, "ROUTER_UPSTREAM"), *_of_workers(workers)):
            if files is not None:
                files.check(names)
    if not missing_packages():
        from quadrate.runtime.sessions import choose  # noqa: PLC0415 - needs the workers' packages

        for settings in workers:
            choose(settings.device, settings.precision)


def _of_workers(workers: Iterable[WorkerSettings]) -> Iterator[tuple[ServerTls | None, str]]:
    return ((settings.tls, f"{settings.model_config.get('env_prefix', '')}TLS") for settings in workers)


def check_ports(host: str, ports: Mapping[int, tuple[str, str]]) -> None:
    """Raise ConfigError that names each port that is taken, who has it if that can be known, and the flag that moves it.

    Args:
        host: Where the edge listens; all others listen on loopback.
        ports: Port → who needs it, and the flag.
    """
    problems = []
    for port, (role, flag) in sorted(ports.items()):
        reason = _why_taken(host if flag == "--port" else "127.0.0.1", port)
        if reason:
            problems.append(f"Port {port}, for {role}, {reason}{_owner(port)}; free it, or take another with {flag}.")
    if problems:
        raise ConfigError("\n".join(problems))


def _why_taken(host: str, port: int) -> str | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as exc:
            return f"cannot be opened on {host} ({exc.strerror.lower() if exc.strerror else exc})"
        except OverflowError:
            return "is above 65535"
    return None


def _owner(port: int) -> str:
    """Return ` by NAME (pid N)` if the operating system tells."""
    import psutil  # noqa: PLC0415 - needed only where something is wrong

    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port and connection.pid:
                return f", held by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:  # other users' processes are theirs to see
        pass
    return ""
