"""Lua scripts, which Redis runs as a whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha1
from importlib import resources


@dataclass(frozen=True, slots=True)
class Script:
    """A script, called by its digest and sent only to a server that does not have it yet."""

    text: str
    digest: str

    @classmethod
    def of(cls, text: str) -> Script:
        """Return the script of a text."""
        return cls(text, sha1(text.encode(), usedforsecurity=False).hexdigest())

    @classmethod
    def read(cls, name: str) -> Script:
        """Return a script of this package."""
        return cls.of(resources.files("gateway.quotas").joinpath(name).read_text(encoding="utf-8"))
