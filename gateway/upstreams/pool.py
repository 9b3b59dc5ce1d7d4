"""One model's replicas: of two the less loaded is asked, and another where that fails.

    pick ─► send ─┬─► answer
      ▲           └─► it was lost, could not, or took too long ─► pick among the others; where there are none, pause
      └───────────────────────────────────────────────────────────┘   (MOST_TRIES, the caller's deadline, the model's RetryBudget)

A request is charged once, whatever happens here: all of it is one send to those who charge.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
import weakref
from typing import TYPE_CHECKING, Any

from gateway.upstreams.outliers import FAILURES_IN_ROW, JUDGE_SECONDS, fault, most_aside
from gateway.upstreams.peers import Lost
from gateway.upstreams.replica import TooSlow
from gateway.upstreams.retries import MOST_TRIES, RetryBudget, pause_seconds
from quadrate.errors import Overloaded, Unavailable
from quadrate.telemetry import log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.upstreams.errand import Errand
    from gateway.upstreams.facts import Facts
    from gateway.upstreams.replica import Replica
    from quadrate.config.routing import Route
    from quadrate.errors import QuadrateError
    from quadrate.server import Call
    from quadrate.telemetry import Metrics
    from quadrate.tokenizer import TextTokenizer


SHORT_TOKENS = 512
"""Requests of more tokens are not sent twice: they take long because they are long."""
AWAY_RETRY_SECONDS = 1.0
_CLOCK_SECONDS = 0.01
"""Timers may be so much early by another clock."""


class Pool:
    """A route's model: its replicas, and what is known of it."""

    def __init__(self, route: Route, task: int, replicas: Sequence[Replica], metrics: Metrics) -> None:
        self.route = route
        self.task = task
        self.alias = route.model
        self.replicas = replicas
        self.known: Facts | None = None
        """Facts of a replica that serves, or of the last that did."""
        self._serving: list[Replica] = []
        self._metrics = metrics
        self._budget = RetryBudget()
        self._judged = time.monotonic()
        self._hedge_after_seconds = None if route.hedge_after_ms is None else route.hedge_after_ms / 1000

    @property
    def serving(self) -> bool:
        """Whether a request has a chance now."""
        return bool(self._serving)

    @property
    def facts(self) -> Facts:
        """The card and tokenizer that requests are read by. Raises Unavailable if no replica ever served."""
        if self.known is None:
            raise self.unavailable()
        return self.known

    @property
    def tokenizer(self) -> TextTokenizer:
        """As `facts`."""
        return self.facts.tokenizer

    @property
    def max_top_n(self) -> int | None:
        """The largest `top_n` that the route allows; None for an embedding model."""
        return getattr(self.route, "max_top_k", None)

    def update(self) -> None:
        """Take note of which replicas serve: those of the first priority that has any without trouble, or else with.

        What a replica was asked that does not answer any more is asked of others, if there are others.
        """
        serving = [replica for replica in self.replicas if replica.facts is not None]
        sound = [replica for replica in serving if not replica.trouble]
        # Rather a worker of the next group than one in trouble; rather one that was put aside than one that does not answer.
        found = sound or [replica for replica in serving if not replica.peer.pulse.is_suspect] or serving
        first = min((replica.upstream.priority for replica in found), default=0)
        self._serving = [replica for replica in found if replica.upstream.priority == first]
        if self._serving:
            self.known = self._choose_reader()
            # Those that read text differently, or give other vectors, wait until the others are gone (a server over HTTP with another width
            # not even then): ids of one tokenizer mean nothing to another, and vectors of two widths belong into no index together.
            self._serving = [replica for replica in self._serving if _goes_with(replica.facts, self.known)]
            self._hold_to_width(self.known.card.dimensions)
        for replica in self.replicas:
            if replica.peer.pulse.is_stuck or (replica.peer.pulse.is_suspect and self._serving and replica not in self._serving):
                replica.let_go()

    def _choose_reader(self) -> Facts:
        """Return what requests are read by: a worker's facts before a server's over HTTP, which may only guess how it reads.

        Where a server over HTTP may be asked, now or later, requests are texts, so that each of the replicas can be.
        """
        found = [replica.facts for replica in self._serving if replica.facts is not None]
        chosen = next((facts for facts in found if not facts.over_http), found[0])
        may_need_text = any(replica.protocol != "grpc" for replica in self.replicas)
        return dataclasses.replace(chosen, in_text=True) if may_need_text and not chosen.in_text else chosen

    def _hold_to_width(self, width: int) -> None:
        """Hold servers over HTTP to the width of what serves, workers first, so that nobody stands in with vectors of another."""
        for peer in [peer for replica in self.replicas for peer in replica.peers if width and peer.protocol == "http"]:
            peer.hold_to(width)

    def _judge(self) -> None:
        """Put aside what does worse than its like."""
        now = time.monotonic()
        for replica in [replica for replica in self._serving if not replica.trouble]:
            group = [one for one in self.replicas if one.facts is not None and one.upstream.priority == replica.upstream.priority]
            others = [one.record for one in group if one is not replica and not one.record.reason]
            reason = fault(replica.record, others)
            if reason and sum(1 for one in group if one.record.reason) < most_aside(len(group)):
                self._put_aside(replica, reason, now)
        if now >= self._judged + JUDGE_SECONDS:
            self._judged = now
            for replica in self.replicas:
                replica.record.age()

    def _put_aside(self, replica: Replica, reason: str, now: float) -> None:
        seconds = replica.record.put_aside(reason, now)
        self._metrics.counter("router_upstream_ejections_total", replica.peer.target, self.alias, "outlier").inc()
        log.warn("upstream is put aside", model=self.alias, upstream=replica.peer.target, reason=reason, seconds=seconds)
        asyncio.get_running_loop().call_later(seconds, _take_in, weakref.ref(self))
        replica.changed()

    def take_in(self) -> None:
        """Let replicas serve again whose time aside is over."""
        for replica in self.replicas:
            if replica.record.come_back(time.monotonic() + _CLOCK_SECONDS):
                log.info("upstream is taken in again", model=self.alias, upstream=replica.peer.target)
                replica.changed()

    async def send(self, errand: Errand, call: Call) -> Any:
        """Call a replica; if that fails in a way that another might not, try others while the deadline lasts. Raises QuadrateError.

        A replica that has come since the ids were made may read text differently. So may one that loaded another revision meanwhile; it
        is told whose ids these are, and has the former engine ready for them a while.
        """
        if not errand.in_text:
            errand.request.tokenizer_sha256 = errand.read_by.card.tokenizer_sha256
        self._budget.deposit()
        replica = self._pick(errand, call)
        if replica is None:
            raise self._full(errand, call) or self.unavailable()
        call.log["upstream"] = replica.peer.target
        tried = [replica]
        try:
            if self._hedge_after_seconds is not None and errand.tokens <= SHORT_TOKENS:
                return await self._hedged(tried, errand, call)
            return await replica.send(errand, call)
        except (Unavailable, Overloaded, TooSlow) as failure:
            call.has_tried = not isinstance(failure, Lost)
            return await self._elsewhere(tried, errand, call, failure)
        finally:
            if replica.record.failed_in_row >= FAILURES_IN_ROW or time.monotonic() >= self._judged + JUDGE_SECONDS:
                self._judge()

    async def _elsewhere(self, tried: list[Replica], errand: Errand, call: Call, failure: QuadrateError) -> Any:
        """Try a failed request again where it has not been, then after a pause wherever it may be answered. Raises the last failure."""
        for number in range(len(tried), MOST_TRIES):
            other = self._pick(errand, call, besides=tried)
            if other is None:
                other = await self._after_pause(number, errand, call, failure)
            if other is None:
                continue
            self._pay(number, failure)
            tried.append(other)
            call.log["upstream"], call.log["tries"] = other.peer.target, number + 1
            try:
                return await other.send(errand, call)
            except (Unavailable, Overloaded, TooSlow) as again:
                failure = again
                call.has_tried = call.has_tried or not isinstance(again, Lost)
        raise failure

    async def _after_pause(self, number: int, errand: Errand, call: Call, failure: QuadrateError) -> Replica | None:
        """Wait a little and choose among all. Raises the failure where waiting does not help, or the caller does not wait so long."""
        left, pause = call.remaining_seconds(), pause_seconds(number)
        if not isinstance(failure, Unavailable) or (left is not None and left <= pause):
            raise failure
        with call.trace.stage("pause"):
            await asyncio.sleep(pause)
        return self._pick(errand, call)

    def _pay(self, number: int, failure: QuadrateError) -> None:
        """Count a try, and take it from the budget. Raises the failure if there is nothing left.

        What was lost with its worker goes elsewhere once in any case: it is no more than what that worker had.
        """
        is_free = number == 1 and isinstance(failure, Lost)
        if not is_free and not self._budget.withdraw():
            self._metrics.counter("router_upstream_retries_denied_total", self.alias).inc()
            raise failure
        self._metrics.counter("router_upstream_retries_total", self.alias).inc()

    async def _hedged(self, tried: list[Replica], errand: Errand, call: Call) -> Any:
        """Send to the one replica that is `tried`; without an answer after a while, to a second, too. The first good answer counts."""
        (replica,) = tried
        first = asyncio.create_task(replica.send(errand, call))
        tasks = {first}
        try:
            await asyncio.wait(tasks, timeout=self._hedge_after_seconds)
            other = None if first.done() else self._pick(errand, call, besides=(replica,))
            if other is None or not self._budget.withdraw():
                return await first
            tried.append(other)
            call.log["tries"], call.log["hedged"] = 2, True
            tasks.add(asyncio.create_task(other.send(errand, call)))
            done = await _first_good(tasks)
            self._metrics.counter("router_upstream_hedges_total", self.alias, "first" if done is first else "second").inc()
            call.log["upstream"] = (replica if done is first else other).peer.target
            return done.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def unavailable(self) -> Unavailable:
        """Return the error for a model that nobody serves now: where all its servers answer nonsense, what the first of them answered."""
        told = [_told(replica) for replica in self.replicas]
        if told and (first := told[0]) is not None and all(type(one) is type(first) for one in told):
            return type(first)(first.message, retry_after_seconds=first.retry_after_seconds or AWAY_RETRY_SECONDS)
        return Unavailable(
            f"No worker serves the model '{self.alias}' at the moment. Try again; /health/ready says why.",
            retry_after_seconds=AWAY_RETRY_SECONDS,
        )

    def check_room(self, errand: Errand, call: Call) -> None:
        """Refuse at once what every replica would refuse now, by what they said a moment ago. Raises Overloaded."""
        if any(replica.refusals for replica in self._serving) and self._pick(errand, call) is None and (error := self._full(errand, call)):
            raise error

    def _full(self, errand: Errand, call: Call) -> Overloaded | None:
        """Return the error for a request that no replica has room for now; None if that is not why none can be picked."""
        waits = [wait for replica in self._serving if (wait := _closed_seconds(replica, errand, call))]
        if not waits:
            return None
        self._metrics.counter("router_overload_refusals_total", self.alias, call.standing.priority.word).inc()
        return Overloaded("The model has more to do than it can in time. Try again later.", retry_after_seconds=min(waits))

    def _pick(self, errand: Errand, call: Call, besides: Sequence[Replica] = ()) -> Replica | None:
        """Return the less loaded of two at random that read the ids and have room, load by weight. None if there is none."""
        others = [replica for replica in self._serving if replica not in besides and not _closed_seconds(replica, errand, call)]
        serving = [replica for replica in others if _reads(replica.facts, errand)]
        serving = serving or [replica for replica in others if _reads(replica.former, errand)]
        count = len(serving)
        if count <= 1:
            return serving[0] if serving else None
        # As random.sample(serving, 2), which takes ten times as long; chance spreads requests here and guards nothing.
        place = int(random.random() * count)  # noqa: S311
        one, other = serving[place], serving[(place + 1 + int(random.random() * (count - 1))) % count]  # noqa: S311
        return one if one.load <= other.load else other


async def _first_good(tasks: set[asyncio.Task[Any]]) -> asyncio.Task[Any]:
    """Wait until one has answered, or the last has failed."""
    left = set(tasks)
    while True:
        done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        good = next((task for task in done if task.exception() is None), None)
        if good is not None or not left:
            return good or done.pop()


def _take_in(pool: weakref.ref[Pool]) -> None:
    """Let a pool look whom it may take in again, if it still is."""
    found = pool()
    if found is not None:
        found.take_in()


def _told(replica: Replica) -> Unavailable | None:
    """Return what callers are told of a server that is there, and does not serve because of what it answers; None of any other."""
    return next((peer.told for peer in replica.peers if peer.told is not None), None) if replica.facts is None else None


def _closed_seconds(replica: Replica, errand: Errand, call: Call) -> float:
    """Return how long a replica that refused the like a moment ago need not be asked."""
    if not replica.refusals:
        return 0.0
    return replica.refusals.seconds(call.standing, tokens=errand.tokens, left_seconds=call.remaining_seconds())


def _reads(facts: Facts | None, errand: Errand) -> bool:
    """Whether a replica of these facts understands what an errand holds: any its texts, those of the same tokenizer its ids."""
    return facts is not None and (errand.in_text or (_reads_alike(facts, errand.read_by) and facts.takes_ids))


def _goes_with(one: Facts | None, known: Facts) -> bool:
    """Whether a replica may be asked beside one of the known facts: it gives vectors as wide, and reads what is sent."""
    return one is not None and one.card.dimensions == known.card.dimensions and (known.in_text or _reads_alike(one, known))


def _reads_alike(one: Facts | None, other: Facts | None) -> bool:
    return one is not None and other is not None and one.tokenizer is other.tokenizer and one.pair == other.pair
