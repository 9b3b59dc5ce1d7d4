"""What waits, in fair order. No clock, no lock, no thread in here: the scheduler has those.

*Between priorities*: interactive before bulk, always. What one tenant sends of both is counted apart.

*Between tenants* of one priority: who has had the least work done for its weight goes first, each text weighing what it takes (start-time
fair queueing, Goyal et al. 1996; virtual token counters, Sheng et al. 2024). Who comes back from a pause begins where the least served one
stands, so that nobody saves up turns.

*Inside a tenant*: what its requests' shares have come to, the earliest due first; then the rest, as their shares will come. Each request
has a share of the tenant's virtual time, of which its first runs are free. A text is due by its caller's deadline, and no later than the
queue's timeout after its share came: so requests that are in no hurry go in order of arrival, and nobody is kept waiting for ever by
those in a hurry.
"""

from __future__ import annotations

import bisect
import heapq
from itertools import islice
from typing import TYPE_CHECKING

from quadrate.runtime.jobs import Tenant
from quadrate.standing import Priority, Standing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from quadrate.runtime.batching import Limits
    from quadrate.runtime.jobs import Job, Lane, Text

    IsLate = Callable[[Text], bool]

MOST_KNOWN = 256
"""So many tenants are remembered, or twice as many as have requests; then those without any are forgotten."""


class Tenants:
    """Those who have requests, and those who had some lately: what was done for them counts when they come back."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, Priority], Tenant] = {}
        self._most = MOST_KNOWN
        self._floors = [0.0 for _ in Priority]

    def of(self, standing: Standing) -> Tenant:
        """Return the tenant of a standing, for a request that has come. Its weight is the one that was told last."""
        name, priority, weight = standing
        found = self._known.get((name, priority))
        if found is None:
            if len(self._known) >= self._most:
                self._known = {key: known for key, known in self._known.items() if known.jobs}
                self._most = max(MOST_KNOWN, 2 * len(self._known))
            found = self._known[name, priority] = Tenant(name, priority)
        found.weight = weight
        found.jobs += 1
        return found

    def lift(self, tenant: Tenant) -> None:
        """Let a tenant that had nothing waiting begin no earlier than those who have."""
        tenant.used = max(tenant.used, self._floors[tenant.priority])

    def charge(self, texts: Sequence[Text]) -> None:
        """Charge a run's texts to those whose work it is; who wait for the same share its price."""
        for priority in {text.job.tenant.priority for text in texts}:
            least = min(text.job.tenant.used for text in texts if text.job.tenant.priority is priority)
            self._floors[priority] = max(self._floors[priority], least)
        for text in texts:
            payers = [twin.job.tenant for twin in text.group if not twin.job.over] or [text.job.tenant]
            price = text.seconds / len(payers)
            for tenant in payers:
                tenant.used += price / tenant.weight
                tenant.clock += price / max(1, tenant.jobs)


class Line:
    """Waiting texts of one kind, short or long: of all tenants and models.

    Args:
        kind: Its place in `Job.waiting_seconds`.
    """

    def __init__(self, kind: int) -> None:
        self._kind = kind
        self._queues: dict[Tenant, _Queue] = {}

    def __bool__(self) -> bool:
        """Whether anything waits; it may turn out not to be wanted any more."""
        return bool(self._queues)

    def __iter__(self) -> Iterator[Text]:
        """Give all texts, in no order."""
        for queue in self._queues.values():
            yield from queue

    @property
    def seconds(self) -> float:
        """How long one runner would take over all of it."""
        return sum(queue.seconds for queue in self._queues.values())

    def seconds_of(self, tenant: Tenant) -> float:
        """Return how long one runner would take over what a tenant has here."""
        queue = self._queues.get(tenant)
        return 0.0 if queue is None else queue.seconds

    def seconds_down_to(self, priority: Priority) -> float:
        """Return how long one runner would take over what is of this priority, or goes before it."""
        return sum(queue.seconds for tenant, queue in self._queues.items() if tenant.priority <= priority)

    def has(self, tenant: Tenant) -> bool:
        """Whether a tenant has texts here."""
        return tenant in self._queues

    def add(self, tenant: Tenant, texts: Sequence[Text]) -> None:
        """Put in texts of one job, in its order."""
        queue = self._queues.get(tenant)
        if queue is None:
            queue = self._queues[tenant] = _Queue(tenant)
        queue.add(texts)
        queue.seconds += texts[0].job.waiting_seconds[self._kind]

    def window(self, most: int, now: float, is_late: IsLate) -> list[Text]:
        """Return the first texts in order, at most so many; those that are not wanted any more, or too late, are let go of."""
        if len(self._queues) == 1:
            (queue,) = self._queues.values()
            found = list(islice(queue.wanted(now, is_late), most))
        else:
            found = self._merged(most, now, is_late)
        if not found:  # all that is left had gone
            self.sweep()
        return found

    def _merged(self, most: int, now: float, is_late: IsLate) -> list[Text]:
        found: list[Text] = []
        heads = []
        for number, queue in enumerate(self._queues.values()):
            texts = queue.wanted(now, is_late)
            if (first := next(texts, None)) is not None:
                heads.append((queue.tenant.priority, queue.tenant.used, number, first, texts))
        heapq.heapify(heads)
        while heads and len(found) < most:
            priority, used, number, text, texts = heads[0]
            found.append(text)
            after = next(texts, None)
            if after is None:
                heapq.heappop(heads)
            else:
                heapq.heapreplace(heads, (priority, used + text.seconds / text.job.tenant.weight, number, after, texts))
        return found

    def sweep(self) -> None:
        """Let go of the texts that are out, among those that were looked at."""
        for tenant, queue in list(self._queues.items()):
            queue.sweep()
            if not queue:
                del self._queues[tenant]

    def remove(self, job: Job) -> None:
        """Let go of all texts of a job."""
        if queue := self._queues.get(job.tenant):
            queue.remove(job)
            if not queue:
                del self._queues[job.tenant]

    def recount(self, tenant: Tenant, seconds: float) -> None:
        """Change what a tenant's texts are believed to take."""
        if queue := self._queues.get(tenant):
            queue.seconds = max(0.0, queue.seconds + seconds)

    def price(self, lane: Lane, limits: Limits) -> None:
        """Let a model's waiting texts take what is known now of its runs."""
        for queue in self._queues.values():
            for text in queue:
                job = text.job
                if text.lane is not lane or text.out or job.over or job.doomed:
                    continue
                before, text.seconds = text.seconds, lane.cost.share(text.tokens, limits)
                if text.counted:
                    job.waiting_seconds[self._kind] += text.seconds - before
                    queue.seconds += text.seconds - before

    def ahead(self, text: Text) -> float:
        """Return how much work, in seconds of a core, will run before a text that has not been put in."""
        tenant, mine = text.job.tenant, 0.0
        if queue := self._queues.get(tenant):
            mine = queue.ahead(text)
            if len(self._queues) == 1:
                return mine
        level = tenant.used + mine / tenant.weight
        return mine + sum(_before(tenant, level, other, queue.seconds) for other, queue in self._queues.items() if other is not tenant)


class _Queue:
    """One tenant's texts of one line: those whose share has come, by when they are due, and the others, by their share."""

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        self.seconds = 0.0
        self._ready: list[Text] = []
        self._later: list[Text] = []
        self._looked_at = [0, 0]

    def __bool__(self) -> bool:
        return bool(self._ready or self._later)

    def __iter__(self) -> Iterator[Text]:
        yield from self._ready
        yield from self._later

    def add(self, texts: Sequence[Text]) -> None:
        """Put in texts whose shares come one after another."""
        clock = self.tenant.clock
        split = len(texts) if texts[-1].start <= clock else bisect.bisect_right(texts, clock, key=_start)
        _insert(self._ready, texts[:split], _due)
        _insert(self._later, texts[split:], _start)

    def wanted(self, now: float, is_late: IsLate) -> Iterator[Text]:
        """Give the texts in order, passing by those that are not wanted any more."""
        self._promote(now)
        self._looked_at = [0, 0]
        for number, texts in enumerate((self._ready, self._later)):
            for text in texts:
                self._looked_at[number] += 1
                if text.out:
                    continue
                if text.job.over or text.lane.broken or (now + text.seconds > text.due and is_late(text)):
                    text.out = True
                    if text.lane.flying.get(text.key) is text:
                        del text.lane.flying[text.key]
                    continue
                yield text

    def _promote(self, now: float) -> None:
        """Let those join the ready whose share has come: they are due as if they had come now, or by their caller's deadline."""
        if self._later and self._later[0].start <= self.tenant.clock:
            split = bisect.bisect_right(self._later, self.tenant.clock, key=_start)
            for text in self._later[:split]:
                due = text.due + now - text.job.submitted
                text.due = due if text.job.deadline is None else min(due, text.job.deadline)
            _insert(self._ready, sorted(self._later[:split], key=_due), _due)
            del self._later[:split]

    def sweep(self) -> None:
        """Let go of the texts that are out, among those that were looked at."""
        for texts, count in zip((self._ready, self._later), self._looked_at, strict=True):
            if count:
                texts[:count] = [text for text in texts[:count] if not text.out]
        self._looked_at = [0, 0]

    def remove(self, job: Job) -> None:
        """Let go of all texts of a job."""
        for text in (gone for gone in self if gone.job is job):
            if text.lane.flying.get(text.key) is text and not text.out:
                del text.lane.flying[text.key]
        self._ready = [text for text in self._ready if text.job is not job]
        self._later = [text for text in self._later if text.job is not job]

    def ahead(self, text: Text) -> float:
        """Return how many seconds' work of this queue goes before a text."""
        ready, later = len(self._ready), len(self._later)
        if not ready + later:
            return 0.0
        place = ready
        if text.start > self.tenant.clock:
            place += bisect.bisect_right(self._later, text.start, key=_start)
        elif ready and self._ready[-1].due > text.due:
            place = bisect.bisect_right(self._ready, text.due, key=_due)
        return self.seconds * place / (ready + later)


def _before(tenant: Tenant, level: float, other: Tenant, seconds: float) -> float:
    """Return how much of another tenant's work goes before what a tenant sends once so much was done for it."""
    if other.priority is not tenant.priority:
        return seconds if other.priority < tenant.priority else 0.0
    return min(seconds, max(0.0, level - other.used) * other.weight)


def _insert(texts: list[Text], new: Sequence[Text], key: Callable[[Text], float]) -> None:
    """Put `new`, which is in order, into `texts`, which are; equals go behind those that are there."""
    if not new:
        return
    if not texts or key(texts[-1]) <= key(new[0]):
        texts.extend(new)
    elif len(new) == 1:
        bisect.insort_right(texts, new[0], key=key)
    else:
        texts.extend(new)
        texts.sort(key=key)


def _due(text: Text) -> float:
    return text.due


def _start(text: Text) -> float:
    return text.start
