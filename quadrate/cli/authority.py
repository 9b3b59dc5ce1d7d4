"""A certificate authority of one's own, for development and for meshes that nobody else has to trust: X.509 with keys on P-256."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from quadrate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

CA_DAYS = 3650
_CLOCKS_DIFFER_BY = dt.timedelta(minutes=5)
_SERVES, _CALLS = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority: its certificate, and the key that it signs by."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def in_folder(cls, folder: Path) -> Self:
        """Return the authority of `ca.pem` and `ca-key.pem` in `folder`, made now if neither is there. Raises ConfigError."""
        paths = folder / "ca.pem", folder / "ca-key.pem"
        there = [path for path in paths if path.exists()]
        if len(there) == 1:
            raise ConfigError(f"{there[0]} is there without its companion. Put {paths[0].name} and {paths[1].name} back, or remove both.")
        return cls._read(*paths) if there else cls._made(*paths)

    @classmethod
    def _read(cls, path: Path, key_path: Path) -> Self:
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
            key = serialization.load_pem_private_key(key_path.read_bytes(), None)
        except (OSError, ValueError, TypeError) as exc:
            raise ConfigError(f"{path} and {key_path} cannot be used: {exc}") from exc
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ConfigError(f"{key_path} is not the key of {path}. Remove both for a new authority.")
        if certificate.not_valid_after_utc < dt.datetime.now(dt.UTC):
            raise ConfigError(f"{path} has expired. Remove it and {key_path} for a new authority, which every client has to trust anew.")
        return cls(certificate, key)

    @classmethod
    def _made(cls, path: Path, key_path: Path) -> Self:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Quadrate development {os.urandom(4).hex()}")])
        builder = _begun(name, key.public_key(), issuer=name, days=CA_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
        certificate = builder.sign(key, hashes.SHA256())
        _write_key(key_path, key)
        put(path, certificate.public_bytes(serialization.Encoding.PEM))
        return cls(certificate, key)

    def issue(self, folder: Path, name: str, hosts: Iterable[str], *, days: int, serves: bool = True) -> Path:
        """Write `name.pem` and `name-key.pem`, in the place of former ones, and return the certificate's path.

        Args:
            folder: Where they go.
            name: The common name; what is checked are the hosts.
            hosts: Names and addresses that the certificate is for.
            days: How long it is valid; never longer than the authority.
            serves: Whether it is for a server, which may call others, too. Otherwise for a client alone.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _begun(subject, key.public_key(), issuer=self.certificate.subject, days=days, until=self.certificate.not_valid_after_utc)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([_SERVES, _CALLS] if serves else [_CALLS]), critical=False)
        names = [_general(host) for host in hosts]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        known = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        certificate = builder.add_extension(known, critical=False).sign(self.key, hashes.SHA256())
        # Both are moved into place. Between the two moves they do not fit together, and whoever reads them then stays with the former.
        _write_key(folder / f"{name}-key.pem", key)
        path = folder / f"{name}.pem"
        put(path, certificate.public_bytes(serialization.Encoding.PEM))
        return path


def put(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Move a file with these bytes to `path`: whoever reads it has the former one or the new one, whole."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.unlink(missing_ok=True)
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
    scratch.replace(path)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    plain = serialization.NoEncryption()
    put(path, key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain), mode=0o600)


def _begun(
    subject: x509.Name, key: ec.EllipticCurvePublicKey, *, issuer: x509.Name, days: int, until: dt.datetime | None = None
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    end = now + dt.timedelta(days=days)
    builder = x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number())
    builder = builder.not_valid_before(now - _CLOCKS_DIFFER_BY).not_valid_after(end if until is None else min(end, until))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as exc:
        raise ConfigError(f"{host!r} is no host name in ASCII and no address, such as gateway.example.com or 10.0.0.7") from exc
