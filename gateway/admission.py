"""What every call goes through first, whatever its wire: who is calling, and until when it is worth answering."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gateway.overload.priority import asked_priority
from quadrate.standing import Priority, Standing

if TYPE_CHECKING:
    from gateway.auth.keys import Authenticator
    from gateway.auth.principal import Principal
    from quadrate.server import Call


class Admission:
    """Lets calls in.

    Args:
        authenticator: Tells callers apart.
        request_timeout_seconds: The time of a call whose caller sets no deadline.
    """

    def __init__(self, authenticator: Authenticator, *, request_timeout_seconds: float) -> None:
        self._authenticator = authenticator
        self._request_timeout_seconds = request_timeout_seconds

    def use(self, authenticator: Authenticator) -> None:
        """Tell callers apart by another authenticator from now on."""
        self._authenticator = authenticator

    def admit(self, call: Call) -> Principal:
        """Return who is calling and see to it that the call has a deadline. Raises Unauthenticated, PermissionDenied, InvalidArgument."""
        with call.trace.stage("auth"):
            principal = self._authenticator.authenticate(call.metadata)
        call.log["principal"] = principal.name
        call.standing = Standing(principal.name, asked_priority(call.metadata, Priority.INTERACTIVE))
        self.set_deadline(call)
        return principal

    def admit_stream(self, call: Call) -> Principal:
        """As `admit`, for a stream, which may last: `set_deadline` gives each of its items a deadline of its own.

        Streams bring texts to be stored, so they are bulk unless they say otherwise.
        """
        with call.trace.stage("auth"):
            principal = self._authenticator.authenticate(call.metadata)
        call.log["principal"] = principal.name
        call.standing = Standing(principal.name, asked_priority(call.metadata, Priority.BULK))
        return principal

    def set_deadline(self, call: Call) -> None:
        """Give a call whose caller sets no deadline the configured one."""
        if call.deadline is None:
            call.deadline = time.monotonic() + self._request_timeout_seconds
