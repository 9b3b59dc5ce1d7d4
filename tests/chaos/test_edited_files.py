"""Configuration that is edited under load, again and again, one time in three wrongly: no caller notices."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

from tests.chaos.load import Grpc, Load, Rest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.chaos.conftest import StartMesh
    from tests.chaos.mesh import ChaosMesh

KEY = "a-key-that-stays"
LOOK_SECONDS = "0.3"
PROCESSES = ("gateway", "gateway-2", "embed_worker", "embed_worker-2")


def routes(*targets: str, extra: str = "") -> str:
    """Return a routing.yaml that leads to these workers."""
    first, *others = [f"grpc://{target}" for target in targets]
    return f"embeddings:\n  - {{model: minilm, upstream: {{type: grpc, url: '{first}', replicas: {others}{extra}}}}}\n"


def keys(*more: str) -> str:
    """Return an auth.yaml with the callers' key and others."""
    return f"api_keys: [{', '.join((KEY, *more))}]\n"


def edits(mesh: ChaosMesh) -> Iterator[tuple[str, str]]:
    """Give edits without end, as file and text; every third one is broken, and another file is right again after it."""
    one, other = mesh.target("embed_worker"), mesh.target("embed_worker-2")
    models = (mesh.configs / "models.yaml").read_text()
    told = models.replace("description: English sentences", "description: Sentences in English")
    good = itertools.cycle(
        [
            ("routing.yaml", routes(one)),
            ("auth.yaml", keys("another-key")),
            ("models.yaml", told),
            ("routing.yaml", routes(other)),
            ("rate_limits.yaml", "default: {capacity: 2000000, refill_rate: 2000000}\n"),
            ("routing.yaml", routes(other, one, extra=", timeout_ms: 20000")),
            ("models.yaml", models),
            ("auth.yaml", keys()),
            ("routing.yaml", routes(one, other)),
        ]
    )
    broken = itertools.cycle(
        [
            ("routing.yaml", "embeddings: [{model: minilm, upstraem: {}}]"),
            ("models.yaml", models[: len(models) // 2] + "\n  : ["),
            ("auth.yaml", ""),
            ("routing.yaml", "embeddings: ["),
            ("rate_limits.yaml", "default: {capacity: none}"),
        ]
    )
    while True:
        yield next(good)
        yield next(good)
        yield next(broken)


async def test_edits_of_every_file_fail_no_call(start_mesh: StartMesh, length: Callable[[int, int], int]) -> None:
    """An edit a second for a while; both gateways took what was right, refused what was not, and stand as the files do at the end."""
    environment = {"ROUTER_ROUTING_RELOAD_INTERVAL_SECONDS": LOOK_SECONDS, "QUADRATE_MODELS_RELOAD_INTERVAL_SECONDS": LOOK_SECONDS}
    configs = {"auth.yaml": keys()}
    with start_mesh(gateways=2, embed_workers=2, environment=environment, configs=configs) as mesh:
        kept = {path.name: path.read_text() for path in mesh.configs.glob("*.yaml")}
        ways = (Rest(mesh.url, headers={"authorization": f"Bearer {KEY}"}), Grpc(mesh.edge, metadata=(("x-api-key", KEY),)))
        async with Load(*ways, callers=8) as load:
            for name, text in itertools.islice(edits(mesh), length(18, 600)):
                mesh.write_config(name, text)
                await load.seconds(1)
            for name, text in kept.items():
                mesh.write_config(name, text)
            await load.seconds(3)
        assert not load.failed, load.summary()
        for name in PROCESSES[:2]:
            assert mesh.metric(name, "router_config_reloads_total", outcome="applied") >= 5
            assert mesh.metric(name, "router_config_reloads_total", outcome="refused") >= 2
        for name in PROCESSES[2:]:
            assert mesh.metric(name, "embed_config_reloads_total", outcome="applied") >= 1
        await asyncio.to_thread(mesh.until_ready, *PROCESSES)
        for name in PROCESSES:
            state = mesh.readiness(name)["configuration"]
            assert (state["status"], state["reason"]) == ("ok", "")
