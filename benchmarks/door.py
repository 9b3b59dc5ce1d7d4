"""What keys, limits and routing add to one idle request: a mesh whose door is open beside meshes whose door is guarded, in turn.

    python benchmarks/door.py

*open*: nobody needs a key, nothing is limited, one worker. *guarded*: a hundred hashed keys, of which callers have one; every kind of
limit, for the model, too; two workers to choose from and two more in reserve that never come. *with Redis*: the same, and limits are
counted in a Redis on this machine (needs redis-server). The model's run is replaced (EMBED_SESSION=null) and the cache is off. All meshes
run at once, one request at a time goes to each in turn over one connection each, and the median of the differences counts. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent))
import mesh

if TYPE_CHECKING:
    from collections.abc import Iterator

KEYS = 100
REDIS_PORT = 16379
ROOT = Path(__file__).resolve().parent.parent
LIMITS = "{capacity: 1000000, refill_rate: 1000000, tokens_per_minute: 1000000000, tokens_per_day: 1000000000, concurrent_requests: 1000"
BODY = json.dumps({"model": "minilm", "input": "What is the capital of France?", "encoding_format": "base64"})


class Caller:
    """One connection to one mesh.

    Args:
        port: The mesh's.
        key: What it shows; empty: nothing.
    """

    def __init__(self, port: int, key: str = "") -> None:
        self._headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        self._connection.connect()
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def milliseconds(self) -> float:
        """Ask once, and return how long it took."""
        started = time.perf_counter()
        self._connection.request("POST", "/v1/embeddings", BODY, self._headers)
        answer = self._connection.getresponse()
        answer.read()
        if answer.status != http.HTTPStatus.OK:
            raise SystemExit(f"answered {answer.status}")
        return (time.perf_counter() - started) * 1e3


def configuration(folder: Path, first_port: int, key: str) -> Path:
    """Write the files of a guarded door; return their folder."""
    shutil.copytree(ROOT / "configs", folder)
    keys = [secrets.token_urlsafe(32) for _ in range(KEYS - 1)] + [key]
    lines = [f"  - {{sha256: {hashlib.sha256(one.encode()).hexdigest()}, name: caller-{number}}}" for number, one in enumerate(keys)]
    (folder / "auth.yaml").write_text("\n".join(["api_keys:", *lines, ""]), encoding="utf-8")
    limits = f"default: {LIMITS}, models: {{minilm: {LIMITS}}}}}}}\n"
    (folder / "rate_limits.yaml").write_text(limits, encoding="utf-8")
    both = f"{{type: grpc, url: 'grpc://127.0.0.1:{first_port}', replicas: ['grpc://127.0.0.1:{first_port + 10}']}}"
    reserve = "{type: grpc, priority: 1, url: 'grpc://127.0.0.2:9', replicas: ['grpc://127.0.0.3:9']}"
    rerank = f"{{type: grpc, url: 'grpc://127.0.0.1:{first_port + 5}'}}"
    routes = (
        f"embeddings:\n  - {{model: minilm, upstreams: [{both}, {reserve}]}}\nrerank:\n  - {{model: minilm-rerank, upstream: {rerank}}}\n"
    )
    (folder / "routing.yaml").write_text(routes, encoding="utf-8")
    return folder


def ports(base: int) -> list[str]:
    """Return the flags that put a mesh on ports of its own."""
    given = {"gateway": base + 1, "embed": base + 30, "rerank": base + 35, "admin": base + 60}
    return [part for name, port in given.items() for part in (f"--{name}-port", str(port))]


@contextlib.contextmanager
def redis() -> Iterator[str]:
    """Run a Redis and give its URL."""
    command = ["redis-server", "--port", str(REDIS_PORT), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield f"redis://127.0.0.1:{REDIS_PORT}/0"
    finally:
        server.terminate()
        server.wait(10)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=3_000)
    options = parser.parse_args()
    key = secrets.token_urlsafe(32)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(redis())
        callers = {"open": Caller(stack.enter_context(mesh.Mesh(*ports(18000), port=18000, EMBED_SESSION="null")).port)}
        for name, base, more in (("guarded", 18200, {}), ("with Redis", 18400, {"ROUTER_REDIS_URL": url})):
            config = configuration(folder / name.replace(" ", "-"), base + 30, key)
            flags = [*ports(base), "--config", str(config), "--embed-workers", "2"]
            running = stack.enter_context(mesh.Mesh(*flags, port=base, key=key, EMBED_SESSION="null", **more))
            callers[name] = Caller(running.port, key)
        for caller in callers.values():
            for _ in range(200):
                caller.milliseconds()
        times = [{name: caller.milliseconds() for name, caller in callers.items()} for _ in range(options.requests)]
    for name in callers:
        median = statistics.median(one[name] for one in times)
        added = statistics.median(one[name] - one["open"] for one in times)
        print(f"{name:12} {median:6.2f} ms   added {added:6.3f} ms")


if __name__ == "__main__":
    main()
