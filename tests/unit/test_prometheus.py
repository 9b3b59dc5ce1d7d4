"""The Prometheus configuration is valid and names the ports that the settings have by default."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from quadrate.config.edge import EdgeSettings
from quadrate.config.gateway import GatewaySettings
from quadrate.config.worker import EmbedSettings, RerankSettings

if TYPE_CHECKING:
    from collections.abc import Callable

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "prometheus" / "prometheus.yaml"


def test_every_process_is_scraped_at_its_default_port() -> None:
    """The edge, the gateway and both workers: one job each."""
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in yaml.safe_load(CONFIG.read_text())["scrape_configs"]}
    ports = {
        "quadrate": EdgeSettings.model_fields["port"].default,
        "quadrate-gateway": GatewaySettings.model_fields["http_port"].default,
        "quadrate-embed-worker": EmbedSettings.model_fields["http_port"].default,
        "quadrate-rerank-worker": RerankSettings.model_fields["http_port"].default,
    }
    assert jobs == {name: [f"127.0.0.1:{port}"] for name, port in ports.items()}


def test_prometheus_accepts_it(require_program: Callable[[str], str]) -> None:
    """`promtool check config` finds nothing."""
    done = subprocess.run([require_program("promtool"), "check", "config", str(CONFIG)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
