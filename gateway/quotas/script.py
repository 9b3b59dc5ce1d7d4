"""Lua scripts, which Redis runs as a whole or not at all."""

from __future__ import annotations

from hashlib import sha1
from importlib import resources


class Script:
    """A script of this package, called by its digest and sent only to a server that does not have it yet."""

    def __init__(self, name: str) -> None:
        self.text = resources.files("gateway.quotas").joinpath(name).read_text(encoding="utf-8")
        self.digest = sha1(self.text.encode(), usedforsecurity=False).hexdigest()
