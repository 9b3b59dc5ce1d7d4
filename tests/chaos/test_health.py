"""Health while workers stand still: it never says that all is well when a model does not answer."""

from __future__ import annotations

import time
from signal import SIGCONT, SIGSTOP
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from tests.chaos.conftest import StartMesh
    from tests.chaos.mesh import ChaosMesh

NOTICED_SECONDS = 5.0
"""A probe asks every few seconds; where all cores are busy a second is not always one."""


def status(mesh: ChaosMesh) -> tuple[int, str]:
    """Ask the edge, as a load balancer before it would."""
    answer = httpx.get(f"{mesh.url}/health/ready", timeout=5)
    return answer.status_code, answer.json()["status"]


def test_readiness_is_not_ok_while_a_worker_stands_still(start_mesh: StartMesh) -> None:
    """One of two: degraded. Both: unavailable, and 503. Each is back as soon as it goes on."""
    with start_mesh(embed_workers=2) as mesh:
        assert status(mesh) == (200, "ok")
        began = time.monotonic()
        mesh.send("embed_worker", SIGSTOP)
        mesh.until(lambda: status(mesh) == (200, "degraded"), "it is not degraded", seconds=NOTICED_SECONDS)
        assert time.monotonic() - began < NOTICED_SECONDS
        (line,) = [line for line in mesh.readiness()["upstreams"] if line["status"] != "ok"]
        assert line["name"] == f"minilm@{mesh.target('embed_worker')}"
        assert line["reason"]
        mesh.send("embed_worker-2", SIGSTOP)
        mesh.until(lambda: status(mesh) == (503, "unavailable"), "it is not unavailable", seconds=2 * NOTICED_SECONDS)
        mesh.send("embed_worker", SIGCONT)
        mesh.until(lambda: status(mesh) == (200, "degraded"), "it is not degraded again", seconds=2 * NOTICED_SECONDS)
        mesh.send("embed_worker-2", SIGCONT)
        mesh.until(lambda: status(mesh) == (200, "ok"), "it is not ok again", seconds=2 * NOTICED_SECONDS)
