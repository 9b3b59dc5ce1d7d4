"""`quadrate usage`: who used what, as the gateways counted it."""

from __future__ import annotations

import datetime as dt
import json
import math
from typing import TYPE_CHECKING, Any

import httpx
from rich.console import Console
from rich.table import Table

from quadrate.cli.plan import Folder
from quadrate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TIMEOUT_SECONDS = 10.0
PORT = 8085
GATEWAY = "http://127.0.0.1:8001"
COUNTS = ("requests", "tokens", "failed", "refused")
LIMITS = {
    "requests": "requests at once",
    "tokens_per_minute": "tokens a minute",
    "tokens_per_day": "tokens a day",
    "concurrent_requests": "requests under way",
}


def run(gateways: Sequence[str], day: str | None, *, port: int | None = None, as_json: bool) -> int:
    """Print the use of a day, of all gateways together; returns the exit code. Raises ConfigError if one cannot be asked.

    Args:
        gateways: Their HTTP addresses. None: those of the mesh on `port`.
        day: None: today.
        port: None: the port of a plain `up`; if no mesh runs there, the gateway is asked that would be a plain one's.
        as_json: Whether JSON is printed.
    """
    if gateways and port is not None:
        raise ConfigError("--gateway and --port both say whom to ask; keep one.")
    pages = [_ask(gateway, day) for gateway in gateways or _of_mesh(port)]
    page = pages[0] if pages[0]["store"] == "redis" else _together(pages)
    if as_json:
        print(json.dumps(page, indent=2))
    else:
        _print(page)
    return 0


def _of_mesh(port: int | None) -> list[str]:
    """Return the HTTP addresses of the gateways of a mesh on this machine."""
    folder = Folder.of(PORT if port is None else port)
    if folder.is_running():
        return [process.live.removesuffix("/health/live") for process in folder.read_plan().processes if process.role == "gateway"]
    if port is None:
        return [GATEWAY]
    raise ConfigError(f"No mesh runs on port {port} of this machine. Name the gateways of another one by --gateway http://HOST:PORT.")


def _ask(gateway: str, day: str | None) -> dict[str, Any]:
    try:
        answer = httpx.get(f"{gateway.rstrip('/')}/usage", params={"day": day} if day else {}, timeout=TIMEOUT_SECONDS)
        page: dict[str, Any] = answer.json()
    except httpx.UnsupportedProtocol as exc:
        written = f"write http://{gateway}" if "://" not in gateway else "https:// is the other one that can be asked"
        raise ConfigError(f"--gateway {gateway}: http:// is missing; {written}.") from exc
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as exc:
        raise _no_gateway(gateway, type(exc).__name__) from exc
    if answer.status_code == httpx.codes.BAD_REQUEST and isinstance(page.get("error"), str):
        raise ConfigError(f"--day {day}: {page['error']}")
    if "rows" not in page:
        raise _no_gateway(gateway, f"HTTP {answer.status_code}")
    return page


def _no_gateway(url: str, reason: str) -> ConfigError:
    return ConfigError(
        f"{url}: no gateway tells its usage there ({reason}). Name a gateway's own HTTP address by --gateway: its host and "
        "ROUTER_HTTP_PORT."
    )


def _together(pages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the use of gateways that count by themselves; their limits are each one's own and stay apart."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for row in (row for page in pages for row in page["rows"]):
        key = (row["principal"], row["model"])
        known = rows.setdefault(key, {"principal": key[0], "model": key[1], **dict.fromkeys(COUNTS, 0)})
        for count in COUNTS:
            known[count] += row[count]
    limits = [limit for page in pages for limit in page["limits"]]
    return {**pages[0], "gateways": len(pages), "rows": [rows[key] for key in sorted(rows)], "limits": limits}


def _print(page: Mapping[str, Any]) -> None:
    console = Console(markup=False)  # names of callers may hold brackets
    of = _whose(page)
    if not page["rows"]:
        console.print(f"Nothing was asked on {page['day']} (UTC): {of}.")
        return
    table = Table("caller", "model", title=f"{page['day']} (UTC), {of}", title_justify="left")
    for count in COUNTS:
        table.add_column(count, justify="right")
    for row in page["rows"]:
        table.add_row(row["principal"], row["model"], *(f"{row[count]:,}" for count in COUNTS))
    console.print(table)
    if page["limits"]:
        console.print(_limits(page["limits"]))


def _whose(page: Mapping[str, Any]) -> str:
    if page["store"] == "redis":
        return "all gateways"
    if page["store"] == "pending":
        return "only what a gateway counted since Redis is away"
    return "one gateway" if page["gateways"] == 1 else f"{page['gateways']} gateways"


def _limits(limits: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("caller", "model", "limit", title="Used of each limit now", title_justify="left")
    for column in ("allowed", "used", "free again in"):
        table.add_column(column, justify="right")
    for limit in limits:
        free_in = "" if limit["limit"] == "concurrent_requests" else str(dt.timedelta(seconds=math.ceil(limit["reset_seconds"])))
        used, allowed = f"{limit['used']:,.0f}", f"{limit['capacity']:,.10g}"
        table.add_row(limit["principal"], limit["model"] or "all", LIMITS[limit["limit"]], allowed, used, free_in)
    return table
