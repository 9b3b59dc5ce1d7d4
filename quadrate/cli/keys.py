"""`quadrate keys`: make, list, hash and revoke API keys. What the file keeps is a hash; a key is printed once and never again."""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import getpass
import json
import os
import re
import secrets
import string
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from quadrate.config import yamledit
from quadrate.config.auth import MAX_SECRETS, ApiKey, AuthFile, Secret, digest
from quadrate.config.routing import load_routing
from quadrate.config.yamlfile import parse
from quadrate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from quadrate.config.auth import Task

PREFIX = "qd_"
"""What made keys begin with, so that scanners of code for secrets know one."""
RANDOM_CHARACTERS = 43
"""Of 62 kinds: 256 bits."""
SHOWN_DIGITS = 8
"""Of a digest, which name a secret: enough to tell those of one file apart."""
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_KEYS, _SECRET = "api_keys", ("key", "sha256", "secrets")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a new key is to be.

    Args:
        models: Aliases that it may call; empty for all.
        tasks: What it may ask for; empty for everything.
        not_before: When it begins, as `moment` reads it.
        expires: When it ends, likewise.
    """

    name: str
    models: tuple[str, ...] = ()
    tasks: tuple[Task, ...] = ()
    not_before: str | None = None
    expires: str | None = None


def new(config: Path, wish: Wish) -> int:
    """Add a key to auth.yaml and print it, alone on stdout. Raises ConfigError."""
    with _editing(config) as file:
        if any(wish.name == key.principal for key in file.read.api_keys):
            raise ConfigError(f"{file.path} has a key called {wish.name!r}. Take another name, or give it a new secret: --rotate.")
        if file.read.accept_any_key_as_anonymous:
            switch = "accept_any_key_as_anonymous"
            file.change(lambda text: yamledit.switch(text, switch, on=False), **{switch: False})
            _say(f"{switch} is false now: where there are keys, one that is mistyped must be refused.")
        secret = made()
        key = _read(fields := _fields(wish, digest(secret)))
        file.change(lambda text: yamledit.append(text, _KEYS, fields), api_keys=(*file.read.api_keys, key))
        _say(_who_else(file.read))
    if wish.models:
        _say_unknown(config / "routing.yaml", wish.models)
    _hand_over(secret, f"{wish.name} is in {file.path}, as its hash.")
    return 0


def rotate(config: Path, name: str, *, overlap: str, expires: str | None) -> int:
    """Give a key a second secret and print it; the first one ends after `overlap`. Raises ConfigError."""
    secret, now = made(), _now()
    with _editing(config) as file:
        place = _place(file.read, name)
        key = file.read.api_keys[place]
        if key.name is None:
            raise ConfigError(
                f"{name} has no name of its own, which would change with its secret. Write it with a name first, in {file.path}."
            )
        kept = [one for one in key.all_secrets if one.expires is None or one.expires > now]
        if len(kept) == MAX_SECRETS:
            shown = " and ".join(one.digest[:SHOWN_DIGITS] for one in kept)
            raise ConfigError(
                f"{name} is changing over already, between {shown}. Revoke one of them first: quadrate keys revoke {shown[:8]}."
            )
        ends = moment(overlap)
        rows = [{**_written(one), "expires": min(filter(None, (one.expires, ends)))} for one in kept]
        rows.append({"sha256": digest(secret)} | ({"expires": moment(expires)} if expires else {}))
        _put(file, place, rows)
    if key.expires is not None:
        _say(f"{name} as a whole still ends at {_told(key.expires)}, and its new secret with it.")
    _hand_over(secret, f"{name} has a new secret in {file.path}. The one before is accepted until {_told(ends)}.")
    return 0


def revoke(config: Path, which: str) -> int:
    """Take a key out of auth.yaml, by its name, or one of its secrets, by the first digits of its hash. Raises ConfigError."""
    with _editing(config) as file:
        place = _place(file.read, which)
        key = file.read.api_keys[place]
        left = [one for one in key.all_secrets if which != key.principal and not one.digest.startswith(which.lower())]
        if not left:
            others = (*file.read.api_keys[:place], *file.read.api_keys[place + 1 :])
            file.change(lambda text: yamledit.remove(text, _KEYS, place), api_keys=others)
            gone = key.principal
        else:
            _put(file, place, [_written(one) for one in left])
            gone = f"the secret {which} of {key.principal}"
    _say(f"{gone} is out of {file.path}. Running gateways refuse it once they have read the file again: in seconds, or at once by SIGHUP.")
    return 0


def show(config: Path, *, as_json: bool) -> int:
    """Print every key, a line for each secret. Raises ConfigError."""
    path = config / "auth.yaml"
    file = parse(_text(path), AuthFile, name=str(path))
    rows = [_row(key, secret, _now()) for key in file.api_keys for secret in key.all_secrets]
    if as_json:
        print(json.dumps({"file": str(path), "keys": rows}, indent=2, ensure_ascii=False))
        return 0
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("name", "secret", "state", "not before", "expires", "models", "tasks", "written as"):
        table.add_column(column)
    for row in rows:
        table.add_row(*(", ".join(value) or "all" if isinstance(value, list) else value or "" for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 200, highlight=False, markup=False).print(table)
    _say(_who_else(file))
    if any(row["written_as"] == "plain" for row in rows) and path.stat().st_mode & 0o044:
        _say(f"{path} holds keys as they are and can be read by others. Write hashes instead (quadrate keys hash), or: chmod 600 {path}")
    return 0


def hashed() -> int:
    """Print the SHA-256 of a key that is typed in or piped. Never of an argument: process lists and shells' histories show those."""
    key = getpass.getpass("Key: ") if sys.stdin.isatty() else sys.stdin.readline()
    if not key.strip():
        raise ConfigError("there was no key on standard input.")
    print(digest(key.strip()))
    return 0


def made() -> str:
    """Return a new key: the prefix and 256 random bits, in letters and digits, which a double click takes whole."""
    alphabet = string.ascii_letters + string.digits
    return PREFIX + "".join(secrets.choice(alphabet) for _ in range(RANDOM_CHARACTERS))


def moment(text: str | None) -> dt.datetime | None:
    """Return a moment in UTC: `90d`, `12h`, `30m`, `2w` from now, a day, which begins at midnight UTC, or an ISO time with its zone.

    Raises ConfigError.
    """
    if text is None:
        return None
    if found := re.fullmatch(r"(\d{1,5})([mhdw])", text):
        return (_now() + dt.timedelta(**{_UNITS[found[2]]: int(found[1])})).replace(microsecond=0)
    try:
        parsed = dt.datetime.fromisoformat(text)
    except ValueError as exc:
        raise ConfigError(f"{text!r} is no time. Write 90d, 12h, 2027-01-31 or 2027-01-31T12:00:00Z.") from exc
    if parsed.tzinfo is None and len(text) > len("2027-01-31"):
        raise ConfigError(f"{text!r} has no time zone. Write {text}Z for UTC.")
    return parsed.replace(tzinfo=dt.UTC) if parsed.tzinfo is None else parsed.astimezone(dt.UTC)


class _File:
    """auth.yaml under change: its text, and what it says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = _text(path)
        self.read = parse(self.text, AuthFile, name=str(path))

    def change(self, edit: Callable[[str], str], **fields: Any) -> None:
        """Change the text, and see that it says these fields now, and all else as before. Raises ConfigError."""
        try:
            text = edit(self.text)
        except ConfigError as exc:
            raise ConfigError(f"{self.path}: {exc}") from exc
        read = parse(text, AuthFile, name=f"{self.path}, changed")
        if read != self.read.model_copy(update=fields):
            raise ConfigError(f"{self.path} is written in a way that cannot be changed here. Edit it by hand.")
        self.text, self.read = text, read


@contextlib.contextmanager
def _editing(config: Path) -> Iterator[_File]:
    """Give the file, alone, and write it at the end: whole or not at all."""
    path = (config / "auth.yaml").resolve()
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError as exc:
        raise ConfigError(f"{path.parent}: cannot be read: {exc.strerror}. --config names the folder with auth.yaml.") from exc
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        file = _File(path)
        yield file
        _write(path, file.text)
    finally:
        os.close(folder)


def _write(path: Path, text: str) -> None:
    """Move a file with this text to `path`. Whose the former one was, and who may read it, stays: gateways must still be able to."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        before = path.stat()
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            if (os.geteuid(), os.getegid()) != (before.st_uid, before.st_gid):
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
            os.fchmod(file.fileno(), before.st_mode & 0o777)
        scratch.replace(path)
    except OSError as exc:
        raise ConfigError(f"{path} cannot be written: {exc.strerror}") from exc
    finally:
        scratch.unlink(missing_ok=True)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc


def _fields(wish: Wish, sha256: str) -> dict[str, Any]:
    """Return what the file says of a new key."""
    found = {
        "name": wish.name,
        "sha256": sha256,
        "models": list(wish.models),
        "tasks": list(wish.tasks),
        "not_before": moment(wish.not_before),
        "expires": moment(wish.expires),
    }
    return {name: value for name, value in found.items() if value}


def _read(fields: dict[str, Any]) -> ApiKey:
    """Return the key that a file would have by these fields. Raises ConfigError, whose lines are of no file."""
    try:
        return parse(yamledit.inline(fields), ApiKey, name="")
    except ConfigError as exc:
        raise ConfigError(f"No key was made: {re.sub(r'(?m)^:1: ', '', str(exc))}") from exc


def _say_unknown(path: Path, models: tuple[str, ...]) -> None:
    """Warn of aliases that routing.yaml does not have. They may come later; a file that is not there or not good says nothing of it."""
    with contextlib.suppress(ConfigError):
        routing = load_routing(path)
        aliases = {route.model for route in (*routing.embeddings, *routing.rerank)}
        if unknown := sorted(set(models) - aliases):
            have = ", ".join(sorted(aliases)) or "none"
            _say(f"Warning: {path} has no model {' and no model '.join(unknown)}, so the key may not call it until it has. It has: {have}.")


def _put(file: _File, place: int, rows: list[dict[str, Any]]) -> None:
    """Write these secrets into a key, in place of those it has."""
    keys = list(file.read.api_keys)
    new = tuple(Secret.model_validate(row) for row in rows)
    keys[place] = keys[place].model_copy(update={"key": None, "sha256": None, "secrets": new})
    file.change(lambda text: yamledit.put(text, _KEYS, place, {"secrets": rows}, instead_of=_SECRET), api_keys=tuple(keys))


def _place(file: AuthFile, which: str) -> int:
    """Return where a key stands, by its name or by the first digits of a secret's hash. Raises ConfigError unless there is one."""
    places = [place for place, key in enumerate(file.api_keys) if which == key.principal]
    if not places and re.fullmatch(rf"[0-9a-fA-F]{{{SHOWN_DIGITS},64}}", which):
        places = [place for place, key in enumerate(file.api_keys) if any(one.digest.startswith(which.lower()) for one in key.all_secrets)]
    if len(places) != 1:
        many = f"{len(places)} keys are" if places else "no key is"
        raise ConfigError(f"{many} called {which!r}. quadrate keys list shows names and the first digits of hashes; either will do.")
    return places[0]


def _written(secret: Secret) -> dict[str, Any]:
    """Return a secret as the file has it, but for its hash, which stands there in any case."""
    found = {"sha256": secret.digest, "not_before": secret.not_before, "expires": secret.expires}
    return {name: value for name, value in found.items() if value is not None}


def _row(key: ApiKey, secret: Secret, now: dt.datetime) -> dict[str, Any]:
    begin = max((one for one in (key.not_before, secret.not_before) if one), default=None)
    end = min((one for one in (key.expires, secret.expires) if one), default=None)
    return {
        "name": key.principal,
        "secret": secret.digest[:SHOWN_DIGITS],
        "state": _state(begin, end, now),
        "not_before": _told(begin),
        "expires": _told(end),
        "models": list(key.models),
        "tasks": list(key.tasks),
        "written_as": "hash" if secret.key is None else "plain",
    }


def _state(begin: dt.datetime | None, end: dt.datetime | None, now: dt.datetime) -> str:
    if end is not None and end <= now:
        return "expired"
    return "not yet" if begin is not None and begin > now else "valid"


def _who_else(file: AuthFile) -> str:
    anonymous = "are served as anonymous" if file.allow_anonymous_without_api_keys else "are refused"
    tokens = "" if file.jwt is None else f"; tokens of {file.jwt.issuer} are accepted"
    return f"Requests without a key {anonymous}{tokens}."


def _told(moment_: dt.datetime | None) -> str:
    return "" if moment_ is None else moment_.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")


def _hand_over(secret: str, said: str) -> None:
    _say(f"{said} The key itself is this line, and nowhere else:")
    print(secret)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
