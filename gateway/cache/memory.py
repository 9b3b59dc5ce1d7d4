"""Entries in this process, bounded by bytes: the longest unused goes first."""

from __future__ import annotations

from collections import OrderedDict

ENTRY_BYTES = 200
"""What an entry takes besides its value: two objects' heads, the key, and its place in the table (measured, CPython 3.11)."""


class Memory:
    """Values by key. Belongs to one event loop.

    Args:
        max_bytes: The most that all entries may take, by an estimate of what CPython needs for them.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> bytes | None:
        """Return what was put last under a key and is still here."""
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def put(self, key: bytes, value: bytes) -> int:
        """Keep a value, and return how many others had to go.

        One that is larger than an eighth of all room is not kept: it would drive out too much else.
        """
        size = len(value) + ENTRY_BYTES
        if size > self.max_bytes // 8:
            return 0
        before = self._entries.pop(key, None)
        if before is not None:
            self.bytes -= len(before) + ENTRY_BYTES
        self._entries[key] = value
        self.bytes += size
        gone = 0
        while self.bytes > self.max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.bytes -= len(oldest) + ENTRY_BYTES
            gone += 1
        return gone
