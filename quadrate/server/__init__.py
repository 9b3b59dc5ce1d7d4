"""The door of every process: a gRPC server, a small HTTP server beside it, and what each call gets there."""

from quadrate.server.call import Call
from quadrate.server.lifecycle import Server, Service, run

__all__ = ["Call", "Server", "Service", "run"]
