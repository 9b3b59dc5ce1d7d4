"""What the gateway's cache gains where texts come again: the mesh over REST with the cache, and with the cache switched off, in turn.

    python benchmarks/cache.py

A thousand paragraphs are asked for over and over by 32 connections, one text a request; with the cache all of them were asked for once
before. Each measure starts a mesh of its own as a user does (`quadrate up`) and stops it. Linux only (wrk).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import corpus
import mesh

ON, OFF = "with the cache, requests/s", "computing each, requests/s"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    bodies = mesh.bodies_of(corpus.paragraphs(mesh.TEXTS), 1)

    def measure(max_bytes: int) -> float:
        with mesh.Mesh(ROUTER_CACHE_MAX_BYTES=str(max_bytes)) as running:
            mesh.load(running.port, bodies, options.seconds)  # every text once, and no cold start
            return mesh.load(running.port, bodies, options.seconds).requests_per_second

    figures = mesh.compare(options.rounds, {ON: lambda: measure(32 * 2**20), OFF: lambda: measure(0)})
    medians = {name: statistics.median(values) for name, values in figures.items()}
    for name, median in medians.items():
        print(f"{name:32} {median:8.0f}")
    print(f"{'ratio':32} {medians[ON] / medians[OFF]:8.2f}")


if __name__ == "__main__":
    main()
