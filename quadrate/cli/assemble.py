"""From a configuration folder and the flags of `up` to the plan of a mesh on this machine."""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import yaml

from quadrate.cli import catalogue, certs
from quadrate.cli.local_routes import LOOPBACK, localised, served_here, with_added
from quadrate.cli.plan import Folder, Plan, Process
from quadrate.config.auth import load_auth
from quadrate.config.edge import load_edge_settings
from quadrate.config.rate_limits import load_rate_limits
from quadrate.config.routing import RoutingFile, load_routing
from quadrate.config.worker import usable_cores
from quadrate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from quadrate.config.auth import AuthFile
    from quadrate.config.edge import EdgeSettings
    from quadrate.config.models import ModelCard, ModelsFile
    from quadrate.config.worker import Precision
    from quadrate.config.yamlfile import Schema

STRIDE = 10
"""From one gateway's or worker's ports to the next one's: 8000 and 8001, then 8010 and 8011. No two kinds meet."""


@dataclass(frozen=True, slots=True)
class Options:
    """The flags of `up`."""

    config: Path
    models: tuple[str, ...] = ()
    precision: Precision | None = None
    """None: as EMBED_PRECISION and RERANK_PRECISION say."""
    gateways: int = 1
    embed_workers: int = 1
    rerank_workers: int = 1
    host: str = LOOPBACK
    port: int = 8085
    gateway_port: int = 8000
    embed_port: int = 7997
    rerank_port: int = 9002
    admin_port: int = 9901
    tls: bool = False
    """Whether callers and processes speak TLS by certificates of the mesh's folder."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """What is to run, checked."""

    routing: RoutingFile
    catalogue: ModelsFile
    embed: tuple[str, ...]
    """Aliases that the embed workers of this machine serve."""
    rerank: tuple[str, ...]
    auth: AuthFile
    options: Options
    changed: frozenset[str]
    """The files of the configuration folder that flags changed."""

    @property
    def needs_key(self) -> bool:
        """Whether requests without an API key are refused."""
        return not self.auth.allow_anonymous_without_api_keys

    @property
    def cards(self) -> dict[str, ModelCard]:
        """The cards of all models that workers of this machine serve."""
        return {alias: self.catalogue.models[alias] for alias in (*self.embed, *self.rerank)}

    def ports(self) -> dict[int, tuple[str, str]]:
        """Return every port that is needed, with the process that needs it and the flag that moves it."""
        options = self.options
        found = {options.port: ("the edge", "--port"), options.admin_port: ("Envoy's admin interface", "--admin-port")}
        for role, flag, first, count in self._rows():
            for number in range(count):
                for offset in (0, 1):
                    port = first + STRIDE * number + offset
                    if port in found:
                        raise ConfigError(f"port {port} is wanted by {role} and by {found[port][0]}; move one with {flag}.")
                    found[port] = (role, flag)
        return found

    def _rows(self) -> tuple[tuple[str, str, int, int], ...]:
        options = self.options
        return (
            ("embed_worker", "--embed-port", options.embed_port, options.embed_workers if self.embed else 0),
            ("rerank_worker", "--rerank-port", options.rerank_port, options.rerank_workers if self.rerank else 0),
            ("gateway", "--gateway-port", options.gateway_port, options.gateways),
        )


def read(options: Options) -> Mesh:
    """Read the configuration folder and put the flags into it. Raises ConfigError and StoreError."""
    for name in ("routing.yaml", "models.yaml", "auth.yaml", "rate_limits.yaml"):
        if not (options.config / name).is_file():
            raise ConfigError(f"{options.config} has no {name}; --config names a folder like the configs/ that Quadrate comes with.")
    auth = load_auth(options.config / "auth.yaml")
    load_rate_limits(options.config / "rate_limits.yaml")
    written = load_routing(options.config / "routing.yaml")
    models = catalogue.load(options.config, options.models)
    added = {alias: models.models[alias] for alias in (catalogue.Given.parse(text).alias for text in options.models)}
    routing = localised(
        with_added(written, added),
        embed=_addresses(options.embed_port, options.embed_workers),
        rerank=_addresses(options.rerank_port, options.rerank_workers),
        tls=options.tls,
    )
    changed = {"models.yaml"} if added else set()
    if routing != written:
        changed.add("routing.yaml")
    embed, rerank = served_here(routing.embeddings, models, "embed"), served_here(routing.rerank, models, "rerank")
    return Mesh(routing, models, embed, rerank, auth, options, frozenset(changed))


def plan(mesh: Mesh, folder: Folder) -> Plan:
    """Return the processes, the ones that others need first."""
    options = mesh.options
    paths = {name: (folder.config if name in mesh.changed else options.config) / name for name in ("routing.yaml", "models.yaml")}
    workers = [
        *(_worker(mesh, "embed_worker", number, paths["models.yaml"]) for number in range(options.embed_workers if mesh.embed else 0)),
        *(_worker(mesh, "rerank_worker", number, paths["models.yaml"]) for number in range(options.rerank_workers if mesh.rerank else 0)),
    ]
    gateways = [_gateway(options, number, paths["routing.yaml"]) for number in range(options.gateways)]
    if options.tls:
        workers, gateways = [_encrypted(one, folder) for one in workers], [_encrypted(one, folder) for one in gateways]
    return Plan(f"{options.host}:{options.port}", (*workers, *gateways, _edge(options, folder, gateways)))


def write(mesh: Mesh, folder: Folder) -> None:
    """Write the files that flags changed and Envoy's configuration. Raises ConfigError."""
    from quadrate.edge import render  # noqa: PLC0415 - only the one who writes needs it

    contents: dict[str, Schema] = {"routing.yaml": mesh.routing, "models.yaml": mesh.catalogue}
    for name in mesh.changed:
        data = contents[name].model_dump(mode="json", exclude_defaults=True)
        file = folder.config / name
        file.touch(mode=0o600)  # a route may hold the key of its upstream
        file.write_text(f"# Written by quadrate up for its flags.\n{yaml.safe_dump(data, sort_keys=False)}")
    render(folder.config / "envoy.yaml", edge_settings(mesh.options, folder))


def edge_settings(options: Options, folder: Folder) -> EdgeSettings:
    """Return the edge's settings: the environment's, with the addresses and certificates of this mesh. Raises ConfigError."""
    grpc, http = zip(*(_ports(options.gateway_port, number) for number in range(options.gateways)), strict=True)
    return load_edge_settings(
        host=options.host,
        port=options.port,
        admin=f"{LOOPBACK}:{options.admin_port}",
        gateways=tuple(f"{LOOPBACK}:{port}" for port in grpc),
        gateways_http=tuple(f"{LOOPBACK}:{port}" for port in http),
        **(_of_tls(folder, "EDGE_", str.lower) if options.tls else {}),
    )


def _addresses(first: int, count: int) -> tuple[str, ...]:
    return tuple(f"{LOOPBACK}:{_ports(first, number)[0]}" for number in range(count))


def _ports(first: int, number: int) -> tuple[int, int]:
    """Return the gRPC and the HTTP port of the process with this number, from 0."""
    return first + STRIDE * number, first + STRIDE * number + 1


def _named(role: str, number: int) -> str:
    return role if number == 0 else f"{role}-{number + 1}"


def _worker(mesh: Mesh, role: Literal["embed_worker", "rerank_worker"], number: int, models_path: Path) -> Process:
    options = mesh.options
    prefix, aliases, first, count = (
        ("EMBED", mesh.embed, options.embed_port, options.embed_workers)
        if role == "embed_worker"
        else ("RERANK", mesh.rerank, options.rerank_port, options.rerank_workers)
    )
    port, http_port = _ports(first, number)
    environment = {
        f"{prefix}_MODEL_NAME": ",".join(aliases),
        "QUADRATE_MODELS_PATH": str(models_path),
    }
    if options.precision is not None:
        environment[f"{prefix}_PRECISION"] = options.precision
    if count > 1 and not os.environ.get(f"{prefix}_THREADS"):  # they are busy at the same time: each gets its part of the cores
        environment[f"{prefix}_THREADS"] = str(max(1, usable_cores() // count))
    return _process(role, number, prefix, port, http_port, environment, aliases)


def _gateway(options: Options, number: int, routing_path: Path) -> Process:
    port, http_port = _ports(options.gateway_port, number)
    peers = (f"{LOOPBACK}:{_ports(options.gateway_port, other)[1]}" for other in range(options.gateways))
    environment = {
        "ROUTER_ROUTING_PATH": str(routing_path),
        "ROUTER_AUTH_PATH": str(options.config / "auth.yaml"),
        "ROUTER_RATE_LIMITS_PATH": str(options.config / "rate_limits.yaml"),
        "ROUTER_METRICS_PEERS": ",".join(peers),
    }
    return _process("gateway", number, "ROUTER", port, http_port, environment, ())


def _process(
    role: str, number: int, prefix: str, port: int, http_port: int, environment: dict[str, str], models: tuple[str, ...]
) -> Process:
    listening = {f"{prefix}_HOST": LOOPBACK, f"{prefix}_PORT": str(port), f"{prefix}_HTTP_PORT": str(http_port)}
    url = f"http://{LOOPBACK}:{http_port}/health"
    return Process(
        name=_named(role, number),
        role=role,
        command=(sys.executable, "-m", role),
        environment=listening | environment,
        address=f"{LOOPBACK}:{port}",
        live=f"{url}/live",
        ready=f"{url}/ready",
        models=models,
    )


def _encrypted(process: Process, folder: Folder) -> Process:
    """Return a gateway or a worker that speaks TLS."""
    prefix = {"gateway": "ROUTER_", "embed_worker": "EMBED_", "rerank_worker": "RERANK_"}[process.role]
    return dataclasses.replace(process, environment=process.environment | _of_tls(folder, prefix))


def _of_tls(folder: Folder, prefix: str, spell: Callable[[str], str] | None = None) -> dict[str, str]:
    """Return the variables of TLS that begin with `prefix`; with `spell`, their names without it, spelt so."""
    found = {name: value for name, value in certs.variables(folder.certificates).items() if name.startswith(prefix)}
    return found if spell is None else {spell(name.removeprefix(prefix)): value for name, value in found.items()}


def _edge(options: Options, folder: Folder, gateways: list[Process]) -> Process:
    from quadrate.edge import command  # noqa: PLC0415 - only the one who writes needs it

    settings = edge_settings(options, folder)
    host = LOOPBACK if options.host == "0.0.0.0" else options.host  # noqa: S104 - compared, not listened on
    live = f"http://{LOOPBACK}:{options.admin_port}/ready"
    ready = f"{'https' if settings.tls else 'http'}://{host}:{options.port}/health/ready"
    asks_clients = settings.tls is not None and settings.tls.client_ca is not None  # the supervisor has nothing to show
    return Process(
        name="envoy",
        role="envoy",
        command=tuple(command(folder.config / "envoy.yaml", settings)),
        environment={},
        address=f"{options.host}:{options.port}",
        live=live,
        ready=live if asks_clients else ready,
        after=(gateways[0].name,),
    )
