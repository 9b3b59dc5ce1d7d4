"""TLS of our processes over gRPC and HTTP: who one is and whom one trusts, as files in PEM.

Files may be renewed while a process runs. A server reads them again by itself (quadrate/server/certificates.py). A client reads them when a
channel is opened, and `stamp` tells whether a channel of an hour ago would be opened the same way now.
"""

from __future__ import annotations

import contextlib
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import grpc

from quadrate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path

Stamp = tuple[tuple[int, int, int], ...]
"""What tells a file from its successor: inode, time and size of each."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate chain and its private key, in PEM: the certificate itself first, then those that lead to its authority."""

    certificate: Path
    key: Path

    @classmethod
    def of(cls, certificate: Path | None, key: Path | None, *, names: str) -> Self | None:
        """Return the pair that the variables NAMES_CERT_PATH and NAMES_KEY_PATH give, or None where neither is set.

        Raises ValueError if one of the two is missing.
        """
        if (certificate is None) != (key is None):
            there, missing = ("KEY", "CERT") if certificate is None else ("CERT", "KEY")
            raise ValueError(f"{names}_{there}_PATH is set and {names}_{missing}_PATH is not; set both, or neither")
        return None if certificate is None or key is None else cls(certificate, key)

    def read(self) -> tuple[bytes, bytes]:
        """Return chain and key. Raises ConfigError if they cannot be read or do not belong together."""
        pair = _bytes(self.certificate), _bytes(self.key)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key, password=_refuse_password)
        except (OSError, ValueError) as exc:  # ssl.SSLError is an OSError
            reason = getattr(exc, "reason", None) or str(exc)
            raise ConfigError(f"{self.certificate} and {self.key} are no certificate and its key in PEM: {reason}") from exc
        return pair

    def check(self, names: str) -> None:
        """Raise ConfigError that says which of NAMES_CERT_PATH and NAMES_KEY_PATH names a file that cannot be used."""
        for name, path in (("CERT", self.certificate), ("KEY", self.key)):
            with _blamed(f"{names}_{name}_PATH"):
                _bytes(path)
        with _blamed(f"{names}_CERT_PATH and {names}_KEY_PATH"):
            self.read()

    def expires(self) -> datetime:
        """Return when the certificate ceases to be valid. Raises ConfigError if it cannot be read."""
        from cryptography import x509  # noqa: PLC0415 - only who speaks TLS needs it

        try:
            return x509.load_pem_x509_certificate(_bytes(self.certificate)).not_valid_after_utc
        except ValueError as exc:
            raise ConfigError(f"{self.certificate} holds no certificate in PEM: {exc}") from exc


@dataclass(frozen=True, slots=True)
class ServerTls:
    """How a server speaks TLS.

    Args:
        pair: Who it is.
        client_ca: The authorities in PEM whose clients alone may connect (mTLS). None: anybody may.
    """

    pair: KeyPair
    client_ca: Path | None = None

    @classmethod
    def of(cls, certificate: Path | None, key: Path | None, client_ca: Path | None, *, names: str) -> Self | None:
        """Return what the variables NAMES_CERT_PATH, NAMES_KEY_PATH and NAMES_CLIENT_CA_PATH say, or None where none is set.

        Raises ValueError where they do not fit together.
        """
        pair = KeyPair.of(certificate, key, names=names)
        if pair is None and client_ca is not None:
            raise ValueError(f"{names}_CLIENT_CA_PATH is set and {names}_CERT_PATH is not; only who speaks TLS can ask clients")
        return None if pair is None else cls(pair, client_ca)

    def check(self, names: str) -> None:
        """Raise ConfigError that says which of the variables of `of` names a file that cannot be used."""
        self.pair.check(names)
        if self.client_ca is not None:
            with _blamed(f"{names}_CLIENT_CA_PATH"):
                authorities(self.client_ca)

    def stamp(self) -> Stamp:
        """Return what tells whether a file has changed. Raises ConfigError if one is not there."""
        pair = self.pair.certificate, self.pair.key
        return _stamp(*pair) if self.client_ca is None else _stamp(*pair, self.client_ca)


@dataclass(frozen=True, slots=True)
class ClientTls:
    """How a client speaks TLS.

    Args:
        ca: The authorities in PEM that servers are trusted by. None: those that gRPC and httpx bring along.
        pair: Who the client is, for servers that ask (mTLS). None: nobody in particular.
    """

    ca: Path | None = None
    pair: KeyPair | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files."""
        pair = (self.pair.certificate, self.pair.key) if self.pair else ()
        return pair if self.ca is None else (self.ca, *pair)

    def stamp(self) -> Stamp:
        """Return what tells whether a file has changed. Raises ConfigError if one is not there."""
        return _stamp(*self.paths)

    def check(self, names: str) -> None:
        """Raise ConfigError that says which of NAMES_CA_PATH, NAMES_CERT_PATH and NAMES_KEY_PATH names a file that cannot be used."""
        if self.ca is not None:
            with _blamed(f"{names}_CA_PATH"):
                authorities(self.ca)
        if self.pair is not None:
            self.pair.check(names)

    def checked(self) -> Stamp:
        """Return the stamp of files that can be used. Raises ConfigError if they cannot."""
        found = self.stamp()
        self.credentials()
        return found

    def credentials(self) -> grpc.ChannelCredentials:
        """Return credentials for a gRPC channel, read from the files now. Raises ConfigError."""
        chain, key = self.pair.read() if self.pair else (None, None)
        return grpc.ssl_channel_credentials(authorities(self.ca) if self.ca else None, key, chain)

    def context(self) -> ssl.SSLContext:
        """Return the same for HTTPS. Here `ca` is trusted besides what httpx trusts: public APIs live there. Raises ConfigError."""
        import httpx  # noqa: PLC0415 - workers need none

        context = httpx.create_ssl_context()
        if self.ca is not None:
            context.load_verify_locations(cadata=authorities(self.ca).decode())
        if self.pair is not None:
            self.pair.read()
            context.load_cert_chain(self.pair.certificate, self.pair.key)
        return context


@contextlib.contextmanager
def _blamed(variable: str) -> Iterator[None]:
    """Name the variable in what is said of its file."""
    try:
        yield
    except ConfigError as exc:
        raise ConfigError(f"{variable}: {exc}") from exc


def _stamp(*paths: Path) -> Stamp:
    try:
        found = [path.stat() for path in paths]
    except OSError as exc:
        raise ConfigError(f"{exc.filename} cannot be read: {exc.strerror}") from exc
    return tuple((file.st_ino, file.st_mtime_ns, file.st_size) for file in found)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror}") from exc


def authorities(path: Path) -> bytes:
    """Return the authorities in a PEM file. Raises ConfigError if there is none, or one that is none."""
    pem = _bytes(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode("ascii"))
    except (ssl.SSLError, ValueError) as exc:
        raise ConfigError(f"{path} holds no certificates of authorities in PEM: {exc}") from exc
    return pem


def _refuse_password() -> bytes:
    raise ValueError("the key asks for a password; write it without one, readable to its process alone")
