"""JSON bodies are read strictly."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.doors import body
from quadrate.errors import InvalidArgument

REFUSED = {
    "empty": b"",
    "blank": b"  ",
    "malformed": b'{"model": ',
    "truncated": b'{"model": "minilm", "input": "he',
    "trailing data": b'{"model": "minilm"} x',
    "two documents": b"{}{}",
    "array": b"[1]",
    "string": b'"x"',
    "null": b"null",
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": -Infinity}',
    "beyond a double": b'{"a": 1e400}',
    "invalid UTF-8": b'{"a": "\xff"}',
    "encoded surrogate": b'{"a": "\xed\xa0\x80"}',
    "lone surrogate": b'{"a": "\\ud800"}',
    "lone low surrogate": b'{"a": "\\udc00"}',
    "control character": b'{"a": "\x00"}',
    "byte order mark": b"\xef\xbb\xbf{}",
    "single quotes": b"{'a': 1}",
    "comment": b'{"a": 1 /* x */}',
    "trailing comma": b'{"a": 1,}',
    "20,000 deep": b'{"a":' + b"[" * 20_000,
    "1,000 deep in objects": b'{"a":' * 1_000 + b"1" + b"}" * 1_000,
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
    "form": b"model=minilm&input=hello",
}
REPEATED = {
    "plainly": b'{"input":"a","input":"b"}',
    "with blanks before colons": b'{"input" :"a","input"\t:\r\n "b"}',
    "beside colons in text": b'{"input":"a: b","model":"::","input":"c"}',
    "beside quoted colons in text": b'{"a":"\\":","input":"x","input":"y"}',
    "beside a key that ends in a backslash": b'{"a\\\\":1,"input":"x","input":"y"}',
    "beside a text that ends in a backslash": b'{"a":"\\\\","input":"x","input":"y"}',
    "beside a text that is a colon": b'{"a":":","input":"x","input":"y"}',
    "escaped differently": b'{"input":"x","\\u0069nput":"y"}',
    "deep inside": b'{"documents":[{"text":"a"},{"text":"b","text":"c"}]}',
    "deeper inside": b'{"a":{"b":[{"c":{"d":1,"d":2}}]}}',
    "with an empty key": b'{"":1,"":2}',
    "three times": b'{"a":1,"a":1,"a":1}',
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_strict_json_object_is_refused(data: bytes) -> None:
    """Each of these is `invalid_json`, and the message has nothing of the body in it."""
    with pytest.raises(InvalidArgument) as caught:
        body.read_object(data)
    assert caught.value.code == "invalid_json"
    assert "minilm" not in caught.value.message


@pytest.mark.parametrize("data", REPEATED.values(), ids=REPEATED.keys())
def test_a_repeated_key_is_refused_wherever_it_stands(data: bytes) -> None:
    """No parser's choice between two equal keys is taken for the caller's."""
    with pytest.raises(InvalidArgument) as caught:
        body.read_object(data)
    assert caught.value.code == "duplicate_key"


def test_a_repeated_key_is_named_if_it_is_a_name() -> None:
    """The key at fault is the error's param, unless it is no plain name."""
    with pytest.raises(InvalidArgument) as caught:
        body.read_object(b'{"input":"a","input":"b"}')
    assert caught.value.param == "input"
    with pytest.raises(InvalidArgument) as caught:
        body.read_object(b'{"a secret!":"a","a secret!":"b"}')
    assert caught.value.param is None


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(alphabet=st.characters(codec="utf-8"))
    | st.sampled_from(['":', '\\":', "\\", '"', ":", " :"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet=st.characters(codec="utf-8"), max_size=4), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(
    st.dictionaries(st.text(alphabet=st.characters(codec="utf-8"), max_size=4), json_values, max_size=4),
    st.sampled_from([0, orjson.OPT_INDENT_2]),
)
def test_every_good_object_is_read_as_it_is(value: dict[str, object], option: int) -> None:
    """Whatever stands in keys and texts, a good object comes through unchanged."""
    assert body.read_object(orjson.dumps(value, option=option)) == value


@given(st.lists(st.tuples(st.sampled_from(["a", "b", 'x":', "\\", '"']), json_values), min_size=1, max_size=4), st.booleans())
def test_an_object_is_refused_exactly_if_a_key_repeats(pairs: list[tuple[str, object]], blanks: bool) -> None:  # noqa: FBT001
    """The quick count and the strict parse agree, however the object is written."""
    between = " : " if blanks else ":"
    text = "{" + ",".join(orjson.dumps(key).decode() + between + orjson.dumps(value).decode() for key, value in pairs) + "}"
    keys = [key for key, _ in pairs]
    if len(set(keys)) == len(keys):
        assert body.read_object(text.encode()) == dict(pairs)
    else:
        with pytest.raises(InvalidArgument, match="twice"):
            body.read_object(text.encode())


@pytest.mark.parametrize(
    ("read", "value", "message"),
    [
        (body.text, 1, "a must be a string, and is a JSON integer."),
        (body.text, ["x"], "a must be a string, and is a JSON array."),
        (body.integer, "1", "a must be an integer of at most 64 bits, and is a JSON string."),
        (body.integer, 1.0, "a must be an integer of at most 64 bits, and is a JSON number."),
        (body.integer, True, "a must be an integer of at most 64 bits, and is a JSON boolean."),
        (body.integer, 2**63, "a must be an integer of at most 64 bits, and is a JSON integer."),
        (body.flag, 1, "a must be true or false, and is a JSON integer."),
        (body.flag, "true", "a must be true or false, and is a JSON string."),
    ],
)
def test_a_wrong_type_is_named(read: object, value: object, message: str) -> None:
    """The message names the field, what it must be and what it is."""
    with pytest.raises(InvalidArgument) as caught:
        read({"a": value}, "a")  # type: ignore[operator] # one of the readers
    assert (caught.value.message, caught.value.param, caught.value.code) == (message, "a", "invalid_type")


def test_null_is_as_if_the_field_were_not_there() -> None:
    """Clients that send every field send null for those they do not mean."""
    assert body.text({"a": None}, "a") is None
    assert body.choice({"a": None}, "a", {"x": 1}, 7) == 7


def test_a_choice_lists_what_is_allowed() -> None:
    """Words are taken in any case; another word is refused with the allowed ones."""
    assert body.choice({"a": "LEFT"}, "a", {"left": 1}, 0) == 1
    with pytest.raises(InvalidArgument, match="a must be one of 'left', 'right'"):
        body.choice({"a": "up"}, "a", {"left": 1, "right": 2}, 0)


def test_a_key_of_the_callers_own_is_not_repeated_as_a_parameter() -> None:
    """`param` is logged, and no word of a user stands in a log."""
    with pytest.raises(InvalidArgument) as caught:
        body.read_object(b'{"hunter2":1,"hunter2":2}')
    assert caught.value.param is None
