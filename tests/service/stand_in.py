"""A process that stands in for one of the mesh's: it answers /live and /ready, and fails as it is told by its environment."""

from __future__ import annotations

import http.server
import json
import os
import signal
import sys
from pathlib import Path


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        """Say how it is."""
        upstreams = [{"name": "tiny", "reason": os.environ["REASON"]}] if "REASON" in os.environ else []
        body = json.dumps({"status": os.environ.get("STATUS", "ok"), "upstreams": upstreams}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve on the port of the first argument until a signal."""
    good_starts = os.environ.get("GOOD_STARTS")
    if good_starts is not None:
        ledger = Path(os.environ["LEDGER"])
        starts = len(ledger.read_text()) if ledger.exists() else 0
        ledger.write_text("x" * (starts + 1))
        if starts >= int(good_starts):
            code = int(os.environ.get("EXIT_CODE", "3"))
            sys.stdout.write(json.dumps({"level": "FATAL", "message": "cannot start", "metadata": {"reason": "the moon is wrong"}}) + "\n")
            sys.exit(code)
    if os.environ.get("STUBBORN"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), _Handler).serve_forever()


main()
