"""`quadrate certs`: certificates to try TLS with, and a look at those that are in use."""

from __future__ import annotations

import datetime as dt
import json
import socket
from typing import TYPE_CHECKING

from cryptography import x509

from quadrate.cli.authority import Authority
from quadrate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ROLES = ("edge", "gateway", "worker")
"""Who gets a certificate to serve by, and to call the next one by."""
HERE = ("localhost", "127.0.0.1", "::1")
WARN_DAYS = 14
DAYS = 90

_VARIABLES = """\
EDGE_TLS_CERT_PATH={0}/edge.pem
EDGE_TLS_KEY_PATH={0}/edge-key.pem
EDGE_GATEWAY_CA_PATH={0}/ca.pem
EDGE_GATEWAY_CERT_PATH={0}/edge.pem
EDGE_GATEWAY_KEY_PATH={0}/edge-key.pem
ROUTER_TLS_CERT_PATH={0}/gateway.pem
ROUTER_TLS_KEY_PATH={0}/gateway-key.pem
ROUTER_TLS_CLIENT_CA_PATH={0}/ca.pem
ROUTER_UPSTREAM_CA_PATH={0}/ca.pem
ROUTER_UPSTREAM_CERT_PATH={0}/gateway.pem
ROUTER_UPSTREAM_KEY_PATH={0}/gateway-key.pem
EMBED_TLS_CERT_PATH={0}/worker.pem
EMBED_TLS_KEY_PATH={0}/worker-key.pem
EMBED_TLS_CLIENT_CA_PATH={0}/ca.pem
RERANK_TLS_CERT_PATH={0}/worker.pem
RERANK_TLS_KEY_PATH={0}/worker-key.pem
RERANK_TLS_CLIENT_CA_PATH={0}/ca.pem
"""


def make(folder: Path, hosts: Sequence[str], *, days: int) -> None:
    """Write an authority, unless the folder has one, and certificates for every process and a client. Raises ConfigError."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        authority = Authority.in_folder(folder)
        names = tuple(dict.fromkeys((*HERE, socket.gethostname(), *hosts)))
        for role in ROLES:
            authority.issue(folder, role, names, days=days)
        authority.issue(folder, "client", (), days=days, serves=False)
    except OSError as exc:
        raise ConfigError(f"{exc.filename} cannot be written: {exc.strerror}") from exc


def variables(folder: Path) -> dict[str, str]:
    """Return the variables by which a whole mesh uses the certificates in `folder`, with mTLS between its processes."""
    return dict(line.split("=", 1) for line in _VARIABLES.format(folder.absolute()).splitlines())


def run_make(folder: Path, hosts: Sequence[str], *, days: int) -> int:
    """Write certificates and say how they are used."""
    make(folder, hosts, days=days)
    here = folder.absolute()
    print(f"Certificates for {', '.join(dict.fromkeys((*HERE, socket.gethostname(), *hosts)))}, valid for {days} days, are in {here}.")
    print("Make them again to renew them; processes that run take them up. Who shall trust them needs ca.pem and nothing else.\n")
    print("# a whole mesh, with mTLS between its processes; routes to workers then begin with grpcs://")
    print(_VARIABLES.format(here), end="")
    print(f"# callers who must show a certificate, too\n# EDGE_TLS_CLIENT_CA_PATH={here}/ca.pem\n")
    print(f"quadrate smoke https://localhost:8085 --ca {here}/ca.pem")
    return 0


def run_show(files: Sequence[Path], *, as_json: bool) -> int:
    """Print whom certificates are for and until when; returns 1 if one has expired or will within WARN_DAYS. Raises ConfigError."""
    rows = [row for path in files for row in _rows(path)]
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            hosts = f" for {', '.join(map(str, hosts))}" if isinstance(hosts := row["hosts"], list) and hosts else ""
            print(f"{row['file']}: {row['subject']}{hosts}, by {row['issuer']}, until {row['expires']} ({row['days']} days)")
    return 1 if any(int(str(row["days"])) < WARN_DAYS for row in rows) else 0


def _rows(path: Path) -> list[dict[str, object]]:
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise ConfigError(f"{path} holds no certificate in PEM.") from exc
    return [_row(path, certificate) for certificate in found]


def _row(path: Path, certificate: x509.Certificate) -> dict[str, object]:
    left = certificate.not_valid_after_utc - dt.datetime.now(dt.UTC)
    return {
        "file": str(path),
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "hosts": _hosts(certificate),
        "expires": certificate.not_valid_after_utc.isoformat(timespec="seconds"),
        "days": left.days,
    }


def _hosts(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names]
