"""Services whose handlers are grpc's own, health and reflection: as they are, except that they refuse a message that cannot be read.

Left alone, grpc answers such a message by UNKNOWN and writes a traceback into the log, as often as anybody likes to send one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from quadrate.server.handlers import read_one

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

_UNREADABLE = "The request is no valid message of this method: check that strings are UTF-8 and the schema is current."


class Foreign:
    """Stands in a server's place where generated code adds a service to it (`add_…Servicer_to_server`)."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Take nothing: what comes here comes to `add_registered_method_handlers`, too."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        """Add a service's handlers to the server."""
        careful = {name: _careful(handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, careful),))


def _careful(handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
    """Return a handler that does as this one does, and refuses what it could not read."""
    parse, form = _or_none(handler.request_deserializer), handler.response_serializer
    if handler.request_streaming:

        async def converse(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            async for answer in handler.stream_stream(_readable(requests, context), context):
                yield answer

        return grpc.stream_stream_rpc_method_handler(converse, parse, form)

    behaviour = handler.unary_stream or handler.unary_unary

    async def serve(_: object, context: Any) -> Any:
        request, _size = await read_one(context)
        return await behaviour(await _checked(request, context), context)

    make: Any = grpc.stream_stream_rpc_method_handler if handler.unary_stream else grpc.stream_unary_rpc_method_handler
    return make(serve, parse, form)  # type: ignore[no-any-return] # either gives a handler


async def _readable(requests: AsyncIterator[tuple[Any, int]], context: Any) -> AsyncIterator[Any]:
    async for request, _ in requests:
        yield await _checked(request, context)


async def _checked(request: Any, context: Any) -> Any:
    if request is None:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _UNREADABLE)
    return request


def _or_none(parse: Callable[[bytes], Any]) -> Callable[[bytes], tuple[Any, int]]:
    def attempt(data: bytes) -> tuple[Any, int]:
        try:
            return parse(data), len(data)
        except Exception:  # noqa: BLE001 - DecodeError or UnicodeDecodeError, by protobuf's implementation
            return None, len(data)

    return attempt
