"""Frames of HTTP/2 by hand (RFC 9113), for what no client library would send. Nothing here checks anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _END_HEADERS = 1, 4
_PREFIX_FULL = 127


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return one frame."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def settings(*values: tuple[int, int]) -> bytes:
    """Return a SETTINGS frame of (identifier, value)."""
    return frame(_SETTINGS, 0, 0, b"".join(name.to_bytes(2, "big") + value.to_bytes(4, "big") for name, value in values))


def headers(stream: int, fields: Iterable[tuple[bytes, bytes]], *, last: bool = False) -> bytes:
    """Return a HEADERS frame: every field is a literal that is not indexed, without Huffman's code (RFC 7541, section 6.2.2)."""
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)
    return frame(_HEADERS, _END_HEADERS | (_END_STREAM if last else 0), stream, block)


def data(stream: int, payload: bytes, *, last: bool = True) -> bytes:
    """Return a DATA frame."""
    return frame(_DATA, _END_STREAM if last else 0, stream, payload)


def _text(value: bytes) -> bytes:
    """Return a string with its length before it: a number with a prefix of seven bits (RFC 7541, section 5.1)."""
    if len(value) < _PREFIX_FULL:
        return bytes([len(value)]) + value
    rest, groups = len(value) - _PREFIX_FULL, bytearray([_PREFIX_FULL])
    while rest >= 0x80:
        groups.append(rest & 0x7F | 0x80)
        rest >>= 7
    groups.append(rest)
    return bytes(groups) + value
