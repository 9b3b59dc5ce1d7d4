"""A stream whose caller leaves while an answer is on its way to it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from gateway.doors.native import EmbedService
from quadrate.server import Call
from quadrate.telemetry import Telemetry
from quadrate.v1 import embed_pb2, options_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FIRST, SECOND = (
    embed_pb2.EmbedStreamRequest(id=name, request=embed_pb2.EmbedRequest(model="fake", inputs=[options_pb2.Input(text=name)]))
    for name in ("first", "second")
)


class Working:
    """What answers the first item, and never the second."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    async def embed(self, work: Any, *_: Any) -> embed_pb2.EmbedResponse:
        """Answer, or work until called off."""
        (text,) = work.contents
        try:
            if text == "second":
                await asyncio.get_running_loop().create_future()
            return embed_pb2.EmbedResponse()
        finally:
            self.ended.append(text)


async def _nobody(*_: Any) -> None:
    return None


async def _requests() -> AsyncIterator[embed_pb2.EmbedStreamRequest]:
    yield FIRST
    yield SECOND
    await asyncio.get_running_loop().create_future()


async def test_all_work_on_a_stream_has_ended_when_the_stream_has() -> None:
    """What it held is given back, and its line in the log counts its items."""
    working, call = Working(), Call("m", {}, "id", None, Telemetry.silent("router").traces.begin({}))
    admission = SimpleNamespace(admit_stream=_nobody, admit_item=_nobody)
    answers: Any = EmbedService(admission, working).embed_stream(_requests(), call)  # type: ignore[arg-type] # as much as it needs
    await anext(answers)
    await asyncio.sleep(0)
    await answers.aclose()
    assert sorted(working.ended) == ["first", "second"]
    assert call.log["items"] == 1
