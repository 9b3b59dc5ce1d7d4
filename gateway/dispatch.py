"""The way of a validated request to a worker, the same for every task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.quotas.bounds import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.auth.principal import Principal
    from gateway.quotas.bounds import Bounds
    from gateway.quotas.charge import Charge
    from gateway.quotas.quotas import Quotas
    from gateway.upstreams.errand import Errand
    from gateway.upstreams.pool import Pool
    from quadrate.server import Call
    from quadrate.v1.embed_pb2 import EmbedResponse
    from quadrate.v1.rerank_pb2 import RerankResponse


class Dispatch:
    """Sends errands to workers.

    Args:
        quotas: What each caller may use.
        may_know: Whether answers of a pool may be known for a call, which then costs no tokens.
    """

    def __init__(self, quotas: Quotas, may_know: Callable[[Pool, Call], bool]) -> None:
        self._quotas = quotas
        self._may_know = may_know

    def admit(self, pool: Pool, principal: Principal, call: Call, bounds: Callable[[], Bounds]) -> None:
        """Refuse a request whose caller's limits are known to be used up, before work goes into it. Raises QuotaExceeded.

        `bounds` is asked only if the caller was refused a moment ago and the request is not read to look for its answer.
        """
        name = principal.name
        if self._quotas.was_refused(name):
            looks = self._may_know(pool, call) and self._quotas.may_look(name, call)
            self._quotas.admit(name, pool.alias, call, UNKNOWN if looks else bounds())

    async def charge(self, pool: Pool, errand: Errand, call: Call) -> None:
        """Charge a request that no worker needs to see, since its answer is known. Raises QuotaExceeded; then nothing was charged."""
        call.log["tokens"] = errand.tokens
        with call.trace.stage("quota"):
            charge = await self._quotas.charge(errand.principal.name, pool.alias, errand.tokens, call)
        call.headers.extend(charge.headers())

    async def send(self, pool: Pool, errand: Errand, call: Call) -> Any:
        """Return a worker's answer. Raises QuadrateError; then nothing was charged."""
        call.log["tokens"] = errand.tokens
        pool.check_room(errand, call)
        with call.trace.stage("quota"):
            charge = await self._quotas.charge(errand.principal.name, pool.alias, errand.tokens, call)
        answer = await pool.send(errand, call)
        if errand.read_by.is_estimate:
            call.log["tokens"] = _settle(answer, errand, charge)
        call.headers.extend(charge.headers())
        return answer


def _settle(answer: EmbedResponse | RerankResponse, errand: Errand, charge: Charge) -> int:
    """Correct an estimated charge by what the upstream counted, or say in the answer that it is estimated; return the tokens."""
    if answer.usage.HasField("tokens"):
        charge.correct(answer.usage.tokens)
        return answer.usage.tokens
    answer.usage.tokens, answer.usage.estimated = errand.tokens, True
    return errand.tokens
