"""What a request may ask for of a model."""

from __future__ import annotations

from typing import Any

import pytest

from quadrate.errors import InvalidArgument
from quadrate.forms import Offer, Wanted, choose
from quadrate.v1.options_pb2 import BINARY, DENSE, FLOAT16, FLOAT32, INT8, MULTI_VECTOR, SPARSE, UINT8

PLAIN = Offer(name="plain", outputs=[DENSE], width=384, matryoshka=(), normalized=True)
RAW = Offer(name="raw", outputs=[DENSE], width=384, matryoshka=(128, 256), normalized=False)
ANY = Offer(name="any", outputs=[DENSE], width=384, matryoshka=(), matryoshka_from=32, normalized=True)
THREE = Offer(name="three", outputs=[DENSE, SPARSE, MULTI_VECTOR], width=1024, matryoshka=(), normalized=True)
SPARSE_ALONE = Offer(name="sparse", outputs=[SPARSE], width=0, matryoshka=(), normalized=False)


@pytest.mark.parametrize(
    ("offer", "asked", "wanted"),
    [
        (PLAIN, {}, Wanted()),
        (PLAIN, {"outputs": [0, DENSE, DENSE]}, Wanted()),
        (PLAIN, {"value_type": FLOAT32, "dimensions": 384}, Wanted(value_type=FLOAT32)),
        (PLAIN, {"normalize": False, "value_type": BINARY}, Wanted(normalize=False, value_type=BINARY)),
        (RAW, {}, Wanted(normalize=False)),
        (RAW, {"dimensions": 128, "normalize": True}, Wanted(dimensions=128)),
        (RAW, {"value_type": INT8}, Wanted(value_type=INT8, normalize=True)),
        (RAW, {"value_type": FLOAT16}, Wanted(value_type=FLOAT16, normalize=False)),
        (THREE, {"outputs": [MULTI_VECTOR, SPARSE, SPARSE]}, Wanted(outputs=(MULTI_VECTOR, SPARSE))),
        (SPARSE_ALONE, {"outputs": [SPARSE]}, Wanted(outputs=(SPARSE,), normalize=False)),
    ],
)
def test_what_a_model_gives_may_be_asked_for(offer: Offer, asked: dict[str, Any], wanted: Wanted) -> None:
    """Nothing said means whole dense vectors as the model's card has them; int8 means length one."""
    assert choose(offer, **asked) == wanted


@pytest.mark.parametrize(
    ("offer", "asked", "param", "sentence"),
    [
        (PLAIN, {"outputs": [SPARSE]}, "outputs", "'plain' does not give SPARSE. It gives DENSE."),
        (PLAIN, {"outputs": [DENSE, 9]}, "outputs", "does not give 9"),
        (SPARSE_ALONE, {}, "outputs", "'sparse' has no dense vectors. Ask the native API for what it gives: outputs SPARSE."),
        (PLAIN, {"value_type": 9}, "value_type", "value_type 9 is not known; use one of FLOAT32, FLOAT16, INT8"),
        (THREE, {"outputs": [SPARSE], "value_type": INT8}, "value_type", "whose weights are float32"),
        (PLAIN, {"value_type": UINT8, "normalize": False}, "value_type", "UINT8 has a fixed range"),
        (PLAIN, {"dimensions": 128}, "dimensions", "was not trained for shorter vectors. Leave dimensions out to get its 384 values."),
        (RAW, {"dimensions": 100}, "dimensions", "128, 256, 384"),
        (RAW, {"dimensions": 0}, "dimensions", "128, 256, 384"),
        (RAW, {"dimensions": -5, "dimensions_name": "output_dimension"}, "output_dimension", "output_dimension -5"),
        (THREE, {"outputs": [SPARSE], "dimensions": 1024}, "dimensions", "Add DENSE"),
    ],
)
def test_what_it_does_not_give_is_refused_with_what_it_does(offer: Offer, asked: dict[str, Any], param: str, sentence: str) -> None:
    """The field at fault is named, and the way out."""
    with pytest.raises(InvalidArgument) as caught:
        choose(offer, **asked)
    assert caught.value.param == param
    assert sentence in caught.value.message


def test_a_model_that_was_trained_for_all_widths_gives_any_from_the_least_on() -> None:
    """The least and the whole are among them; what is beyond is refused with both."""
    assert [choose(ANY, dimensions=width).dimensions for width in (32, 33, 383, 384)] == [32, 33, 383, None]
    for width in (-1, 0, 1, 31, 385):
        with pytest.raises(InvalidArgument, match=f"dimensions {width} is not one that 'any' gives: any from 32 to 384"):
            choose(ANY, dimensions=width)


def test_the_common_request_is_known_as_such() -> None:
    """Whole dense float32 vectors take the short way; nothing else does."""
    assert choose(PLAIN).is_plain
    assert choose(RAW).is_plain
    for asked in ({"value_type": FLOAT16}, {"outputs": [DENSE, SPARSE]}):
        assert not choose(THREE, **asked).is_plain
    assert not choose(RAW, dimensions=128).is_plain
