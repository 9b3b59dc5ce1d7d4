"""`python -m embed_worker`: the embed worker's process, configured by the environment (quadrate/config/worker.py)."""

from __future__ import annotations

import sys

from embed_worker.service import services
from quadrate.arguments import parser
from quadrate.config.worker import EmbedSettings
from quadrate.worker import main

if __name__ == "__main__":
    parser("python -m embed_worker", "The worker of embedding models.", "EMBED_*").parse_args()
    sys.exit(main(EmbedSettings, task="embed", services=services))
