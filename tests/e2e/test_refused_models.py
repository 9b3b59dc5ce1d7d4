"""What is not served and why, seen through a whole mesh: by callers, by operators, and by who starts it."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
import yaml

from quadrate.cli import models
from quadrate.config.shipped import shipped
from quadrate.testing.model_folder import write_tiny_model
from tests.e2e.conftest import flags
from tests.processes import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.conftest import Mesh, StartMesh

BUDGET_MIB = 4
REFUSALS = {
    "wrong": "text 1, dense: the cosine to the golden vector is",
    "large": f"of EMBED_MEMORY_BUDGET_MIB={BUDGET_MIB} are left",
}


def write_catalogue(config: Path, cards: dict[str, dict[str, Any]]) -> None:
    """Write the cards of embedding models."""
    (config / "models.yaml").write_text(
        yaml.safe_dump({"models": {alias: {"served_name": f"tests/{alias}", "task": "embed", **card} for alias, card in cards.items()}})
    )


def source(folder: Path) -> dict[str, str]:
    """Return the source of a model's folder."""
    return {"type": "folder", "path": str(folder)}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a catalogue with a good model and three that are not served: by golden vectors, for want of room, for code of its own."""
    folder = tmp_path_factory.mktemp("refused")
    config = folder / "configs"
    shutil.copytree(shipped("configs"), config)
    good = source(write_tiny_model(folder / "good"))
    write_catalogue(config, {"wrong": {"source": good}})
    assert models.verify(config, ["wrong"], make_golden=True, precision="exact") == 0
    golden = config / "golden" / "wrong.json"
    file = json.loads(golden.read_text())
    first, second, *_ = file["texts"]
    first["dense"], second["dense"] = second["dense"], first["dense"]
    golden.write_text(json.dumps(file))
    cards = {
        "good": {"source": good},
        "wrong": {"source": good, "golden": "golden/wrong.json"},
        "large": {"source": source(write_tiny_model(folder / "large", intermediate_size=32_768))},
        "coded": {"source": source(write_tiny_model(folder / "coded", auto_map={"AutoModel": "modeling.Model"}))},
    }
    write_catalogue(config, cards)
    upstream = {"type": "grpc", "url": "grpc://127.0.0.1:7997"}
    routes = [{"model": alias, "upstream": upstream} for alias in ("good", *REFUSALS)]
    (config / "routing.yaml").write_text(yaml.safe_dump({"embeddings": routes, "rerank": []}))
    return config


@pytest.fixture(scope="module")
def partly(config: Path, start_mesh: StartMesh) -> Iterator[Mesh]:
    """A mesh that serves one of its three models."""
    with start_mesh("--config", str(config), environment={"EMBED_MEMORY_BUDGET_MIB": str(BUDGET_MIB)}) as found:
        yield found


def reasons(mesh: Mesh) -> dict[str, str]:
    """Return what readiness says of each model."""
    rows = httpx.get(f"{mesh.url}/health/ready").json()["upstreams"]
    return {row["name"].partition("@")[0]: f"{row['status']} {row['reason']}".strip() for row in rows}


def card_of(mesh: Mesh, alias: str) -> dict[str, Any]:
    """Return a model's card as callers get it."""
    card: dict[str, Any] = httpx.get(f"{mesh.url}/quadrate/v1/models/{alias}").json()["model"]
    return card


def answers(mesh: Mesh, alias: str) -> bool:
    """Whether a model embeds."""
    return httpx.post(f"{mesh.url}/v1/embeddings", json={"model": alias, "input": "still here"}).status_code == 200


@pytest.mark.parametrize("alias", REFUSALS)
async def test_a_model_that_is_not_served_says_why(partly: Mesh, alias: str) -> None:
    """503 to the SDK, and the reason in readiness, in the model's card and in `quadrate status`; the good one answers beside it."""
    with openai.OpenAI(base_url=f"{partly.url}/v1", api_key="none", default_headers={"Authorization": ""}, max_retries=0) as sdk:
        with pytest.raises(openai.InternalServerError) as refusal:
            sdk.embeddings.create(model=alias, input="hello")
        assert len(sdk.embeddings.create(model="good", input="hello").data[0].embedding) == 32
    assert (refusal.value.status_code, refusal.value.code) == (503, "unavailable")
    await eventually(lambda: REFUSALS[alias] in reasons(partly)[alias], "readiness does not say why")
    card = card_of(partly, alias)
    assert card["state"] == "MODEL_STATE_UNAVAILABLE"
    assert REFUSALS[alias] in card["state_reason"]
    await eventually(lambda: REFUSALS[alias] in partly.command("status", "--port", str(partly.ports["port"])).stdout, "nor does status")


async def test_a_load_that_is_refused_leaves_what_worked(partly: Mesh, config: Path) -> None:
    """Code of a model's own, and golden vectors that are not the model's: the command says why, and callers notice nothing."""
    worker = partly.target("embed")
    coded = partly.command("models", "load", "coded", "--worker", worker, "--config", str(config))
    assert (coded.returncode, "auto_map says that the model needs code of its own" in coded.stderr) == (1, True)
    catalogue = yaml.safe_load((config / "models.yaml").read_text())["models"]
    catalogue["good"]["golden"] = "golden/wrong.json"
    write_catalogue(config, catalogue)
    again = partly.command("models", "load", "good", "--worker", worker, "--config", str(config))
    assert (again.returncode, REFUSALS["wrong"] in again.stderr) == (1, True)
    await eventually(lambda: reasons(partly)["good"].startswith("ok it could not be loaded again: "), "readiness does not tell")
    assert answers(partly, "good")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("EMBED_DEVICE", "tpu", "EMBED_DEVICE: it must be auto, cpu, gpu, gpu:1"),
        ("RERANK_DEVICE", "gpu:99", "device gpu:99 is asked for, and "),
        ("EMBED_DEVICE", "gpu:MIG-7", "gpu:MIG-… (a UUID from there)"),
        ("RERANK_PRECISION", "half", "RERANK_PRECISION: Input should be 'exact', 'fast' or 'small'"),
        ("EMBED_QUANTIZATION", "int4", "EMBED_QUANTIZATION: "),
        ("RERANK_MAX_DOCUMENTS", "0", "RERANK_MAX_DOCUMENTS: "),
        ("RERANK_MODEL_MAPPING", "{", "RERANK_MODEL_MAPPING: it must be a JSON object of names"),
    ],
)
def test_what_a_worker_cannot_be_is_said_before_anything_starts(
    mesh: Mesh, free_ports: dict[str, int], monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    """A variable that means nothing, or what this machine cannot give, is one sentence of `up`."""
    monkeypatch.setenv(name, value)
    done = mesh.command("up", *flags(free_ports))
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
