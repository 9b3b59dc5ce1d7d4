"""`quadrate keys`: the file it leaves is good, keeps its comments, and holds no key."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from quadrate.cli import keys
from quadrate.cli.app import app
from quadrate.config.auth import digest, load_auth
from quadrate.config.shipped import shipped
from quadrate.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from quadrate.config.auth import ApiKey


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A configuration folder with the auth.yaml that Quadrate comes with."""
    (tmp_path / "auth.yaml").write_text((shipped("configs") / "auth.yaml").read_text())
    return tmp_path


def run(*arguments: str) -> str:
    """Run `quadrate keys` and return what it prints on stdout."""
    done = CliRunner().invoke(app, ["keys", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def make(folder: Path, *arguments: str) -> str:
    """Run `quadrate keys new` and return the key."""
    return run("new", *arguments, "--config", str(folder)).strip()


def only(folder: Path) -> ApiKey:
    """Return the one key that a file has."""
    (key,) = load_auth(folder / "auth.yaml").api_keys
    return key


def test_a_new_key_is_printed_once_and_kept_as_its_hash(folder: Path) -> None:
    """Stdout has the key and nothing else, so that scripts can take it."""
    key = make(folder, "alice", "--model", "minilm", "--model", "other", "--task", "embed", "--expires", "2127-01-31")
    assert re.fullmatch(r"qd_[A-Za-z0-9]{43}", key)
    kept = only(folder)
    assert (kept.name, kept.digest, kept.models, kept.tasks) == ("alice", digest(key), ("minilm", "other"), ("embed",))
    assert kept.expires == dt.datetime(2127, 1, 31, tzinfo=dt.UTC)
    assert key not in (folder / "auth.yaml").read_text()
    assert make(folder, "bob") != key


def test_a_file_keeps_its_comments_and_its_mode(folder: Path) -> None:
    """A key that came and went leaves the file as it was, but for the switch that a key turns off."""
    path = folder / "auth.yaml"
    path.chmod(0o600)
    before = path.read_text()
    make(folder, "alice")
    make(folder, "bob")
    run("revoke", "alice", "--config", str(folder))
    run("revoke", "bob", "--config", str(folder))
    assert path.read_text() == before.replace("\naccept_any_key_as_anonymous: true", "\naccept_any_key_as_anonymous: false")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [found.name for found in folder.iterdir()] == ["auth.yaml"]


def test_the_first_key_ends_that_any_key_will_do(folder: Path) -> None:
    """Where there is a key to be mistyped, a mistyped one must be refused."""
    (folder / "auth.yaml").write_text("allow_anonymous_without_api_keys: true\naccept_any_key_as_anonymous: true # quick start\n")
    done = CliRunner().invoke(app, ["keys", "new", "alice", "--config", str(folder)])
    assert "accept_any_key_as_anonymous is false now" in done.stderr
    assert "Requests without a key are served as anonymous" in done.stderr
    assert not load_auth(folder / "auth.yaml").accept_any_key_as_anonymous
    assert "# quick start" in (folder / "auth.yaml").read_text()


def test_a_key_changes_over(folder: Path) -> None:
    """Both secrets are there for as long as was asked; a third is refused; the old one goes by its digits."""
    old = make(folder, "alice", "--task", "embed")
    new = make(folder, "alice", "--rotate", "--overlap", "2h", "--expires", "90d")
    key = only(folder)
    assert [secret.digest for secret in key.all_secrets] == [digest(old), digest(new)]
    ends = key.all_secrets[0].expires
    assert ends is not None
    assert dt.timedelta(minutes=119) < ends - dt.datetime.now(dt.UTC) <= dt.timedelta(hours=2)
    assert key.tasks == ("embed",)
    with pytest.raises(ConfigError, match="changing over already"):
        CliRunner().invoke(app, ["keys", "new", "alice", "--rotate", "--config", str(folder)], catch_exceptions=False)
    run("revoke", digest(old)[:8], "--config", str(folder))
    assert [secret.digest for secret in only(folder).all_secrets] == [digest(new)]
    third = make(folder, "alice", "--rotate")
    assert [secret.digest for secret in only(folder).all_secrets] == [digest(new), digest(third)]


def test_an_expired_secret_makes_room(folder: Path) -> None:
    """It is accepted no more, so the next one takes its place."""
    (folder / "auth.yaml").write_text(
        f"api_keys:\n  - name: alice # hers\n    secrets: [{{key: old, expires: 2020-01-01T00:00:00Z}}, {{sha256: {digest('now')}}}]\n"
    )
    new = make(folder, "alice", "--rotate")
    assert [secret.digest for secret in only(folder).all_secrets] == [digest("now"), digest(new)]
    assert "# hers" in (folder / "auth.yaml").read_text()


def test_a_rotation_never_lengthens_the_life_of_a_secret(folder: Path) -> None:
    """One that ends tomorrow ends tomorrow, whatever the overlap."""
    make(folder, "alice", "--expires", "1d")
    before = only(folder).expires
    make(folder, "alice", "--rotate", "--overlap", "4w")
    key = only(folder)
    assert key.expires == before


def test_a_key_without_a_name_is_revoked_by_its_digits(folder: Path) -> None:
    """As the list shows them, or as logs call it."""
    text = f"api_keys: [plain, {{sha256: {digest('other')}}}]\n"
    for which in (digest("plain")[:8], f"key-{digest('plain')[:8]}"):
        (folder / "auth.yaml").write_text(text)
        run("revoke", which, "--config", str(folder))
        assert only(folder).digest == digest("other")
    with pytest.raises(ConfigError, match="has no name"):
        CliRunner().invoke(app, ["keys", "new", digest("other")[:8], "--rotate", "--config", str(folder)], catch_exceptions=False)


def test_the_list_shows_everything_but_the_keys(folder: Path) -> None:
    """A line for each secret, with its state."""
    (folder / "auth.yaml").write_text(
        f"api_keys:\n  - plain-secret\n  - {{name: old, sha256: {digest('x')}, expires: 2020-01-01T00:00:00Z}}\n"
        "  - {name: next, key: next-secret, not_before: 2999-01-01T00:00:00Z, models: [minilm]}\n"
        "  - {name: two, tasks: [rerank], secrets: [one-secret, two-secret]}\n"
    )
    table = CliRunner().invoke(app, ["keys", "list", "--config", str(folder)])
    assert "secret" not in table.output.replace("secret ", "", 1).replace("  secret", "")
    rows = json.loads(run("list", "--json", "--config", str(folder)))["keys"]
    states = [(row["name"], row["state"], row["written_as"]) for row in rows]
    unnamed = f"key-{digest('plain-secret')[:8]}"
    assert states == [
        (unnamed, "valid", "plain"),
        ("old", "expired", "hash"),
        ("next", "not yet", "plain"),
        ("two", "valid", "plain"),
        ("two", "valid", "plain"),
    ]
    assert "can be read by others" in table.stderr
    (folder / "auth.yaml").chmod(0o600)
    assert "can be read by others" not in CliRunner().invoke(app, ["keys", "list", "--config", str(folder)]).stderr


def test_a_hash_is_made_of_what_is_piped_in(folder: Path) -> None:
    """And never of an argument."""
    done = CliRunner().invoke(app, ["keys", "hash"], input="a-key\n")
    assert done.stdout.strip() == digest("a-key")
    assert CliRunner().invoke(app, ["keys", "hash", "a-key"]).exit_code != 0
    with pytest.raises(ConfigError, match="no key"):
        CliRunner().invoke(app, ["keys", "hash"], input="\n", catch_exceptions=False)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["new", "alice"], "has a key called 'alice'"),
        (["new", "bob", "--expires", "tomorrow"], "'tomorrow' is no time"),
        (["new", "bob", "--expires", "2027-01-31T10:00:00"], "has no time zone"),
        (["new", "bob", "--expires", "1d", "--not-before", "2d"], "never be valid"),
        (["new", "anonymous"], "is one that others have"),
        (["new", "bob", "--rotate"], "no key is called 'bob'"),
        (["revoke", "bob"], "no key is called 'bob'"),
        (["revoke", "0123abcd"], "no key is called '0123abcd'"),
    ],
)
def test_what_cannot_be_done_leaves_the_file_alone(folder: Path, arguments: list[str], fault: str) -> None:
    """With a sentence that says why."""
    make(folder, "alice")
    before = (folder / "auth.yaml").read_text()
    with pytest.raises(ConfigError, match=re.escape(fault)):
        CliRunner().invoke(app, ["keys", *arguments, "--config", str(folder)], catch_exceptions=False)
    assert (folder / "auth.yaml").read_text() == before


def test_a_folder_that_is_not_there_is_told_as_every_mistake(tmp_path: Path) -> None:
    """In a sentence, as for a file that is no text."""
    with pytest.raises(ConfigError, match="nowhere: cannot be read: No such file or directory"):
        keys.new(tmp_path / "nowhere", keys.Wish(name="alice"))
    (tmp_path / "auth.yaml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"cannot be read: .*utf-8"):
        keys.new(tmp_path, keys.Wish(name="alice"))


def test_a_file_stays_whose_it_was_and_nothing_is_left_beside_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An administrator who adds a key must not take the file away from the gateway that reads it."""
    path = folder / "auth.yaml"
    path.chmod(0o640)
    before, given = path.stat(), []
    monkeypatch.setattr(os, "geteuid", lambda: before.st_uid + 1)
    monkeypatch.setattr(os, "fchown", lambda _, owner, group: given.append((owner, group)))
    make(folder, "alice")
    assert given == [(before.st_uid, before.st_gid)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640

    def refuse(*_: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    with pytest.raises(ConfigError, match="cannot be written: Operation not permitted"):
        make(folder, "bob")
    assert [entry.name for entry in folder.iterdir()] == ["auth.yaml"]


def test_names_in_brackets_are_shown_as_they_are(folder: Path) -> None:
    """They are names, not instructions for the terminal."""
    make(folder, "team [/red]")
    assert "team [/red]" in run("list", "--config", str(folder))


def test_a_file_that_is_linked_is_changed_where_it_is(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The link stays a link."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "keys.yaml"
    (folder / "auth.yaml").replace(elsewhere)
    (folder / "auth.yaml").symlink_to(elsewhere)
    make(folder, "alice")
    assert (folder / "auth.yaml").is_symlink()
    assert load_auth(elsewhere).api_keys[0].name == "alice"


def test_keys_made_at_the_same_time_are_all_there(folder: Path) -> None:
    """Two operators, or a script in a loop: each waits for the other."""
    line = [sys.executable, "-m", "quadrate.cli", "keys", "new", "--config", str(folder)]
    running = [subprocess.Popen([*line, f"team-{number}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for number in range(4)]
    made = [process.communicate(timeout=60)[0].decode().strip() for process in running]
    found = load_auth(folder / "auth.yaml").api_keys
    assert {key.digest for key in found} == {digest(key) for key in made}


def test_a_moment_is_read_as_people_write_it() -> None:
    """From now on, a day, or a time with its zone."""
    assert keys.moment("2027-01-31") == dt.datetime(2027, 1, 31, tzinfo=dt.UTC)
    assert keys.moment("2027-01-31T12:00:00+02:00") == dt.datetime(2027, 1, 31, 10, tzinfo=dt.UTC)
    week = keys.moment("1w")
    assert week is not None
    assert abs(week - dt.datetime.now(dt.UTC) - dt.timedelta(weeks=1)) < dt.timedelta(minutes=1)
    assert keys.moment(None) is None


def test_a_model_that_has_no_route_is_told(folder: Path) -> None:
    """The key is made: the route may come later. Without a good routing.yaml nothing is known."""
    arguments = ["keys", "new", "alice", "--model", "nope", "--model", "minilm", "--config", str(folder)]
    assert "Warning" not in CliRunner().invoke(app, arguments).stderr
    (folder / "routing.yaml").write_text((shipped("configs") / "routing.yaml").read_text())
    arguments[2] = "bob"
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0
    assert "has no model nope, so the key may not call it until it has. It has: " in done.stderr
    assert "minilm" in done.stderr
    assert done.stdout.startswith("qd_")


def test_a_key_that_cannot_be_is_refused_without_the_line_of_a_file(folder: Path) -> None:
    """There is none yet."""
    with pytest.raises(ConfigError, match=r"^No key was made: the name 'anonymous' is one that others have"):
        keys.new(folder, keys.Wish(name="anonymous"))


def test_a_file_that_cannot_be_changed_is_named(folder: Path) -> None:
    """With the way out."""
    (folder / "auth.yaml").write_text("{allow_anonymous_without_api_keys: true}")
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(folder))}/auth.yaml: .*edit it by hand"):
        keys.new(folder, keys.Wish(name="alice"))
