"""What every call goes through first, whatever its wire: who is calling, and until when it is worth answering."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gateway.overload.priority import asked_priority
from quadrate.standing import Priority, Standing
from quadrate.turns import on_behalf

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.auth.authenticator import Authenticator
    from gateway.auth.principal import Principal
    from gateway.overload.room import Room
    from quadrate.server import Call


class Admission:
    """Lets calls in.

    Args:
        authenticator: Tells callers apart.
        request_timeout_seconds: The time of a call whose caller sets no deadline.
        room: What the gateway has room for.
        streams: Likewise for streams, whose items have their places in `room`.
        weight_of: What weight a caller of a name has beside others.
    """

    def __init__(
        self, authenticator: Authenticator, *, request_timeout_seconds: float, room: Room, streams: Room, weight_of: Callable[[str], float]
    ) -> None:
        self._authenticator = authenticator
        self._room = room
        self._streams = streams
        self._weight_of = weight_of
        self._request_timeout_seconds = request_timeout_seconds

    @property
    def authenticator(self) -> Authenticator:
        """The one in force."""
        return self._authenticator

    def use(self, authenticator: Authenticator) -> None:
        """Tell callers apart by another one from now on. Calls under way go on; items that a stream still sends are looked at anew."""
        self._authenticator = authenticator

    async def admit(self, call: Call) -> Principal:
        """Return who is calling and see to it that the call has a deadline and a place in the room.

        Raises Unauthenticated, PermissionDenied, InvalidArgument, Overloaded; Unavailable where a token's issuer cannot be reached.
        """
        principal = await self._enter(call, Priority.INTERACTIVE, self._room)
        self._set_deadline(call)
        return principal

    async def admit_stream(self, call: Call) -> Principal:
        """As `admit`, for a stream, which may last: `admit_item` lets each of its items in, with a deadline of its own.

        Streams bring texts to be stored, so they are bulk unless they say otherwise.
        """
        return await self._enter(call, Priority.BULK, self._streams)

    async def check(self, metadata: Mapping[str, str]) -> None:
        """Raise what `admit` would of a caller, for what is no call of ours, such as reflection."""
        await self._authenticator.authenticate(metadata)

    async def admit_item(self, item: Call) -> Principal:
        """As `admit`, for one item of a stream: a key that expires or is revoked while the stream is open opens nothing more.

        An item waits for its place, and the stream with it.
        """
        principal = await self._authenticator.authenticate(item.metadata)
        item.place = await self._room.wait(item.standing, item.size_bytes)
        self._set_deadline(item)
        return principal

    async def _enter(self, call: Call, usual: Priority, room: Room) -> Principal:
        with call.trace.stage("auth"):
            principal = await self._authenticator.authenticate(call.metadata)
        call.log["principal"] = principal.name
        priority = asked_priority(call.metadata, usual)
        call.standing = Standing(principal.name, priority, self._weight_of(principal.name))
        on_behalf.set(call.standing)
        call.place = room.enter(call.standing, call.size_bytes)
        return principal

    def _set_deadline(self, call: Call) -> None:
        """Give a call whose caller sets no deadline the configured one."""
        if call.deadline is None:
            call.deadline = time.monotonic() + self._request_timeout_seconds
