"""`python -m gateway` as a process: it starts from the environment, says what is wrong with it, and goes when told."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
import psutil
import pytest

from quadrate.testing.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILES = {
    "routing": "embeddings: [{model: bge-m3, served_name: BAAI/bge-m3, upstream: {type: infinity, url: 'http://127.0.0.1:1'}}]",
    "auth": "api_keys: [production-key-1]\nallow_anonymous_without_api_keys: false",
    "rate_limits": "default: {capacity: 60, refill_rate: 30}\nanonymous: {capacity: 30, refill_rate: 15}",
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return an environment with files of an earlier deployment and free ports."""
    port, http_port = free_ports(2)
    for name, text in FILES.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    paths = {f"ROUTER_{name.upper()}_PATH": str(tmp_path / f"{name}.yaml") for name in FILES}
    ports = {"ROUTER_PORT": str(port), "ROUTER_HTTP_PORT": str(http_port)}
    only_when_asked = {"ROUTER_ROUTING_RELOAD_INTERVAL_SECONDS": "0"}
    of_old = {"ROUTER_TOKENIZER_NAME": "BAAI/bge-m3", "ROUTER_FEATURE_FLAGS": "of_old"}
    return {**os.environ, **paths, **ports, **only_when_asked, **of_old}


def lines(text: str) -> list[dict[str, Any]]:
    """Return the log's lines; what the libraries write beside them is left out."""
    return [orjson.loads(line) for line in text.splitlines() if line.startswith("{")]


@pytest.fixture
def process(environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A running gateway."""
    command = [sys.executable, "-m", "gateway"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        yield process
        process.kill()


async def answer(url: str) -> tuple[int, Any]:
    """Return what a GET answers, as soon as the port is open."""
    async with asyncio.timeout(20), aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(url) as found:
                    return found.status, await found.json()
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)


async def test_it_starts_without_workers_and_says_what_it_does_not_do(process: Any, environment: dict[str, str]) -> None:
    """Alive and not ready; an unused variable is named; SIGTERM ends it within seconds, with status 0."""
    base = f"http://127.0.0.1:{environment['ROUTER_HTTP_PORT']}"
    assert await answer(f"{base}/health/live") == (200, {"status": "ok"})
    status, report = await answer(f"{base}/health/ready")
    assert (status, report["status"]) == (503, "unavailable")
    assert [(line["name"], line["type"], line["status"]) for line in report["upstreams"]] == [
        ("bge-m3@127.0.0.1:1", "infinity", "unavailable")
    ]
    assert (await answer(f"{base}/openapi.json"))[1]["openapi"].startswith("3.")
    assert psutil.Process(process.pid).memory_info().rss < 200e6
    process.send_signal(signal.SIGTERM)
    written, _ = await asyncio.to_thread(process.communicate, timeout=10)
    assert process.returncode == 0
    said = {line["message"]: line["metadata"] for line in lines(written)}
    assert said["a feature flag is not known to this version"]["flag"] == "of_old"
    assert "production-key-1" not in written


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("routing", "embeddings: [{modell: x}]", "routing.yaml:1: embeddings[0].modell: unknown key"),
        ("auth", "api_keys: 5", "auth.yaml:1: api_keys"),
        ("rate_limits", "default: {capacity: 0, refill_rate: 1}", "rate_limits.yaml:1: default.capacity"),
    ],
)
def test_a_file_it_cannot_use_is_one_sentence_and_status_2(
    environment: dict[str, str], tmp_path: Path, file: str, text: str, reason: str
) -> None:
    """File, line, key and what is wrong; no traceback."""
    (tmp_path / f"{file}.yaml").write_text(text)
    done = subprocess.run([sys.executable, "-m", "gateway"], env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    (line,) = (line for line in lines(done.stdout) if line["level"] == "FATAL")
    assert reason in line["metadata"]["reason"]
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["ROUTER_PORT", "ROUTER_HTTP_PORT"])
def test_a_taken_port_is_named(environment: dict[str, str], process: Any, name: str) -> None:
    """Which port, and the way out; the gateway that has it goes on."""
    asyncio.run(answer(f"http://127.0.0.1:{environment['ROUTER_HTTP_PORT']}/health/live"))
    (free,) = free_ports(1)
    other = "ROUTER_HTTP_PORT" if name == "ROUTER_PORT" else "ROUTER_PORT"
    again = {**environment, other: str(free)}
    done = subprocess.run([sys.executable, "-m", "gateway"], env=again, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    (line,) = (line for line in lines(done.stdout) if line["level"] == "FATAL")
    assert f"port {environment[name]} on 127.0.0.1 cannot be opened" in line["metadata"]["reason"]
    assert process.poll() is None


async def test_sighup_has_files_read_again(process: Any, environment: dict[str, str], tmp_path: Path) -> None:
    """At once, and the process goes on."""
    base = f"http://127.0.0.1:{environment['ROUTER_HTTP_PORT']}"
    await answer(f"{base}/health/live")
    (tmp_path / "routing.yaml").write_text(FILES["routing"].replace("model: bge-m3", "model: another"))
    process.send_signal(signal.SIGHUP)
    async with asyncio.timeout(20):
        while (await answer(f"{base}/health/ready"))[1]["upstreams"][0]["name"] != "another@127.0.0.1:1":
            await asyncio.sleep(0.05)
    assert process.poll() is None
