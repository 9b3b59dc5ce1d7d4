"""JSON bodies, read strictly: what two parsers might read differently is refused, not guessed at.

orjson refuses malformed text, trailing data, invalid UTF-8, lone surrogates, NaN, numbers beyond a double and nesting beyond 1,024. It
lets the last of two equal keys win; RFC 8259 leaves that open, and a proxy that reads the first would check something else than we run.
So repeated keys are refused as well. That needs a slow second parse only where counting cannot rule them out.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from quadrate.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping

_T = TypeVar("_T")
_BLANK_BEFORE_COLON = (b" :", b"\t:", b"\n:", b"\r:")
_MAX_INTEGER = 2**63

FIELDS = frozenset(
    [
        "model",
        "input",
        "encoding_format",
        "dimensions",
        "user",
        "input_type",
        "prompt_name",
        "truncate",
        "query",
        "documents",
        "text",
        "top_n",
        "top_k",
        "return_documents",
        "max_tokens_per_doc",
        "instruction",
        "texts",
        "inputs",
        "images",
        "content",
        "type",
        "embedding_types",
        "output_dimension",
        "max_tokens",
        "raw_scores",
    ]
)
"""Names that may be told as `param`, which is logged, too: any other key is a word of the caller's own."""


def read_object(data: bytes) -> dict[str, Any]:
    """Return a body's JSON object. Raises InvalidArgument that says what is wrong and where, with nothing of the body in it."""
    if not data:
        raise InvalidArgument("The request has no body. Send a JSON object.", code="invalid_json")
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError as exc:
        raise InvalidArgument(f"The body is not valid JSON: {exc}. Send one JSON object in UTF-8.", code="invalid_json") from None
    if type(found) is not dict:
        raise InvalidArgument(f"The body is a JSON {kind(found)}, and must be an object.", code="invalid_json")
    try:
        if _may_repeat_keys(data, found):
            json.loads(data, object_pairs_hook=_refuse_repeated)
    except RecursionError:
        raise InvalidArgument("The body is nested too deeply; requests need no more than 3 levels.", code="invalid_json") from None
    return found


def _may_repeat_keys(data: bytes, found: dict[str, Any]) -> bool:
    """Tell whether a key may stand twice in one object: false is certain, true is a reason to look closely.

    Every key is followed by one colon outside strings. If there are no more such colons than keys survived, none was repeated.
    """
    keys = len(found) if data.count(b"{") == 1 else _count_keys(found)
    if data.count(b":") == keys:
        return False
    # Colons inside texts are common. Where no colon follows a blank and no escaped backslash a quote, those that end a key are exactly
    # the ones after an unescaped quote; a text that begins with a colon is counted too, which errs on the side of looking.
    if any(blank in data for blank in _BLANK_BEFORE_COLON) or b'\\\\"' in data:
        return True
    return data.count(b'":') - data.count(b'\\":') != keys


def _count_keys(value: Any) -> int:
    if type(value) is dict:
        return len(value) + sum(_count_keys(inner) for inner in value.values())
    if type(value) is list:
        return sum(_count_keys(inner) for inner in value if type(inner) in (dict, list))
    return 0


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise InvalidArgument(
                "A key stands twice in one JSON object, so it is not clear which value is meant. Keep one.",
                param=key if key in FIELDS else None,
                code="duplicate_key",
            )
        seen.add(key)


def kind(value: Any) -> str:
    """Name a value's JSON type, for messages."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
    return names.get(type(value), "value")


def text(body: dict[str, Any], name: str) -> str | None:
    """Return a string field; None if it is absent or null."""
    return _typed(body, name, str, "a string")


def flag(body: dict[str, Any], name: str) -> bool | None:
    """Return a boolean field; None if it is absent or null."""
    return _typed(body, name, bool, "true or false")


def integer(body: dict[str, Any], name: str) -> int | None:
    """Return an integer field; None if it is absent or null. 1.0 is no integer."""
    value = _typed(body, name, int, "an integer of at most 64 bits")
    if value is not None and not -_MAX_INTEGER <= value < _MAX_INTEGER:
        raise wrong_type(name, "an integer of at most 64 bits", value)
    return value


def required_text(body: dict[str, Any], name: str) -> str:
    """Return a string field that must be there."""
    value = text(body, name)
    if value is None:
        raise missing(name)
    return value


def choice(body: dict[str, Any], name: str, choices: Mapping[str, _T], default: _T) -> _T:
    """Return what one of several words, in any case, stands for."""
    word = text(body, name)
    if word is None:
        return default
    if word.lower() not in choices:
        allowed = ", ".join(f"'{choice}'" for choice in choices)
        raise InvalidArgument(f"{name} must be one of {allowed}.", param=name)
    return choices[word.lower()]


def missing(name: str) -> InvalidArgument:
    """Return the error for a required field that is not there."""
    return InvalidArgument(f"The request has no {name}, which is required.", param=name, code="missing_required_parameter")


def wrong_type(param: str, wanted: str, value: Any) -> InvalidArgument:
    """Return the error for a field of a wrong JSON type."""
    return InvalidArgument(f"{param} must be {wanted}, and is a JSON {kind(value)}.", param=param, code="invalid_type")


def _typed(body: dict[str, Any], name: str, expected: type[_T], wanted: str) -> _T | None:
    value = body.get(name)
    if value is not None and type(value) is not expected:
        raise wrong_type(name, wanted, value)
    return value
