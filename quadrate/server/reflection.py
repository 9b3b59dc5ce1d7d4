"""gRPC reflection, which tools such as grpcurl list and describe services by: for everybody, or for those who are let in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from quadrate.errors import QuadrateError
from quadrate.server import status
from quadrate.server.call import request_id
from quadrate.server.foreign import Foreign

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    import grpc.aio

SERVICE_NAME = reflection.SERVICE_NAME
_METHOD = f"{SERVICE_NAME}/ServerReflectionInfo"

Guard = Callable[[Mapping[str, str]], Awaitable[object]]
"""Is given a call's headers, and raises QuadrateError for a caller who is not let in."""


_Servicer: Any = reflection.aio.ReflectionServicer  # type: ignore[attr-defined] # it is exported, in a way that mypy does not see


class _Guarded(_Servicer):  # type: ignore[misc] # the library has no types
    """Asks who is calling before it tells anything."""

    def __init__(self, names: Sequence[str], guard: Guard) -> None:
        super().__init__(names)
        self._guard = guard

    async def ServerReflectionInfo(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802 - gRPC's name
        async for answer in super().ServerReflectionInfo(self._let_in(request_iterator, context), context):
            yield answer

    async def _let_in(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        """Give the questions of a caller who is let in. Who is not is told after the first one: clients that still write may miss it."""
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        is_let_in = False
        async for request in requests:
            if not is_let_in:
                await self._check(metadata, context)
                is_let_in = True
            yield request

    async def _check(self, metadata: Mapping[str, str], context: Any) -> None:
        try:
            await self._guard(metadata)
        except QuadrateError as error:
            details = (status.DETAILS_KEY, status.details(error, _METHOD))
            await context.abort(
                error.status, status.sentence(error), (*status.headers(error), ("x-request-id", request_id(metadata)), details)
            )


def serve(server: grpc.aio.Server, names: Sequence[str], guard: Guard | None) -> None:
    """Serve reflection of these services and of itself; None lets everybody ask."""
    names = (*names, SERVICE_NAME)
    servicer = _Servicer(names) if guard is None else _Guarded(names, guard)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, Foreign(server))
