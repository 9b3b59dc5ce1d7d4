"""The certificate of a gRPC server, renewed while it serves.

The files are looked at whenever somebody connects. Those that do not fit together change nothing, so the order in which a renewal writes
them does not matter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import grpc

from quadrate.config.tls import authorities
from quadrate.errors import ConfigError
from quadrate.telemetry import log

if TYPE_CHECKING:
    from collections.abc import Callable

    from quadrate.config.tls import ServerTls, Stamp


class RenewedCertificates:
    """What a gRPC server proves itself by, read again when the files have changed.

    Args:
        tls: The files.
        loaded: Called with the certificate's end of life, in seconds since 1970, whenever one was read.
        failed: Called when files have changed and cannot be used.
    """

    def __init__(self, tls: ServerTls, *, loaded: Callable[[float], None], failed: Callable[[], None]) -> None:
        self._tls = tls
        self._loaded = loaded
        self._failed = failed
        self._stamp: Stamp = ()

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials for a gRPC server. Raises ConfigError."""
        self._stamp = self._tls.stamp()
        fetch = cast("Callable[[], grpc.ServerCertificateConfiguration]", self._renewed)  # the stubs know of no None: it changes nothing
        asks_clients = self._tls.client_ca is not None
        return grpc.dynamic_ssl_server_credentials(self._read(), fetch, require_client_authentication=asks_clients)

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return new files, if there are any. gRPC asks before each handshake, in a thread of its own."""
        try:
            stamp = self._tls.stamp()
            if stamp == self._stamp:
                return None
            found = self._read()
        except ConfigError as exc:
            self._failed()
            log.error("the new certificate cannot be used; the former one stays", reason=str(exc))
            return None
        self._stamp = stamp
        log.info("the certificate was renewed", certificate=str(self._tls.pair.certificate))
        return found

    def _read(self) -> grpc.ServerCertificateConfiguration:
        chain, key = self._tls.pair.read()
        trusted = authorities(self._tls.client_ca) if self._tls.client_ca else None
        self._loaded(self._tls.pair.expires().timestamp())
        return grpc.ssl_server_certificate_configuration([(key, chain)], trusted)
