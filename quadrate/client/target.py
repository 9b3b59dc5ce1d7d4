"""Where a client calls: an address as people write it, as host, port and whether TLS is spoken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from quadrate.errors import InvalidArgument

_SCHEMES = {"": (8085, False), "grpc": (8085, False), "http": (80, False), "grpcs": (443, True), "https": (443, True)}
"""Scheme → port where none is given, and TLS."""


@dataclass(frozen=True, slots=True)
class Target:
    """An address of a gateway or a worker."""

    host: str
    port: int
    tls: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `localhost`, `localhost:8085`, `[::1]:8085`, `http://…` or `https://…`. Raises InvalidArgument for anything else."""
        scheme, separator, _ = text.partition("://")
        parts = urlsplit(text if separator else f"//{text}")
        try:
            default_port, tls = _SCHEMES[scheme.lower() if separator else ""]
            port = parts.port or default_port
        except (KeyError, ValueError):
            raise _refusal(text) from None
        if not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment or parts.username is not None:
            raise _refusal(text)
        return cls(parts.hostname, port, tls)

    @property
    def address(self) -> str:
        """Host and port as grpc takes them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def _refusal(text: str) -> InvalidArgument:
    # The text is not repeated where it may hold a password.
    shown = "The address" if "@" in text else f"The address {text!r}"
    return InvalidArgument(
        f"{shown} is none that can be called: write host:port, http://host:port, or https://host:port for TLS, without a path.",
        param="target",
    )
