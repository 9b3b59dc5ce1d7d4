"""Connections of HTTP/2 that nobody ought to open: good frames, doubled, cut off, lied about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.chaos import http2
from tests.chaos.hostile import CONTENT_TYPES, Draw, changed, odd_headers
from tests.chaos.hostile_rpc import MESSAGES, wire_garbage

if TYPE_CHECKING:
    from collections.abc import Callable

_FLAGS = (0, 0, 0, 2, 255)
"""Before a message: no 1, which says that it is compressed. Where that is a lie, gRPC itself wants the call to end as INTERNAL."""


def http2_bytes(draw: Draw, host: str) -> bytes:
    """Return a connection of HTTP/2 from its first byte on: good frames and bad, cut off anywhere."""
    frames = [http2.settings()]
    for stream in range(1, 2 * draw.choice((1, 3, 10)), 2):
        frames += draw.choice(_CONVERSATIONS)(draw, stream, host)
    if draw.random() < 0.3:
        draw.shuffle(frames)
    data = b"".join(frames)
    return http2.PREFACE + (changed(draw, data) if draw.random() < 0.3 else data)


def _asked(draw: Draw, stream: int, host: str) -> list[bytes]:
    """Return a gRPC call with odd headers, whose message may be framed by lies."""
    method = draw.choice(tuple(MESSAGES))
    message = b"".join(one.SerializeToString() for one in MESSAGES[method][:1])
    length = draw.choice((len(message), len(message), len(message) + 5, 0, 2**32 - 1, 2**24))
    framed = bytes([draw.choice(_FLAGS)]) + length.to_bytes(4, "big") + wire_garbage(draw, message)
    headers = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", method.encode()), (b":authority", host.encode())]
    headers += [
        (b"content-type", draw.choice((b"application/grpc", b"application/grpc+proto", b"application/grpc-web", *CONTENT_TYPES))),
        (b"te", b"trailers"),
    ]
    for _ in range(draw.choice((0, 1, 3))):
        headers += odd_headers(draw)
    if draw.random() < 0.1:
        headers.append(
            draw.choice(
                ((b":path", b"/"), (b"Upper", b"a"), (b":status", b"200"), (b"connection", b"close"), (b"a", b"b\r\nc: d"), (b"", b""))
            )
        )
    return [http2.headers(stream, headers, last=draw.random() < 0.05), http2.data(stream, framed, last=draw.random() < 0.9)]


_CONVERSATIONS: tuple[Callable[[Draw, int, str], list[bytes]], ...] = (
    _asked,
    _asked,
    _asked,
    lambda draw, stream, host: [*_asked(draw, stream, host), http2.frame(3, 0, stream, draw.randbytes(4))],
    lambda draw, stream, host: [http2.frame(8, 0, draw.choice((0, stream)), draw.choice((b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\0\0")))],
    lambda draw, stream, host: [http2.frame(4, 0, 0, bytes(6 * draw.choice((1, 200)))), http2.frame(4, 0, 0, b"\0\4\xff\xff\xff\xff")],
    lambda draw, stream, host: [http2.frame(6, 0, 0, draw.randbytes(8))] * draw.choice((1, 50)),
    lambda draw, stream, host: [
        http2.frame(1, 0, stream, b"\x82"),
        *[http2.frame(9, 0, stream, b"\x00\x01a\x01b")] * draw.choice((1, 150)),
    ],
    lambda draw, stream, host: [
        http2.frame(1, 4, stream, draw.choice((b"\xff" * 40, b"\x3f\xff\xff\xff\xff\x0f", b"\x00\x7f\xff\xff\xff", b"\x80")))
    ],
    lambda draw, stream, host: [
        http2.frame(draw.randrange(256), draw.randrange(256), draw.randrange(2**31), draw.randbytes(draw.choice((0, 8, 300))))
    ],
    lambda draw, stream, host: [(2**24 - 1).to_bytes(3, "big") + b"\0\0" + stream.to_bytes(4, "big") + bytes(100)],
    lambda draw, stream, host: [http2.frame(7, 0, 0, bytes(8))],
    lambda draw, stream, host: [http2.frame(0, 8, stream, b"\xff")],
)
