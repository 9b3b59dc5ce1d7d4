"""From a configuration folder and the flags of `up` to the plan of a mesh on this machine."""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import yaml

from quadrate.cli import catalogue, certs
from quadrate.cli.local_routes import LOOPBACK, localised, named_ports, served_at, served_here, with_added
from quadrate.cli.plan import Folder, Plan, Process
from quadrate.config.auth import load_auth
from quadrate.config.edge import load_edge_settings
from quadrate.config.loose_ends import NOTHING_ENABLED
from quadrate.config.rate_limits import load_rate_limits
from quadrate.config.routing import RoutingFile, load_routing
from quadrate.cores import usable_cores
from quadrate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from quadrate.config.auth import AuthFile
    from quadrate.config.edge import EdgeSettings
    from quadrate.config.models import ModelCard, ModelsFile
    from quadrate.config.routing import Route
    from quadrate.config.worker import Precision
    from quadrate.config.yamlfile import Schema

Kind = Literal["embed", "rerank"]
FIRST_PORT: dict[Kind, int] = {"embed": 7997, "rerank": 9002}
"""The gRPC port of the first worker of a kind, unless a flag or a route names another."""
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
    embed_workers: int | None = None
    """None, and no port either: a worker at every port of this machine that routing.yaml names."""
    rerank_workers: int | None = None
    host: str = LOOPBACK
    port: int = 8085
    gateway_port: int = 8000
    embed_port: int | None = None
    rerank_port: int | None = None
    admin_port: int = 9901
    tls: bool = False
    """Whether callers and processes speak TLS by certificates of the mesh's folder."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker process that is to run."""

    kind: Kind
    number: int
    """Its place among those of its kind, from 0."""
    port: int
    aliases: tuple[str, ...]
    """What it serves."""
    of: int
    """How many of its kind there are."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """What is to run, checked."""

    routing: RoutingFile
    catalogue: ModelsFile
    embed: tuple[str, ...]
    """Aliases that the embed workers of this machine serve."""
    rerank: tuple[str, ...]
    workers: tuple[Worker, ...]
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
        for role, flag, first in self._rows():
            for port, wanted_by in ((first, role), (first + 1, f"{role} at {first} for metrics and health")):
                if port in found:
                    or_route = " or in routing.yaml" if role.endswith("_worker") else ""
                    raise ConfigError(f"port {port} is wanted by {wanted_by} and by {found[port][0]}; move one with {flag}{or_route}.")
                found[port] = (wanted_by, flag)
        return found

    def _rows(self) -> Iterator[tuple[str, str, int]]:
        for worker in self.workers:
            yield f"{worker.kind}_worker", f"--{worker.kind}-port", worker.port
        for number in range(self.options.gateways):
            yield "gateway", "--gateway-port", _ports(self.options.gateway_port, number)[0]


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
    embed_at = _worker_ports("embed", [route for route in written.embeddings if route.model not in added], options)
    rerank_at = _worker_ports("rerank", [route for route in written.rerank if route.model not in added], options)
    routing = localised(
        with_added(written, added, embed=_addresses(embed_at), rerank=_addresses(rerank_at)),
        embed=_addresses(embed_at) if _flags("embed", options) != _NOTHING_SAID else None,
        rerank=_addresses(rerank_at) if _flags("rerank", options) != _NOTHING_SAID else None,
        tls=options.tls,
    )
    if not routing.enabled:
        raise ConfigError(f"{options.config / 'routing.yaml'}: {NOTHING_ENABLED}.")
    changed = {"models.yaml"} if added else set()
    if routing != written:
        changed.add("routing.yaml")
    embed, rerank = served_here(routing.embeddings, models, "embed"), served_here(routing.rerank, models, "rerank")
    workers = (*_workers("embed", routing.embeddings, embed_at), *_workers("rerank", routing.rerank, rerank_at))
    return Mesh(routing, models, embed, rerank, workers, auth, options, frozenset(changed))


def plan(mesh: Mesh, folder: Folder) -> Plan:
    """Return the processes, the ones that others need first."""
    options = mesh.options
    paths = {name: (folder.config if name in mesh.changed else options.config) / name for name in ("routing.yaml", "models.yaml")}
    workers = [_worker(mesh, worker, paths["models.yaml"]) for worker in mesh.workers]
    gateways = [_gateway(options, number, paths["routing.yaml"]) for number in range(options.gateways)]
    if options.tls:
        workers, gateways = [_encrypted(one, folder) for one in workers], [_encrypted(one, folder) for one in gateways]
    return Plan(f"{options.host}:{options.port}", (*workers, *gateways, _edge(options, folder, gateways)))


def write(mesh: Mesh, folder: Folder) -> None:
    """Write the files that flags changed, in place of those that former flags did, and Envoy's configuration. Raises ConfigError."""
    from quadrate.edge import render  # noqa: PLC0415 - only the one who writes needs it

    contents: dict[str, Schema] = {"routing.yaml": mesh.routing, "models.yaml": mesh.catalogue}
    for name in contents.keys() - mesh.changed:
        (folder.config / name).unlink(missing_ok=True)
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


_NOTHING_SAID = (None, None)


def _flags(kind: Kind, options: Options) -> tuple[int | None, int | None]:
    """Return what flags say of the workers of a kind: how many, and the first one's port."""
    return (options.embed_workers, options.embed_port) if kind == "embed" else (options.rerank_workers, options.rerank_port)


def _worker_ports(kind: Kind, routes: Sequence[Route], options: Options) -> tuple[int, ...]:
    """Return the gRPC ports of the workers of a kind: as flags say, or else as the routes do."""
    named = named_ports(routes) or (FIRST_PORT[kind],)
    count, first = flags = _flags(kind, options)
    if flags == _NOTHING_SAID:
        return named
    return tuple(_ports(named[0] if first is None else first, number)[0] for number in range(1 if count is None else count))


def _workers(kind: Kind, routes: Sequence[Route], ports: Sequence[int]) -> tuple[Worker, ...]:
    """Return the workers of a kind that have something to serve."""
    serving = [(port, aliases) for port in ports if (aliases := served_at(routes, port))]
    return tuple(Worker(kind, number, port, aliases, of=len(serving)) for number, (port, aliases) in enumerate(serving))


def _addresses(ports: Iterable[int]) -> tuple[str, ...]:
    return tuple(f"{LOOPBACK}:{port}" for port in ports)


def _ports(first: int, number: int) -> tuple[int, int]:
    """Return the gRPC and the HTTP port of the process with this number, from 0."""
    return first + STRIDE * number, first + STRIDE * number + 1


def _named(role: str, number: int) -> str:
    return role if number == 0 else f"{role}-{number + 1}"


def _worker(mesh: Mesh, worker: Worker, models_path: Path) -> Process:
    prefix = worker.kind.upper()
    environment = {
        f"{prefix}_MODEL_NAME": ",".join(worker.aliases),
        "QUADRATE_MODELS_PATH": str(models_path),
    }
    if mesh.options.precision is not None:
        environment[f"{prefix}_PRECISION"] = mesh.options.precision
    if worker.of > 1 and not os.environ.get(f"{prefix}_THREADS"):  # they are busy at the same time: each gets its part of the cores
        environment[f"{prefix}_THREADS"] = str(max(1, usable_cores() // worker.of))
    return _process(f"{worker.kind}_worker", worker.number, prefix, worker.port, worker.port + 1, environment, worker.aliases)


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
