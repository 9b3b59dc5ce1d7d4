"""What is said of a value that a schema refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quadrate.shown import shown

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_HAVE_VALUES = frozenset(
    (
        "literal_error",
        "bool_parsing",
        "bool_type",
        "int_parsing",
        "int_type",
        "int_from_float",
        "float_parsing",
        "float_type",
        "finite_number",
        "greater_than",
        "greater_than_equal",
        "less_than",
        "less_than_equal",
    )
)
"""The faults of switches, numbers and words of a list, by the library's names. Texts may be secrets: theirs are never repeated."""


def reason(error: ErrorDetails, *, is_secret: bool = False) -> str:
    """Return what is wrong, and what was written where that cannot be a secret."""
    said = error["msg"].removeprefix("Value error, ")
    if is_secret or error["type"] not in _HAVE_VALUES or not isinstance(error["input"], str | int | float | None):
        return said
    return f"{said.partition(', unable')[0].partition(', got')[0]}, not {shown(repr(error['input']))}"
