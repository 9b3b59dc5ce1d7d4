"""Certificates of one's own: whom they are for, how long, who may read their keys, and what is said of files that cannot be used."""

from __future__ import annotations

import datetime as dt
import ssl
from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from quadrate.cli import certs
from quadrate.cli.authority import Authority
from quadrate.config.edge import load_edge_settings
from quadrate.config.gateway import GatewaySettings
from quadrate.config.tls import ClientTls, KeyPair, ServerTls
from quadrate.config.worker import EmbedSettings, RerankSettings
from quadrate.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def read(path: Path) -> x509.Certificate:
    """Return a certificate."""
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_every_role_gets_a_certificate_of_one_authority(tmp_path: Path) -> None:
    """For the hosts that were asked for and this machine; keys are their owner's alone; OpenSSL itself finds nothing wrong."""
    certs.make(tmp_path, ["gateway", "10.0.0.7"], days=30)
    authority = read(tmp_path / "ca.pem")
    for role in (*certs.ROLES, "client"):
        found = read(tmp_path / f"{role}.pem")
        found.verify_directly_issued_by(authority)
        left = found.not_valid_after_utc - dt.datetime.now(dt.UTC)
        assert dt.timedelta(days=29) < left <= dt.timedelta(days=30)
        KeyPair(tmp_path / f"{role}.pem", tmp_path / f"{role}-key.pem").read()
    names = read(tmp_path / "edge.pem").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"localhost", "gateway"} <= set(names.get_values_for_type(x509.DNSName))
    assert "10.0.0.7" in map(str, names.get_values_for_type(x509.IPAddress))
    usage = read(tmp_path / "client.pem").extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.ExtendedKeyUsageOID.CLIENT_AUTH]
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.glob("*-key.pem"))
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    assert len(context.get_ca_certs()) == 1


def test_made_again_certificates_are_others_and_their_authority_is_the_same(tmp_path: Path) -> None:
    """Whoever trusts the authority notices nothing; nothing half-written is left behind."""
    certs.make(tmp_path, (), days=30)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    certs.make(tmp_path, (), days=30)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] == after[name]} == {"ca.pem", "ca-key.pem"}


def test_a_certificate_never_outlives_its_authority(tmp_path: Path) -> None:
    """Clients would refuse it then, and a date that is not true helps nobody."""
    authority = Authority.in_folder(tmp_path)
    path = authority.issue(tmp_path, "edge", ["localhost"], days=100_000)
    assert read(path).not_valid_after_utc == authority.certificate.not_valid_after_utc


def test_what_is_wrong_with_an_authority_is_said(tmp_path: Path) -> None:
    """Half of it, somebody else's key, or no certificate at all."""
    certs.make(tmp_path / "one", (), days=1)
    certs.make(tmp_path / "other", (), days=1)
    (tmp_path / "one" / "ca-key.pem").write_bytes((tmp_path / "other" / "ca-key.pem").read_bytes())
    with pytest.raises(ConfigError, match=r"ca-key\.pem is not the key of .*ca\.pem\. Remove both"):
        certs.make(tmp_path / "one", (), days=1)
    (tmp_path / "other" / "ca-key.pem").unlink()
    with pytest.raises(ConfigError, match="without its companion"):
        certs.make(tmp_path / "other", (), days=1)
    (tmp_path / "one" / "ca.pem").write_text("nonsense")
    with pytest.raises(ConfigError, match="cannot be used"):
        certs.make(tmp_path / "one", (), days=1)
    with pytest.raises(ConfigError, match="'ünï' is no host name in ASCII"):
        certs.make(tmp_path / "new", ["ünï"], days=1)


def test_show_warns_of_what_ends_soon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its exit code, so that a cron job can."""
    certs.make(tmp_path, (), days=30)
    assert certs.run_show([tmp_path / "edge.pem", tmp_path / "ca.pem"], as_json=False) == 0
    certs.make(tmp_path, (), days=13)
    assert certs.run_show([tmp_path / "edge.pem"], as_json=False) == 1
    said = capsys.readouterr().out
    assert "CN=edge for localhost" in said
    with pytest.raises(ConfigError, match=r"edge-key\.pem holds no certificate"):
        certs.run_show([tmp_path / "edge-key.pem"], as_json=False)


def test_the_variables_that_are_printed_make_every_process_speak_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each setting takes them, and none is left out."""
    certs.make(tmp_path, (), days=30)
    for name, value in certs.variables(tmp_path).items():
        monkeypatch.setenv(name, value)
    edge = load_edge_settings()
    assert edge.tls is not None
    assert edge.gateway_tls is not None
    assert edge.gateway_tls.pair is not None
    for settings in (GatewaySettings(), EmbedSettings(), RerankSettings()):
        assert settings.tls is not None
        assert settings.tls.client_ca == tmp_path / "ca.pem"
    assert len(GatewaySettings().upstream_tls.paths) == 3
    GatewaySettings().upstream_tls.checked()


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    """The path, and what is wrong with what is there."""
    certs.make(tmp_path, (), days=1)
    (tmp_path / "empty.pem").write_text("")
    for tls, said in (
        (ClientTls(tmp_path / "absent.pem"), r"absent\.pem cannot be read: No such file"),
        (ClientTls(tmp_path / "empty.pem"), r"empty\.pem holds no certificates of authorities"),
        (ClientTls(tmp_path / "edge-key.pem"), r"edge-key\.pem holds no certificates of authorities"),
        (ClientTls(None, KeyPair(tmp_path / "edge.pem", tmp_path / "worker-key.pem")), "no certificate and its key"),
    ):
        with pytest.raises(ConfigError, match=said):
            tls.checked()


def test_half_of_a_pair_is_refused_by_its_variables_names() -> None:
    """Which is missing, and that both belong together."""
    with pytest.raises(ValueError, match="EMBED_TLS_CERT_PATH is set and EMBED_TLS_KEY_PATH is not"):
        EmbedSettings(tls_cert_path="edge.pem")  # type: ignore[arg-type] # as from the environment
    with pytest.raises(ValueError, match="ROUTER_UPSTREAM_KEY_PATH is set and ROUTER_UPSTREAM_CERT_PATH is not"):
        GatewaySettings(upstream_key_path="key.pem")  # type: ignore[arg-type] # as from the environment
    assert ServerTls.of(None, None, None, names="EDGE_TLS") is None
