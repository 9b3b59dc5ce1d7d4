"""What limits are written as, whose they are, and what is said of them."""

from __future__ import annotations

import datetime as dt
import re
from typing import TYPE_CHECKING, Any

import pytest

from gateway.quotas.headers import duration, headers
from gateway.quotas.ledger import Entry
from gateway.quotas.plan import MOST_PLANS, Plans
from gateway.quotas.quotas import Quotas
from gateway.quotas.refusal import check_size, refusal
from gateway.quotas.rules import DAY_US, SECOND_US, Reply, Rule
from gateway.quotas.usage import KEPT_DAYS, MOST_ROWS, OTHERS, Usage
from quadrate.cli import usage as command
from quadrate.config import yamlfile
from quadrate.config.auth import AuthFile
from quadrate.config.rate_limits import RateLimitsFile, limits_by_name, without_owner
from quadrate.errors import ConfigError, InvalidArgument
from quadrate.telemetry import Metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

ROTATED = {"name": "alice", "secrets": [{"key": "old-secret"}, {"key": "new-secret"}]}


def limits(text: str) -> RateLimitsFile:
    """Read a file's text."""
    return yamlfile.parse(text, RateLimitsFile, name="rate_limits.yaml")


def rule(kind: str = "bucket", *, capacity: float = 10, each: float = SECOND_US, **more: Any) -> Rule:
    """A limit of requests, or what else is asked for."""
    given = {"key": "k", "name": "requests", "counts": "requests", "largest": capacity, **more}
    return Rule(kind=kind, capacity=capacity, each=each, **given)  # type: ignore[arg-type]  # a kind


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("default: {capacity: 5}", "rate_limits.yaml:1: default: capacity and refill_rate belong together"),
        ("default:\n  refill_rate: 5", "rate_limits.yaml:1: default: capacity and refill_rate belong together"),
        ("default: {tokens_per_minute: 0}", "default.tokens_per_minute"),
        ("default: {concurrent_requests: -1}", "default.concurrent_requests"),
        ("default: {refill_rate: .inf, capacity: 1}", "default.refill_rate"),
        ("default: {weight: 0}", "default.weight"),
        ("default: {tokens_per_hour: 5}", "did you mean 'tokens_per_day'|allowed: .*tokens_per_minute"),
        ("default: 5", r"rate_limits.yaml:1: default: must be a mapping of keys to values; allowed: .*tokens_per_day"),
        ("per_api_key: [a]", r"rate_limits.yaml:1: per_api_key: must be a mapping of names to values"),
        ("per_api_key:\n  918273645: {weight: 1}", r"^rate_limits.yaml:2: per_api_key\.…: keys must be text; put a number between quotes$"),
        ("default: {models: {minilm: {weight: 2}}}", "default.models.minilm.weight: unknown key"),
    ],
)
def test_a_limit_that_means_nothing_is_refused(text: str, reason: str) -> None:
    """With the file, the line, the key and what is allowed."""
    with pytest.raises(ConfigError, match=reason):
        limits(text)


def test_any_limit_may_stand_alone() -> None:
    """A limit of tokens needs no bucket of requests, and an empty one limits nothing."""
    file = limits("default: {tokens_per_day: 5}\nanonymous: {}")
    plans = Plans(file, AuthFile())
    assert [one.name for one in plans.of("alice", "minilm").rules] == ["tokens_per_day"]
    assert plans.of("anonymous", "minilm").rules == ()


def test_files_of_an_earlier_deployment_mean_what_they_meant() -> None:
    """Keys written plainly have the limits written for them, others the default."""
    auth = AuthFile.model_validate({"api_keys": ["production-key-1", "admin-key"]})
    file = limits(
        "default: {capacity: 60, refill_rate: 30}\nanonymous: {capacity: 30, refill_rate: 15}\n"
        "per_api_key:\n  admin-key: {capacity: 120, refill_rate: 60}"
    )
    plans = Plans(file, auth)
    names = [key.principal for key in auth.api_keys]
    found = [plans.of(name, "bge-m3").rules[0] for name in (*names, "anonymous")]
    assert [(one.capacity, round(SECOND_US / one.each, 9)) for one in found] == [(60, 30), (120, 60), (30, 15)]
    assert len({one.key for one in found}) == 3
    assert without_owner(file, auth) == ()


@pytest.mark.parametrize("entry", ["alice", "old-secret", "new-secret"])
def test_a_key_that_is_rotated_is_one_caller(entry: str) -> None:
    """Both of its secrets, and its name, mean the same limit."""
    auth = AuthFile.model_validate({"api_keys": [ROTATED]})
    assert list(limits_by_name(limits(f"per_api_key: {{{entry}: {{tokens_per_day: 1}}}}"), auth)) == ["alice"]


def test_entries_that_match_no_key_are_told_by_place() -> None:
    """Never by what they say, which may be a key."""
    auth = AuthFile.model_validate({"api_keys": [ROTATED]})
    assert without_owner(limits("per_api_key: {alice: {}, revoked-secret: {}, 'jwt:carol': {}}"), auth) == (2, 3)


def test_plans_of_callers_by_token_do_not_pile_up() -> None:
    """They are made again when they are needed."""
    plans = Plans(limits("default: {tokens_per_day: 5}"), AuthFile())
    for number in range(MOST_PLANS + 10):
        plans.of(f"jwt:{number}", "minilm")
    assert len(plans._made) <= MOST_PLANS


def test_names_never_meet_in_a_key() -> None:
    """Whatever callers and models are called, no two limits share a state."""
    plans = Plans(limits("default: {tokens_per_day: 5, models: {'b:c': {tokens_per_day: 5}, c: {tokens_per_day: 5}}}"), AuthFile())
    keys = [one.key for name, alias in (("a", "b:c"), ("a:b", "c"), ("a%3Ab", "c")) for one in plans.of(name, alias).rules]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0121, "13ms"),
        (0.9999, "1s"),
        (1, "1s"),
        (1.5, "1.5s"),
        (8.64, "8.64s"),
        (72.5, "1m12.5s"),
        (360, "6m0s"),
        (86_399.001, "23h59m59.001s"),
    ],
)
def test_times_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    """Rounded up, so that who waits so long has waited long enough."""
    assert duration(seconds) == text


def test_headers_are_those_of_the_limit_with_least_left() -> None:
    """For requests and for tokens apart; leases have no header."""
    rules = (
        rule(capacity=10),
        rule(capacity=100, each=1000.0),
        rule("day", capacity=1000, each=1.0, counts="tokens"),
        rule("leases", capacity=1, each=1.0),
    )
    told = dict(headers(rules, [4_000_000.0, 99_000.0, 990.0, 1.0], DAY_US - 3_000_000))
    assert told == {
        "x-ratelimit-limit-requests": "100",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "99ms",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "10",
        "x-ratelimit-reset-tokens": "3s",
    }


def test_of_several_limits_that_are_used_up_the_longest_wait_is_told() -> None:
    """Waiting for the shorter one would not help."""
    rules = (rule(capacity=1), rule("day", capacity=5, each=1.0, counts="tokens", name="tokens_per_day", model="minilm"))
    entry = Entry(Reply(False, DAY_US - 60e6, [1e6, 4.0]), rules)
    error, name = refusal(entry, [1.0, 3.0], at_most=[1.0, 3.0], typical_seconds=0.1)
    assert (name, error.retry_after_seconds) == ("tokens_per_day", 60.0)
    assert error.message == (
        "The limit is 5 tokens a day (UTC) for the model 'minilm', of which 1 are left, and this request has 3. Try again in 1m0s."
    )


def test_who_is_refused_unread_is_told_a_wait_that_is_long_enough() -> None:
    """As if it were as many tokens as it can be, but no more than the limit holds; and that they were not counted."""
    one = rule(capacity=10, counts="tokens", name="tokens_per_minute")
    entry = Entry(Reply(False, 0.0, [8e6]), [one])
    for most, seconds in ((3.0, 1.0), (6.0, 4.0), (1000.0, 8.0)):
        error, _ = refusal(entry, [3.0], at_most=[most], typical_seconds=0.1)
        assert error.retry_after_seconds == seconds
        assert ("this request has at least 3." in error.message) is (most != 3.0)


def test_only_what_no_waiting_helps_is_wrong() -> None:
    """As many as the limit holds pass some time; one more never does."""
    one = rule(capacity=10, counts="tokens", name="tokens_per_minute")
    check_size([one], [10.0])
    with pytest.raises(InvalidArgument, match=re.escape("This request has 11 tokens, and the limit is 10 tokens a minute")):
        check_size([one], [11.0])


def test_weights_are_those_of_the_file() -> None:
    """1 for who has none."""
    quotas = Quotas(limits("per_api_key: {alice: {weight: 4}}"), AuthFile(), redis=None, metrics=Metrics("router"))
    assert (quotas.weight("alice"), quotas.weight("bob"), quotas.weight("anonymous")) == (4.0, 1.0, 1.0)


async def test_use_is_kept_by_day_and_not_for_ever() -> None:
    """Rows of a day are told apart up to a bound; old days go."""
    day = dt.date(2026, 1, 1)
    usage = Usage(None, lambda: day)
    for number in range(MOST_ROWS + 5):
        usage.row(f"jwt:{number}", "minilm").requests += 1
    rows = await usage.read(day)
    assert len(rows) == MOST_ROWS + 1
    assert rows[OTHERS, "minilm"].requests == 5
    first, day = day, day + dt.timedelta(days=KEPT_DAYS + 1)
    usage.row("alice", "minilm").tokens += 7
    assert await usage.read(first) == {}
    assert (await usage.read(day))["alice", "minilm"].tokens == 7


def page(rows: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """What a gateway answers."""
    return {"day": "2026-01-01", "store": "gateway", "gateways": 1, "rows": list(rows), "limits": [], **more}


def row(principal: str, requests: int) -> dict[str, Any]:
    """One line of it."""
    return {"principal": principal, "model": "minilm", "requests": requests, "tokens": 3 * requests, "failed": 0, "refused": 1}


@pytest.mark.parametrize(("store", "expected"), [("gateway", [5, 1]), ("redis", [2])])
def test_gateways_that_count_alone_are_added_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: str, expected: list[int]
) -> None:
    """Those that share a Redis say the same, so one is enough."""
    pages = {"http://one": page([row("alice", 2)], store=store), "http://two": page([row("alice", 3), row("bob", 1)], store=store)}
    monkeypatch.setattr(command, "_ask", lambda gateway, _: pages[gateway])
    assert command.run(list(pages), None, as_json=False) == 0
    told = re.findall(r"(?:alice|bob)\W+minilm\W+(\d+)", capsys.readouterr().out)
    assert [int(count) for count in told] == expected


def test_callers_are_named_as_they_are(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A token's issuer chooses names; brackets in them are no instructions for the terminal."""
    monkeypatch.setattr(command, "_ask", lambda _, __: page([row("jwt:[/red]", 2)]))
    command.run(["http://one"], None, as_json=False)
    assert "jwt:[/red]" in capsys.readouterr().out


def test_a_quiet_day_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """No empty table."""
    monkeypatch.setattr(command, "_ask", lambda _, __: page([]))
    command.run(["http://one"], "2026-01-01", as_json=False)
    assert capsys.readouterr().out == "Nothing was asked on 2026-01-01 (UTC): one gateway.\n"
