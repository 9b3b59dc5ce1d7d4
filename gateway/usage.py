"""`GET /usage`: who used what, and what is left to them now. For operators: the edge does not show it to the outside."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from gateway.quotas.rules import SECOND_US
from gateway.quotas.usage import KEPT_DAYS, today
from gateway.redis import RedisAway
from quadrate.server.http import json_response

if TYPE_CHECKING:
    from aiohttp import web

    from gateway.quotas.ledger import Entry
    from gateway.quotas.quotas import Quotas
    from gateway.quotas.usage import Rows

MOST_LIMITED = 500
"""Callers whose limits are looked up for one page."""


class UsagePage:
    """Answers GET /usage.

    Args:
        quotas: What counts.
    """

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas

    async def handle(self, request: web.Request) -> web.Response:
        """Answer with the use of a day, `?day=YYYY-MM-DD` in UTC; of today, with what is used of every limit, if none is named."""
        text = request.query.get("day")
        try:
            day = today() if text is None else dt.date.fromisoformat(text)
        except ValueError:
            return json_response(
                {"error": f"day must be a date such as {today().isoformat()}; the last {KEPT_DAYS} days are kept."}, status=400
            )
        rows, store = await self._rows(day)
        limits = await self._limits(rows) if day == today() else []
        body = {"day": day.isoformat(), "store": store, "gateways": self._quotas.gateways, "rows": _table(rows), "limits": limits}
        return json_response(body)

    async def _rows(self, day: dt.date) -> tuple[Rows, str]:
        """Return the use of a day, and whose it is.

        All gateways' by `redis`; this `gateway`'s own, where it counts alone; or what is `pending` here, while Redis is away.
        """
        try:
            return await self._quotas.usage.read(day), "redis" if self._quotas.usage.is_shared else "gateway"
        except RedisAway:
            return self._quotas.usage.here(day), "pending"

    async def _limits(self, rows: Rows) -> list[dict[str, Any]]:
        found: dict[tuple[str, str, str], dict[str, Any]] = {}
        names = set(sorted({name for name, _ in rows})[:MOST_LIMITED])
        for name, alias in sorted(key for key in rows if key[0] in names):
            entry = await self._quotas.look(name, alias)
            found.update({(name, line["model"], line["limit"]): line for line in _lines(name, entry)})
        return [found[key] for key in sorted(found)]


def _table(rows: Rows) -> list[dict[str, Any]]:
    return [
        {
            "principal": name,
            "model": alias,
            "requests": row.requests,
            "tokens": row.tokens,
            "failed": row.failed,
            "refused": row.refused,
        }
        for (name, alias), row in sorted(rows.items())
    ]


def _lines(name: str, entry: Entry) -> list[dict[str, Any]]:
    return [
        {
            "principal": name,
            "model": rule.model,
            "limit": rule.name,
            "capacity": rule.capacity,
            "used": round(rule.level(state), 3),
            "reset_seconds": round(rule.reset_us(state, entry.reply.now_us) / SECOND_US, 3),
        }
        for rule, state in zip(entry.rules, entry.reply.states, strict=True)
    ]
