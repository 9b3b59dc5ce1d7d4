"""`python -m rerank_worker`: the rerank worker's process, configured by the environment (quadrate/config/worker.py)."""

from __future__ import annotations

import sys

from quadrate.arguments import parser
from quadrate.config.worker import RerankSettings
from quadrate.worker import main
from rerank_worker.service import services

if __name__ == "__main__":
    parser("python -m rerank_worker", "The worker of reranking models.", "RERANK_*").parse_args()
    sys.exit(main(RerankSettings, task="rerank", services=services))
