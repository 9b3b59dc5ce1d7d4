"""`quadrate up --tls`: every wire over TLS as a user calls it, nothing without, and certificates renewed while it runs."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import httpx
import openai
import pytest

from quadrate.client import Client
from quadrate.errors import Unavailable
from tests.processes import LONG_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.conftest import Mesh, Reference, StartMesh


@pytest.fixture(scope="module")
def mesh(start_mesh: StartMesh) -> Iterator[Mesh]:
    """A mesh whose edge, gateway and workers speak TLS."""
    with start_mesh("--tls") as found:
        yield found


@pytest.fixture(scope="module")
def certificates(mesh: Mesh) -> Path:
    """Where its certificates are."""
    return mesh.state / "quadrate" / str(mesh.ports["port"]) / "certificates"


def test_every_client_is_served_over_tls(mesh: Mesh, certificates: Path, reference: Reference) -> None:
    """The OpenAI SDK, our client and our commands, each with nothing but the authority's file."""
    ca, url = certificates / "ca.pem", f"https://{mesh.edge}"
    context = ssl.create_default_context(cafile=str(ca))
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", http_client=openai.DefaultHttpxClient(verify=context)) as sdk:
        answer = sdk.embeddings.create(model="minilm", input=list(reference.texts))
    reference.check([row.embedding for row in answer.data])
    with Client(url, certificates=ca) as client:
        reference.check(client.embed(list(reference.texts), model="minilm").vectors)
    smoke = mesh.command("smoke", url, "--ca", str(ca))
    assert smoke.returncode == 0, smoke.stdout + smoke.stderr
    embedded = mesh.command("embed", "--url", url, "--ca", str(ca), "a text")
    assert embedded.returncode == 0, embedded.stderr


def test_nothing_is_served_without_tls(mesh: Mesh, certificates: Path) -> None:
    """Neither at the edge nor at a gateway or worker; and those two answer nobody who shows no certificate."""
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://{mesh.edge}/v1/models")
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"https://{mesh.edge}/v1/models")
    for role in ("gateway", "embed"):
        for target in (mesh.target(role), f"https://{mesh.target(role)}"):
            with Client(target, certificates=certificates / "ca.pem", timeout_seconds=3) as client, pytest.raises(Unavailable):
                client.models()
    assert all(json.loads(line) for line in mesh.process_logs().splitlines())  # also what gRPC says of strangers' handshakes
    identity = certificates / "client.pem", certificates / "client-key.pem"
    with Client(f"https://{mesh.target('embed')}", certificates=certificates / "ca.pem", identity=identity) as client:
        assert [model.name for model in client.models()] == ["minilm"]
    listed = mesh.command(
        *("models", "list", "--worker", f"grpcs://{mesh.target('embed')}", "--ca", str(certificates / "ca.pem")),
        *("--client-cert", *map(str, identity)),
    )
    assert "minilm" in listed.stdout, listed.stderr


def test_certificates_are_renewed_while_it_serves(mesh: Mesh, certificates: Path) -> None:
    """Edge, gateway and workers take them up, those that the gateway shows to workers included; no request fails."""
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    with httpx.Client(base_url=f"https://{mesh.edge}", verify=context, timeout=30) as http:

        def embeds() -> bool:
            answer = http.post("/v1/embeddings", json={"model": "minilm", "input": "a text", "encoding_format": "float"})
            assert answer.status_code == 200, answer.text
            return True

        assert embeds()
        made = subprocess.run(
            [sys.executable, "-m", "quadrate.cli", "certs", "make", str(certificates), "--days", "5"],
            env=dict(os.environ),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert made.returncode == 0, made.stderr
        wanted = '"changed":["upstream_tls"]', '"message":"the certificate was renewed"'
        until = time.monotonic() + LONG_SECONDS
        while embeds() and not all(said in mesh.process_logs() for said in wanted):
            assert time.monotonic() < until, mesh.process_logs()[-3000:]
    shown = mesh.command("certs", "show", str(certificates / "edge.pem"))
    assert shown.returncode == 1  # within two weeks of its end
    assert "127.0.0.1" in shown.stdout


def test_no_log_and_no_plan_holds_a_private_key(mesh: Mesh, certificates: Path) -> None:
    """Paths are written down, and nothing else: keys stay in their files, which their owner alone may read."""
    for path in certificates.glob("*-key.pem"):
        assert path.stat().st_mode & 0o077 == 0
        body = path.read_text().splitlines()[1]
        for other in mesh.state.rglob("*"):
            assert other.is_dir() or other == path or body not in other.read_text(errors="replace"), other
