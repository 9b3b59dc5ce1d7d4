"""Parsers of what callers and operators write, driven by atheris: bytes that reach new branches are kept, and changed again.

    python -m tests.chaos.parsers TARGET -runs=100000 [libFuzzer's options]

It ends with 0 if every input was read or refused by an error of ours; otherwise libFuzzer writes the input that was not, and how it came.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import atheris
from google.protobuf.message import DecodeError

with atheris.instrument_imports(include=["gateway", "quadrate"]):
    from gateway.auth.authenticator import Authenticator
    from gateway.doors import body, cohere, cohere_embed, native, openai
    from gateway.overload.priority import asked_priority
    from gateway.work import check_contents
    from quadrate import cuts, framing
    from quadrate.config import yamlfile
    from quadrate.config.auth import AuthFile
    from quadrate.config.rate_limits import RateLimitsFile
    from quadrate.config.routing import RoutingFile
    from quadrate.errors import ConfigError, QuadrateError
    from quadrate.server.call import request_id, standing_of
    from quadrate.standing import Priority
    from quadrate.telemetry import Telemetry
    from quadrate.v1.embed_pb2 import EmbedRequest
    from quadrate.v1.options_pb2 import LEFT, RIGHT
    from quadrate.v1.rerank_pb2 import RerankRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_TELEMETRY = Telemetry.silent("router")
_KEYS = yamlfile.parse("api_keys:\n  - {key: secret-key-0123456789, name: a}\n", AuthFile, name="auth.yaml")
_AUTHENTICATOR = Authenticator(_KEYS, _TELEMETRY.metrics)
_HEADERS = ("authorization", "x-api-key", "x-request-id", "x-quadrate-priority", "x-quadrate-weight", "x-quadrate-tenant", "traceparent")
_MOST_OF_A_TEXT = 1_000


def _refused(read: Callable[[], object]) -> bool:
    """Run a parser; tell whether it refused, by a status and a sentence that can be told."""
    refusal: QuadrateError | None = None
    try:
        read()
    except QuadrateError as error:
        refusal = error
    if refusal is None:
        return False
    assert refusal.message.endswith("."), refusal.message
    assert len(refusal.message) < _MOST_OF_A_TEXT, refusal.message
    return True


def json_body(data: bytes) -> None:
    """What is read as a body, Python's own parser reads alike, but for whole numbers of more than 64 bits: those are floats here."""
    found: list[Any] = []
    if not _refused(lambda: found.append(body.read_object(data))):
        assert found == [json.loads(data, parse_int=_whole_number)]


def _whole_number(digits: str) -> float:
    number = int(digits)
    return number if -(2**63) <= number < 2**64 else float(digits)


def openai_body(data: bytes) -> None:
    """POST /v1/embeddings."""

    def read() -> None:
        work, _ = openai.read_embedding(data)
        check_contents(work.contents, names="input", name=work.name, limit=2048)

    _refused(read)


def rerank_body(data: bytes) -> None:
    """POST /v1/rerank and /v2/rerank."""
    _refused(lambda: cohere.read_rerank(data))


def cohere_body(data: bytes) -> None:
    """POST /v2/embed."""
    _refused(lambda: cohere_embed.read_embed(data))


def messages(data: bytes) -> None:
    """Embed and Rerank over gRPC."""
    for message, read in ((EmbedRequest, native.read_embed), (RerankRequest, native.read_rerank)):
        try:
            request = message.FromString(data)  # type: ignore[attr-defined] # of either
        except DecodeError:
            continue
        _refused(lambda read=read, request=request: read(request))  # type: ignore[misc] # defaults bind the loop's values


def headers(data: bytes) -> None:
    """What callers say of themselves, of their trace and of their hurry."""
    values = data.decode("latin-1").split("\n")
    metadata = dict(zip(_HEADERS, values, strict=False))
    _refused(lambda: asyncio.run(_AUTHENTICATOR.authenticate(metadata)))
    _refused(lambda: asked_priority(metadata, Priority.BULK))
    assert 0 < standing_of(metadata).weight < float("inf")
    assert request_id(metadata).isascii()
    assert _TELEMETRY.traces.begin(metadata).ids


def files(data: bytes) -> None:
    """routing.yaml, auth.yaml and rate_limits.yaml: read, or refused with file and line."""
    text = data.decode(errors="replace")
    for schema in (RoutingFile, AuthFile, RateLimitsFile):
        told = "file.yaml:"
        try:
            yamlfile.parse(text, schema, name="file.yaml")
        except ConfigError as error:
            told = str(error)
        assert told.startswith("file.yaml:"), told


def cut_ids(data: bytes) -> None:
    """Ids that are too many: as many stay as there is room for, and in their order."""
    room, head, left, *ids = [*data, 0, 0, 0][: max(len(data), 3)]
    if len(ids) <= room or head > len(ids):
        return
    kept = cuts.cut(ids, room, LEFT if left % 2 else RIGHT, head=head)
    assert kept is not None
    assert len(kept) == room
    if head < room and left % 2:
        assert list(kept[:head]) == ids[:head]
    cuts.in_common(ids, list(data))


def framed(data: bytes) -> None:
    """Fields that we put together by hand, protobuf reads."""
    text = data.decode(errors="replace")
    made = EmbedRequest.FromString(framing.delimited(1, text.encode()))
    assert made.model == text
    number = int.from_bytes(data[:8], "big")
    assert framing.varint(number)[-1] < 1 << 7


TARGETS: dict[str, tuple[Callable[[bytes], None], Sequence[bytes]]] = {
    "json_body": (
        json_body,
        (b'{"model": "m", "input": ["a", "b"], "n": [1, -2.5e3, null, true, {"a": {}}]}', b'{"a": 1, "a" : 2}', b'{"\\\\": ":"}'),
    ),
    "openai_body": (
        openai_body,
        (
            b'{"model":"m","input":[[1,2],[3]],"encoding_format":"base64","dimensions":3,"truncate":"left"}',
            b'{"model":"m","input":["a"],"input_type":"query"}',
        ),
    ),
    "rerank_body": (
        rerank_body,
        (b'{"model":"m","query":"q","documents":["a",{"text":"b"}],"top_n":1,"rank_fields":["text"],"max_tokens_per_doc":3}',),
    ),
    "cohere_body": (
        cohere_body,
        (
            b'{"model":"m","input_type":"search_query","texts":["a"],"embedding_types":["int8"],"truncate":"END"}',
            b'{"model":"m","input_type":"clustering","inputs":[{"content":[{"type":"text","text":"a"}]}]}',
        ),
    ),
    "messages": (messages, (b"\n\x01m\x12\x03\n\x01a", b"\n\x01m\x12\x01q\x1a\x03\n\x01d")),
    "headers": (
        headers,
        (
            b"Bearer a.b.c\nkey\nid-1\nbulk\n1.5\nt\n00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            b"Basic x\n\n \nurgent\nnan\n%ff\n00-x",
        ),
    ),
    "files": (
        files,
        (
            b"embeddings:\n  - {model: m, served_name: s, upstream: {type: grpc, url: 'grpc://a:1'}}\n",
            b"api_keys:\n  - {key: abc, name: a}\n",
            b"default: {capacity: 1, refill_rate: 2}\n",
            b"{[a]: 1}",
            b"? {a: 1}\n: 2",
            b"a: 2025-99-99",
            b"&a [*a]",
        ),
    ),
    "cut_ids": (cut_ids, (b"\x02\x01\x01abcdef", b"\x03\x00\x00abcdef")),
    "framed": (framed, (b"a", b"\xff" * 9)),
}
"""For each target what is called, and inputs to begin with."""


def main() -> None:
    """Fuzz the target that the command line names."""
    target, *options = sys.argv[1:]
    call, seeds = TARGETS[target]
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds):
            (Path(folder) / str(number)).write_bytes(seed)
        atheris.Setup([sys.argv[0], *options, folder], call)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
