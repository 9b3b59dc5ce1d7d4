"""`ROUTER_FEATURE_FLAGS`: what of the gateway may be switched off by its name."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What is on unless it is switched off.

    Attributes:
        protocol_detection: Upstreams of type `infinity` and `rerank` may be workers: which protocol they speak is found out. Off: HTTP.
        http_canaries: Models behind HTTP that nobody asks are asked now and then, seldom where a key is sent. Off: never.
        estimated_tokens: Models whose tokenizer is not known are served, at an upper bound of their tokens. Off: they are unavailable.
    """

    protocol_detection: bool = True
    http_canaries: bool = True
    estimated_tokens: bool = True


NAMES = tuple(field.name for field in fields(Features))


def read_flags(written: str) -> tuple[Features, tuple[str, ...]]:
    """Return what flags say, and those that are not known here: an earlier deployment may have had others.

    Flags are separated by commas: `NAME` or `NAME=on` switches on, `-NAME` or `NAME=off` off; `-` and `_` in a name are one.
    Raises ValueError for a value that is neither.
    """
    features, unknown = Features(), []
    for flag in filter(None, (part.strip() for part in written.split(","))):
        name, is_on = _read(flag)
        if name in NAMES:
            features = replace(features, **{name: is_on})
        else:
            unknown.append(flag)
    return features, tuple(unknown)


def _read(flag: str) -> tuple[str, bool]:
    if flag.startswith("-"):
        return _name(flag[1:]), False
    name, _, value = flag.partition("=")
    if value.strip().lower() not in ("", *_ON, *_OFF):
        raise ValueError(f"{flag!r} is neither on nor off; write {name}=on, {name}=off, or {name} alone for on")
    return _name(name), value.strip().lower() not in _OFF


def _name(written: str) -> str:
    return written.strip().lower().replace("-", "_")


_ON, _OFF = ("on", "true", "1", "yes"), ("off", "false", "0", "no")
