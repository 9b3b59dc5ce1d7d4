"""The gateway's settings come from the environment and are checked there."""

from __future__ import annotations

import pytest

from quadrate.config.features import Features
from quadrate.config.gateway import load_gateway_settings
from quadrate.errors import ConfigError


def test_names_are_those_of_the_runbooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """ROUTER_ names, and the two limits that gateway and rerank worker share."""
    given = {
        "ROUTER_PORT": "1234",
        "ROUTER_SAFE_REQUEST_TOKEN_LIMIT": "99",
        "ROUTER_DOCUMENT_TOKEN_LIMIT": "77",
        "ROUTER_REQUEST_TIMEOUT_SECONDS": "2.5",
        "ROUTER_ALLOW_DISABLED_MODELS": "true",
        "ROUTER_ROUTING_PATH": "/x/routing.yaml",
        "ROUTER_METRICS_PEERS": "a:1, b:2,",
        "RERANK_MAX_DOCUMENTS": "7",
        "RERANK_MAX_DOCUMENT_LENGTH": "8",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = load_gateway_settings()
    assert (settings.port, settings.safe_request_token_limit, settings.document_token_limit) == (1234, 99, 77)
    assert (settings.request_timeout_seconds, settings.allow_disabled_models) == (2.5, True)
    assert str(settings.routing_path) == "/x/routing.yaml"
    assert settings.metrics_peers == ("a:1", "b:2")
    assert (settings.max_documents, settings.max_document_characters) == (7, 8)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ROUTER_PORT", "99999"),
        ("ROUTER_HTTP_PORT", "x"),
        ("ROUTER_REQUEST_TIMEOUT_SECONDS", "0"),
        ("RERANK_MAX_DOCUMENTS", "-1"),
        ("ROUTER_METRICS_PEERS", "nohost"),
    ],
)
def test_a_wrong_value_names_its_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """The sentence begins with the variable."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"^{name}: "):
        load_gateway_settings()


def test_a_shared_cache_needs_a_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody shall believe that answers are shared while they are not."""
    monkeypatch.setenv("ROUTER_CACHE_REDIS", "true")
    with pytest.raises(ConfigError, match="ROUTER_CACHE_REDIS is on and ROUTER_REDIS_URL is not set"):
        load_gateway_settings()
    monkeypatch.setenv("ROUTER_REDIS_URL", "redis://redis:6379/0")
    assert load_gateway_settings().cache_redis


def test_flags_switch_features_off_and_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, in either of two ways; what an earlier deployment had besides is told, and changes nothing."""
    assert load_gateway_settings().features == Features()
    monkeypatch.setenv("ROUTER_FEATURE_FLAGS", "-http-canaries, estimated_tokens=off, protocol_detection, new_ui, -old=yes")
    settings = load_gateway_settings()
    assert settings.features == Features(http_canaries=False, estimated_tokens=False)
    assert settings.unknown_feature_flags == ("new_ui", "-old=yes")
    monkeypatch.setenv("ROUTER_FEATURE_FLAGS", "http_canaries=perhaps")
    with pytest.raises(ConfigError, match="ROUTER_FEATURE_FLAGS: 'http_canaries=perhaps' is neither on nor off"):
        load_gateway_settings()
