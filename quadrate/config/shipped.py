"""The files that come with the code and are no code: `configs`, `envoy`, `openapi.yaml`."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_IN_CHECKOUT = {"openapi.yaml": "docs/openapi.yaml"}


def shipped(name: str) -> Path:
    """Return where the file or folder is: in the wheel's `quadrate/_shipped`, or where the checkout keeps it."""
    installed = _PACKAGE / "_shipped" / name
    return installed if installed.exists() else _PACKAGE.parent / _IN_CHECKOUT.get(name, name)
