"""`python -m gateway`: the gateway process, configured by the environment (quadrate/config/gateway.py)."""

from __future__ import annotations

import asyncio
import signal
import sys

from gateway.process import Gateway
from quadrate.arguments import parser
from quadrate.config.gateway import load_gateway_settings
from quadrate.cores import interrupt_nobody
from quadrate.errors import ConfigError
from quadrate.server import run
from quadrate.telemetry import Telemetry, log


async def serve() -> None:
    """Serve until told to stop. Raises ConfigError."""
    telemetry = Telemetry.start(component="gateway", prefix="router")
    gateway = Gateway(load_gateway_settings(), telemetry)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, gateway.reload.ask)
    async with gateway:
        await gateway.server.run()


def main() -> int:
    """Return the exit status: 0 after a wish to stop, 2 if something configured cannot be used."""
    parser("python -m gateway", "The gateway.", "ROUTER_*").parse_args()
    interrupt_nobody()  # several wake-ups become one where workers compute on the same cores: docs/decisions.md
    try:
        run(serve())
    except ConfigError as exc:
        log.fatal("cannot start", reason=str(exc))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
