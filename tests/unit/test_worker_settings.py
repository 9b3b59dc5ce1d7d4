"""The workers' settings come from the environment, and a wrong one is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from quadrate.config.worker import EmbedSettings, RerankSettings, load_worker_settings
from quadrate.errors import ConfigError
from quadrate.runtime.batching import Limits
from quadrate.runtime.jobs import Rules
from quadrate.worker.rules import rules_of


def test_defaults_are_those_of_the_quick_start() -> None:
    """Defaults are those of the quick start."""
    embed, rerank = load_worker_settings(EmbedSettings), load_worker_settings(RerankSettings)
    assert (embed.model_name, embed.port, embed.http_port) == (("minilm",), 7997, 7998)
    assert (rerank.model_name, rerank.port, rerank.http_port) == (("minilm-rerank",), 9002, 9003)
    assert (rerank.max_documents, rerank.max_document_length, rerank.batch_delay_ms) == (50, 4096, 0.0)
    assert embed.host == "127.0.0.1"


def test_each_kind_reads_its_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind reads its own names, and both the catalogue's."""
    monkeypatch.setenv("EMBED_MODEL_NAME", "a, b,a")
    monkeypatch.setenv("EMBED_MAX_BATCH_SIZE", "8")
    monkeypatch.setenv("RERANK_MODEL_MAPPING", '{"rerank-base": "minilm-rerank"}')
    monkeypatch.setenv("QUADRATE_MODELS_PATH", "/etc/models.yaml")
    embed, rerank = load_worker_settings(EmbedSettings), load_worker_settings(RerankSettings)
    assert embed.model_name == ("a", "b")
    assert (embed.max_batch_size, rerank.max_batch_size) == (8, None)
    assert rerank.model_mapping == {"rerank-base": "minilm-rerank"}
    assert embed.models_path == rerank.models_path == Path("/etc/models.yaml")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("EMBED_PORT", "70000", "EMBED_PORT"),
        ("EMBED_DEVICE", "tpu", "EMBED_DEVICE"),
        ("EMBED_QUEUE_TIMEOUT_MS", "-1", "EMBED_QUEUE_TIMEOUT_MS"),
        ("EMBED_MODEL_MAPPING", "[", "EMBED_MODEL_MAPPING: it must be a JSON object"),
        ("EMBED_SESSION", "fast", "EMBED_SESSION"),
        ("EMBED_MAX_BATCH_SIZE", "5000", "EMBED_MAX_BATCH_SIZE: .* 4096"),
    ],
)
def test_a_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    """A wrong value is refused by the variable's name; nothing that is asked for and not served is passed over."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said):
        load_worker_settings(EmbedSettings)


def test_batches_are_as_the_device_likes_them_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are as the device likes them, unless the variables say otherwise; each of them has its effect."""
    monkeypatch.setenv("EMBED_THREADS", "3")
    usual = load_worker_settings(EmbedSettings)
    assert (rules_of(usual, on_gpu=False).limits, rules_of(usual, on_gpu=False).runners) == (Limits(256, 64), 3)
    assert (rules_of(usual, on_gpu=True).limits, rules_of(usual, on_gpu=True).runners) == (Limits(16_384, 512), 2)
    monkeypatch.setenv("EMBED_PRECISION", "fast")
    fast = rules_of(load_worker_settings(EmbedSettings), on_gpu=False)
    assert (fast.limits, fast.is_long(256), fast.is_long(257)) == (Limits(512, 64), False, True)
    for name, value in (("SIZE", 300), ("TOKENS", 1000)):
        monkeypatch.setenv(f"EMBED_MAX_BATCH_{name}", str(value))
    for name, value in (("BATCH_DELAY_MS", 20), ("QUEUE_TIMEOUT_MS", 1000), ("LONG_TEXT_TOKENS", 128), ("STUCK_SECONDS", 7)):
        monkeypatch.setenv(f"EMBED_{name}", str(value))
    rules = rules_of(load_worker_settings(EmbedSettings), on_gpu=True)
    assert rules == Rules(Limits(1000, 300), 2, delay_seconds=0.02, queue_seconds=1.0, stuck_seconds=7.0, long_tokens=128)
    assert rules.limits.window == 300
    assert (rules.is_long(128), rules.is_long(129)) == (False, True)
    assert (rules_of(usual, on_gpu=False).is_long(256), rules_of(usual, on_gpu=False).is_long(257)) == (False, True)
