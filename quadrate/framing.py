"""Pieces of protobuf's encoding, for answers that are put together as bytes: https://protobuf.dev/programming-guides/encoding/."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=16_384)
def varint(value: int) -> bytes:
    """Return a number of at least 0 in groups of seven bits, lowest first.

    Tags, lengths and counts are the same few numbers over and over.
    """
    groups = bytearray()
    while value >= 0x80:  # noqa: PLR2004 - more than seven bits
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def delimited(number: int, *parts: bytes) -> bytes:
    """Return a field of bytes or of a message: its tag, its length, and `parts` one after another."""
    return b"".join((varint(number << 3 | 2), varint(sum(map(len, parts))), *parts))
