"""A list in a YAML file is changed, and nothing else of the file is."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from quadrate.config import yamledit
from quadrate.errors import ConfigError

FILES = {
    "empty list": "# head\n\nkeys: []\nother: true # why\n",
    "empty list, comment behind": "keys: [] # none yet\nother: true\n",
    "comment in the brackets": "keys: [ # none yet\n]\nother: true\n",
    "no such key": "# head\nother: true\n",
    "no such key, no newline": "other: true",
    "nothing in it": "keys:\n# foot\nother: true\n",
    "null": "keys: null\nother: true\n",
    "brackets": "keys: [a, {name: b, sha256: x}] # all\nother: true\n",
    "brackets on lines": "keys: [\n  a, # first\n  {name: b, sha256: x}, # last\n]\nother: true\n",
    "dashes": "keys:\n  # before a\n  - a # first\n\n  # b\n  - name: b # who\n    sha256: x # y\n    models: [m]\n# foot\nother: true\n",
    "dashes at the margin": "keys:\n- a\n- name: b\n  secrets:\n  - x\n  - sha256: y\nother: true\n",
    "dashes, last in the file": "other: true\nkeys:\n  - a\n  - {name: b, sha256: x}",
    "only comments": "# head\n",
    "empty": "",
}


def items(text: str) -> list[Any]:
    """Return what the list holds."""
    return (yaml.safe_load(text) or {}).get("keys") or []


def rest(text: str) -> tuple[dict[str, Any], list[str]]:
    """Return what the file says besides the list, and its comments."""
    data = yaml.safe_load(text) or {}
    return {name: value for name, value in data.items() if name != "keys"}, [
        line.partition("#")[2] for line in text.split("\n") if "#" in line
    ]


@pytest.mark.parametrize("name", FILES)
def test_an_item_is_added_behind_the_others(name: str) -> None:
    """However the list is written; what else the file says, and every comment, stays."""
    added = {"name": "new", "models": ["m: 1", "[x]"], "expires": datetime.datetime(2027, 1, 31, tzinfo=datetime.UTC)}
    text = yamledit.append(FILES[name], "keys", added)
    assert items(text) == [*items(FILES[name]), added]
    assert rest(text) == rest(FILES[name])
    again = yamledit.append(text, "keys", {"name": "another"})
    assert items(again) == [*items(text), {"name": "another"}]


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("name", [name for name in FILES if len(items(FILES[name])) == 2])
def test_an_item_is_taken_out(name: str, place: int) -> None:
    """Its own comment goes with it; what comes before and behind stays. The last one leaves an empty list."""
    text = yamledit.remove(FILES[name], "keys", place)
    assert items(text) == [items(FILES[name])[1 - place]]
    assert rest(text)[0] == rest(FILES[name])[0]
    assert set(rest(text)[1]) >= {comment for comment in rest(FILES[name])[1] if comment in {" head", " foot", " why", " all", " before a"}}
    nothing = yamledit.remove(text, "keys", 0)
    assert yaml.safe_load(nothing) == {"keys": [], "other": True}
    assert items(yamledit.append(nothing, "keys", {"name": "new"})) == [{"name": "new"}]


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("name", [name for name in FILES if len(items(FILES[name])) == 2])
def test_fields_of_an_item_are_exchanged(name: str, place: int) -> None:
    """What else the item says stays; an item that was a text becomes the fields."""
    text = yamledit.put(FILES[name], "keys", place, {"secrets": [{"sha256": "z"}]}, instead_of=("sha256", "secrets"))
    before = items(FILES[name])[place]
    kept = {} if isinstance(before, str) else {key: value for key, value in before.items() if key not in {"sha256", "secrets"}}
    assert items(text)[place] == {**kept, "secrets": [{"sha256": "z"}]}
    assert items(text)[1 - place] == items(FILES[name])[1 - place]
    assert rest(text)[0] == rest(FILES[name])[0]


def test_a_switch_is_turned_where_it_stands() -> None:
    """With its comment."""
    assert yamledit.switch(FILES["empty list"], "other", on=False) == "# head\n\nkeys: []\nother: false # why\n"


def test_what_is_not_there_cannot_be_changed() -> None:
    """And a file in braces is not changed by guessing."""
    with pytest.raises(ConfigError, match=r"no keys\[2\]"):
        yamledit.remove(FILES["brackets"], "keys", 2)
    with pytest.raises(ConfigError, match=r"no keys\[5\]"):
        yamledit.put(FILES["brackets"], "keys", 5, {}, instead_of=("key",))
    with pytest.raises(ConfigError, match="has none of key"):
        yamledit.put(FILES["brackets"], "keys", 1, {}, instead_of=("key",))
    with pytest.raises(ConfigError, match="no nothing"):
        yamledit.switch(FILES["brackets"], "nothing", on=True)
    with pytest.raises(ConfigError, match="by hand"):
        yamledit.append("{keys: []}", "keys", {})


@settings(deadline=None, max_examples=60)
@given(st.recursive(st.text() | st.integers() | st.booleans(), lambda part: st.lists(part) | st.dictionaries(st.text(), part)))
def test_one_line_reads_as_what_it_was(value: Any) -> None:
    """Whatever it holds: YAML's own marks, words that mean something else, line breaks."""
    line = yamledit.inline(value)
    assert "\n" not in line
    assert yaml.safe_load(f"[{line}]") == [value]
