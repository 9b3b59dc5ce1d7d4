"""The contract: protos are linted and formatted, break no release, and what is generated from them is what is committed."""

from __future__ import annotations

import filecmp
import os
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("quadrate/v1", "quadrate/openai/v1", "quadrate/cohere/v1", "quadrate/wire/v1")


def buf(*arguments: str) -> None:
    """Run buf in the repository with this Python's plugins first on the PATH; its words are the assertion's message."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["buf", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def last_release() -> str | None:
    """Return the newest tag of a release, or None before the first."""
    done = subprocess.run(["git", "tag", "--list", "v*", "--sort=-v:refname"], cwd=ROOT, capture_output=True, text=True, check=False)
    return next(iter(done.stdout.split()), None)


def test_the_protos_keep_the_rules_of_buf() -> None:
    """STANDARD and COMMENTS, with the exceptions that buf.yaml names."""
    buf("lint")


def test_the_protos_are_formatted() -> None:
    """`buf format` would change nothing."""
    buf("format", "--diff", "--exit-code")


def test_nothing_breaks_the_last_release() -> None:
    """No field, name or number that a release has is gone or means another thing."""
    release = last_release()
    if release is None:
        pytest.skip("there is no release tag yet, so there is nothing to break.")
    buf("breaking", "--against", f".git#tag={release}")


def test_the_stubs_are_what_the_protos_generate(tmp_path: Path) -> None:
    """`make generate` would change no stub, and none is left over from a proto that is gone."""
    buf("generate", "--output", str(tmp_path))
    for package in PACKAGES:
        made = {path.name for path in (tmp_path / package).iterdir()}
        committed = {path.name for path in (ROOT / package).iterdir() if "_pb2" in path.name and path.is_file()}
        assert made == committed, f"{package}: run `make generate`"
        _, differing, unreadable = filecmp.cmpfiles(tmp_path / package, ROOT / package, sorted(made), shallow=False)
        assert not differing + unreadable, f"{package}: run `make generate`"


def test_the_descriptor_set_is_what_the_protos_generate(tmp_path: Path) -> None:
    """Envoy reads the same contract as everybody else, and its own google.rpc.Status."""
    made = tmp_path / "descriptors.binpb"
    buf("build", "--as-file-descriptor-set", "--exclude-source-info", "--output", str(made))
    committed = (ROOT / "envoy" / "descriptors.binpb").read_bytes()
    assert made.read_bytes() == committed, "run `make generate`"
    status = next(file for file in FileDescriptorSet.FromString(committed).file if file.name == "google/rpc/status.proto")
    assert [(field.name, field.number) for field in status.message_type[0].field] == [("error", 100), ("message", 101)]
