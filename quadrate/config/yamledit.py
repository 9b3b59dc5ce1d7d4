"""Changes to a YAML file that people write: one item, and every other character of it, comments included, stays where it is.

Each function takes the file's text and returns the changed one. They know where things stand from PyYAML's own marks, and handle lists
written in brackets as well as under dashes. Whoever calls them reads the result again and compares: odd files (anchors, block
scalars) may be beyond them.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any, cast

import yaml

from quadrate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping


def inline(value: Any) -> str:
    """Return a value on one line, as it stands in a list: `{name: team, expires: 2027-01-31T00:00:00Z}`."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{inline(name)}: {inline(part)}' for name, part in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(inline, value))}]"
    if isinstance(value, datetime.datetime):  # PyYAML would quote it
        return value.isoformat().replace("+00:00", "Z")
    style = '"' if isinstance(value, str) and not value.isprintable() else None
    quoted: str = yaml.safe_dump([value], default_flow_style=True, default_style=style, width=2**31, allow_unicode=True)
    return quoted.strip()[1:-1]


def append(text: str, key: str, item: Mapping[str, Any]) -> str:
    """Add an item to the list under a key of the file, which is made if there is none. Raises ConfigError."""
    value = _pair(text, key)[1]
    if value is None:
        return f"{text}{'' if text.endswith(chr(10)) or not text else chr(10)}{key}:\n  - {inline(dict(item))}\n"
    if not isinstance(value, yaml.SequenceNode):
        return _replace(text, value, f"\n  - {inline(dict(item))}")
    if value.flow_style:
        return _append_in_brackets(text, value, inline(dict(item)))
    end, column = _line_end(text, _end(value.value[-1])), value.start_mark.column
    return f"{text[:end]}\n{' ' * column}- {inline(dict(item))}{text[end:]}"


def remove(text: str, key: str, place: int) -> str:
    """Take one item out of the list under a key. Raises ConfigError."""
    _, value = _pair(text, key)
    if not isinstance(value, yaml.SequenceNode) or place >= len(value.value):
        raise ConfigError(f"there is no {key}[{place}] to take out.")
    items = value.value
    if value.flow_style and len(items) == 1:
        return _replace(text, value, "[]")
    if value.flow_style:
        start = items[place].start_mark.index if place == 0 else _end(items[place - 1])
        return text[:start] + text[items[1].start_mark.index if place == 0 else _end(items[place]) :]
    start, end = _line_start(text, _dash(text, value, items[place])), _line_end(text, _end(items[place])) + 1
    if len(items) > 1:
        return text[:start] + text[end:]
    head = text[:start].rstrip()
    return f"{head} []{text[len(head) : start]}{text[end:]}" if head.endswith(":") else _replace(text, value, "[]\n")


def put(text: str, key: str, place: int, fields: Mapping[str, Any], *, instead_of: tuple[str, ...]) -> str:
    """Write fields into one item of the list under a key, where those named stand now, which go. Raises ConfigError.

    An item that is no mapping becomes one of these fields.
    """
    _, value = _pair(text, key)
    item = value.value[place] if isinstance(value, yaml.SequenceNode) and place < len(value.value) else None
    if not isinstance(item, yaml.MappingNode):
        if item is None:
            raise ConfigError(f"there is no {key}[{place}] to change.")
        return _replace(text, item, inline(dict(fields)))
    found = next(((name, node) for name, node in item.value if name.value in instead_of), None)
    if found is None:
        raise ConfigError(f"{key}[{place}] has none of {', '.join(instead_of)}.")
    return text[: found[0].start_mark.index] + inline(dict(fields))[1:-1] + text[_end(found[1]) :]


def switch(text: str, key: str, *, on: bool) -> str:
    """Set a key of the file that is there already to true or false. Raises ConfigError."""
    _, value = _pair(text, key)
    if value is None:
        raise ConfigError(f"there is no {key} to change.")
    return _replace(text, value, str(on).lower())


def _pair(text: str, key: str) -> tuple[yaml.Node | None, yaml.Node | None]:
    """Return the nodes of a key of the file and of its value."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is None:
        return None, None
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        raise ConfigError("the file is not a list of keys, one on a line, so nothing can be added to it here; edit it by hand.")
    return next(((name, value) for name, value in root.value if name.value == key), (None, None))


def _append_in_brackets(text: str, value: yaml.SequenceNode, item: str) -> str:
    if value.value:
        end = _end(value.value[-1])
        return f"{text[:end]}, {item}{text[end:]}"
    inside = text[value.start_mark.index + 1 : value.end_mark.index - 1]
    if inside.strip():  # a comment
        return f"{text[: value.start_mark.index + 1]}{item}{text[value.start_mark.index + 1 :]}"
    return f"{text[: value.start_mark.index].rstrip(' ')}\n  - {item}{text[value.end_mark.index :]}"


def _replace(text: str, node: yaml.Node, by: str) -> str:
    return text[: node.start_mark.index] + by + text[_end(node) :]


def _end(node: yaml.Node) -> int:
    """Return where a node ends. PyYAML lets what is written in lines end at the next thing, comments between them included."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return cast("int", node.end_mark.index)


def _dash(text: str, value: yaml.SequenceNode, item: yaml.Node) -> int:
    """Return where the dash of an item stands."""
    marks = [token.start_mark for token in yaml.scan(text, Loader=yaml.SafeLoader) if isinstance(token, yaml.BlockEntryToken)]
    column = value.start_mark.column
    found: int = max(mark.index for mark in marks if mark.column == column and mark.index <= item.start_mark.index)
    return found


def _line_start(text: str, place: int) -> int:
    return text.rfind("\n", 0, place) + 1


def _line_end(text: str, place: int) -> int:
    end = text.find("\n", place)
    return len(text) if end < 0 else end
