"""Workers over a real channel, on a tiny random model."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2_grpc

from embed_worker.service import services as embed_services
from quadrate.config.worker import EmbedSettings, RerankSettings
from quadrate.telemetry import Telemetry
from quadrate.testing.model_folder import write_tiny_cross_encoder, write_tiny_model
from quadrate.v1 import admin_pb2_grpc, embed_pb2_grpc, model_pb2_grpc, rerank_pb2_grpc
from quadrate.worker import Worker
from rerank_worker.service import services as rerank_services
from tests.tiny_causal import CAUSAL_CARD, write_tiny_causal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@dataclass(frozen=True)
class Running:
    """A worker and what one calls it by."""

    worker: Worker
    embed: embed_pb2_grpc.EmbedServiceAsyncStub
    rerank: rerank_pb2_grpc.RerankServiceAsyncStub
    models: model_pb2_grpc.ModelServiceAsyncStub
    admin: admin_pb2_grpc.AdminServiceAsyncStub
    health: health_pb2_grpc.HealthStub


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    """Write a catalogue of tiny models and return its path."""
    prompts = {"query": "query: ", "document": "passage: "}
    plain = str(write_tiny_model(tmp_path / "plain"))
    prompted = str(write_tiny_model(tmp_path / "prompted", prompts=prompts))
    raw = str(write_tiny_model(tmp_path / "raw", pooling="cls", normalize=False))
    cross = str(write_tiny_cross_encoder(tmp_path / "cross"))
    identity = str(write_tiny_cross_encoder(tmp_path / "identity", activation="torch.nn.modules.linear.Identity"))
    causal = str(write_tiny_causal(tmp_path / "causal"))
    cards: dict[str, Any] = {
        "tiny": {"served_name": "tests/tiny", "task": "embed", "license": "Apache-2.0", "description": "Random."},
        "matryoshka": {"served_name": "tests/matryoshka", "task": "embed", "matryoshka_dimensions": [8, 16]},
        "prompted": {"served_name": "tests/prompted", "task": "embed", "truncation": "right"},
        "raw": {"served_name": "tests/raw", "task": "embed"},
        "late": {"served_name": "tests/late", "task": "rerank", "scoring": "late_interaction"},
        "cosine": {"served_name": "tests/cosine", "task": "rerank", "scoring": "cosine"},
        "crossed": {"served_name": "tests/crossed", "task": "rerank", "scoring": "cross_encoder"},
        "cross": {"served_name": "tests/cross", "task": "rerank", "scoring": "cross_encoder"},
        "identity": {"served_name": "tests/identity", "task": "rerank", "scoring": "cross_encoder"},
        "causal": {"served_name": "tests/causal", "task": "rerank", "scoring": "causal", **CAUSAL_CARD},
    }
    folders = {"prompted": prompted, "raw": raw, "cross": cross, "identity": identity, "causal": causal}
    for alias, card in cards.items():
        card["source"] = {"type": "folder", "path": folders.get(alias, plain)}
    path = tmp_path / "models.yaml"
    path.write_text(json.dumps({"models": cards}))  # JSON is YAML
    return path


@asynccontextmanager
async def running(task: str, catalogue: Path, *models: str, wait: bool = True, **changes: Any) -> AsyncIterator[Running]:
    """Run a worker for `models` on free ports and give its stubs; `changes` go into its settings.

    The catalogue is looked at when a test asks for it.
    """
    kind, services = (EmbedSettings, embed_services) if task == "embed" else (RerankSettings, rerank_services)
    settings = kind(model_name=models, port=0, http_port=0, threads=2, drain_seconds=0.5, **changes).model_copy(
        update={"models_path": catalogue, "models_reload_interval_seconds": 0}
    )
    worker = Worker(settings, task=task, services=services, telemetry=Telemetry.silent(task))
    async with worker, grpc.aio.insecure_channel(f"127.0.0.1:{worker.server.port}") as channel:
        if wait:
            await worker.loaded.wait()
        yield Running(
            worker,
            embed_pb2_grpc.EmbedServiceStub(channel),
            rerank_pb2_grpc.RerankServiceStub(channel),
            model_pb2_grpc.ModelServiceStub(channel),
            admin_pb2_grpc.AdminServiceStub(channel),
            health_pb2_grpc.HealthStub(channel),
        )
