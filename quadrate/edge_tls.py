"""Envoy's part of TLS: certificates by SDS from files, which it watches, so that renewed ones need no restart.

Envoy notices a file that is moved into its folder (`mv`, or a link that Kubernetes turns) and not one that is written over.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from quadrate.config.tls import ClientTls, KeyPair, ServerTls

Tree = dict[str, Any]
_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
HANDSHAKE_SECONDS = 10
"""A caller who takes longer to shake hands is let go."""


class Secrets:
    """The files that tell Envoy where certificates are, and what refers to them. They hold paths, and no secret themselves.

    Args:
        folder: Where the files go.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._texts: dict[Path, str] = {}

    def write(self) -> None:
        """Write the files of all that was asked for."""
        for path, text in self._texts.items():
            path.write_text(text, encoding="utf-8")

    def server(self, tls: ServerTls) -> Tree:
        """Return the transport socket of a listener."""
        common: Tree = {
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
            "tls_certificate_sds_secret_configs": [self._pair("edge-certificate", tls.pair)],
        }
        if tls.client_ca is not None:
            common["validation_context_sds_secret_config"] = self._trusted("edge-callers", tls.client_ca)
        context = {"common_tls_context": common, "require_client_certificate": tls.client_ca is not None}
        return _socket("DownstreamTlsContext", context)

    def client(self, tls: ClientTls, hosts: Iterable[str]) -> Tree:
        """Return the transport socket of a cluster whose servers' certificates must be for one of these hosts."""
        common: Tree = {
            "alpn_protocols": ["h2"],
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
            "combined_validation_context": {
                "default_validation_context": {"match_typed_subject_alt_names": [_name(host) for host in dict.fromkeys(hosts)]},
                "validation_context_sds_secret_config": self._trusted("edge-gateways", tls.ca),
            },
        }
        if tls.pair is not None:
            common["tls_certificate_sds_secret_configs"] = [self._pair("edge-to-gateways", tls.pair)]
        return _socket("UpstreamTlsContext", {"common_tls_context": common})

    def _pair(self, name: str, pair: KeyPair) -> Tree:
        files = {"certificate_chain": {"filename": str(pair.certificate)}, "private_key": {"filename": str(pair.key)}}
        return self._named(name, {"tls_certificate": files})

    def _trusted(self, name: str, ca: Path | None) -> Tree:
        return self._named(name, {"validation_context": {"trusted_ca": {"filename": str(ca)}}})

    def _named(self, name: str, secret: Tree) -> Tree:
        path = self._folder / f"{name}.yaml"
        self._texts[path] = yaml.safe_dump({"resources": [{"@type": f"{_TLS}Secret", "name": name, **secret}]}, sort_keys=False)
        return {"name": name, "sds_config": {"path_config_source": {"path": str(path)}, "resource_api_version": "V3"}}


def _socket(kind: str, context: Tree) -> Tree:
    return {"name": "envoy.transport_sockets.tls", "typed_config": {"@type": f"{_TLS}{kind}", **context}}


def _name(host: str) -> Tree:
    """Return what a certificate for this host must say."""
    try:
        return {"san_type": "IP_ADDRESS", "matcher": {"exact": str(ipaddress.ip_address(host))}}
    except ValueError:
        return {"san_type": "DNS", "matcher": {"exact": host}}
