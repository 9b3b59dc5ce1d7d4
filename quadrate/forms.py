"""The forms of an embedding: which of them a model gives, and what a request may ask for. Gateway and workers refuse alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from quadrate import vectors
from quadrate.errors import InvalidArgument
from quadrate.v1.options_pb2 import DENSE, MULTI_VECTOR, Output, ValueType

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_OUTPUTS = {number: name for name, number in Output.items()}
_VALUE_TYPES = {number: name for name, number in ValueType.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a model gives.

    Attributes:
        name: The model's alias.
        outputs: Numbers of quadrate.v1.Output.
        width: Of dense vectors.
        matryoshka: The widths that it was trained to be cut to.
        matryoshka_from: The least width from which on it was trained to be cut to any; 0: there is none.
        normalized: Whether its dense vectors have length one unless a request says otherwise.
    """

    name: str
    outputs: Collection[int]
    width: int
    matryoshka: Collection[int]
    matryoshka_from: int = 0
    normalized: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a request gets.

    Attributes:
        outputs: Numbers of quadrate.v1.Output, each once, none unspecified.
        value_type: Of dense vectors and multi-vectors.
        dimensions: The width to cut dense vectors to; None: whole.
        normalize: Whether dense vectors get length one.
    """

    outputs: Collection[int] = (DENSE,)
    value_type: int = 0
    dimensions: int | None = None
    normalize: bool = True

    @property
    def is_plain(self) -> bool:
        """Whether it is whole dense vectors in float32, as nearly always."""
        return self.outputs == (DENSE,) and self.dimensions is None and self.value_type in vectors.FLOAT32S


def choose(
    offer: Offer,
    *,
    outputs: Sequence[int] = (),
    value_type: int = 0,
    dimensions: int | None = None,
    normalize: bool | None = None,
    dimensions_name: str = "dimensions",
) -> Wanted:
    """Return what a request gets of a model.

    Args:
        offer: What the model gives.
        outputs: As asked for; none, or unspecified ones, mean DENSE.
        value_type: As asked for.
        dimensions: As asked for.
        normalize: As asked for; None: as the model does, and length one for value types that are calibrated for it.
        dimensions_name: What the caller calls `dimensions`, for errors.

    Raises InvalidArgument for what the model does not give and for what has no meaning.
    """
    chosen = tuple(dict.fromkeys(output or DENSE for output in outputs)) or (DENSE,)
    for output in chosen:
        if output not in offer.outputs:
            raise _not_given(output, offer)
    _check_value_type(value_type, chosen, normalize)
    if dimensions is not None:
        _check_dimensions(dimensions, offer, chosen, dimensions_name)
    whole = dimensions is None or dimensions == offer.width
    unit = offer.normalized or value_type in vectors.CALIBRATED if normalize is None else normalize
    return Wanted(outputs=chosen, value_type=value_type, dimensions=None if whole else dimensions, normalize=unit)


def _not_given(output: int, offer: Offer) -> InvalidArgument:
    given = ", ".join(name for number, name in _OUTPUTS.items() if number in offer.outputs)
    asked = _OUTPUTS.get(output, str(output))
    if output == DENSE:
        return InvalidArgument(
            f"'{offer.name}' has no dense vectors. Ask the native API for what it gives: outputs {given}.", param="outputs"
        )
    return InvalidArgument(f"outputs: '{offer.name}' does not give {asked}. It gives {given}.", param="outputs")


def _check_value_type(value_type: int, outputs: Collection[int], normalize: bool | None) -> None:  # noqa: FBT001 - None is a third way
    if value_type not in _VALUE_TYPES:
        known = ", ".join(name for number, name in _VALUE_TYPES.items() if number)
        raise InvalidArgument(f"value_type {value_type} is not known; use one of {known}.", param="value_type")
    if value_type in vectors.FLOAT32S:
        return
    name = _VALUE_TYPES[value_type]
    if DENSE not in outputs and MULTI_VECTOR not in outputs:
        raise InvalidArgument(
            f"value_type {name} is for dense vectors and multi-vectors, and outputs asks for SPARSE alone, whose weights are float32. "
            "Leave value_type out.",
            param="value_type",
        )
    if value_type in vectors.CALIBRATED and normalize is False:
        raise InvalidArgument(
            f"value_type {name} has a fixed range, which is for vectors of length one. Leave normalize out, or ask for FLOAT16.",
            param="value_type",
        )


def _check_dimensions(asked: int, offer: Offer, outputs: Collection[int], param: str) -> None:
    if DENSE not in outputs:
        raise InvalidArgument(f"{param} cuts dense vectors, and outputs asks for none. Add DENSE, or leave {param} out.", param=param)
    if asked == offer.width or asked in offer.matryoshka or 0 < offer.matryoshka_from <= asked <= offer.width:
        return
    if not offer.matryoshka and not offer.matryoshka_from:
        raise InvalidArgument(
            f"{param} {asked} cannot be served: '{offer.name}' was not trained for shorter vectors. "
            f"Leave {param} out to get its {offer.width} values.",
            param=param,
        )
    listed = ", ".join(str(width) for width in sorted({*offer.matryoshka, offer.width}))
    allowed = f"any from {offer.matryoshka_from} to {offer.width}" if offer.matryoshka_from else listed
    raise InvalidArgument(f"{param} {asked} is not one that '{offer.name}' gives: {allowed}.", param=param)
