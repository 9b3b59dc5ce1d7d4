"""Matrix products in 8 bits, with a scale for each token and one for each of the weight's rows.

What a token's product gives depends on that token alone. ONNX Runtime's dynamic quantisation has one scale for the whole batch instead, so
that an answer depends on its company (https://github.com/microsoft/onnxruntime/issues/10111). No calibration is needed, so no data is.

A token's values x are read as s * (q - z), q from 0 to 255: the asymmetric form, since many have one large value of one sign. The product
is then s * (q @ W) - s * z * sum(W): two outer products besides the 8-bit one. (Scales as in Jacob et al. 2018; a row each as in
LLM.int8(), Dettmers et al. 2022.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quadrate.runtime.graphs.builder import Builder

MICROSOFT = "com.microsoft"
LEAST_OUTPUTS = 64
"""Products with fewer are not worth it: classifiers, scores."""
_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Quantised:
    """Rows in 8 bits.

    Attributes:
        values: uint8 `[n, inputs]`.
        scale: float32 `[n, 1]`.
        offset: float32 `[n, 2]`: scale times zero point, and 1, which a bias is multiplied by.
    """

    values: str
    scale: str
    offset: str


def linear(to: Builder, rows: str, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> str:
    """Return `rows @ weight.T + bias`, with `rows` and `weight` rounded to 8 bits: `[n, inputs]` to `[n, outputs]`."""
    read: Quantised = to.once(("int8", rows), lambda: quantise(to, rows))
    values, steps = quantised_weight(weight)
    one = _number(to, 1.0)
    product = to.node("MatMulIntegerToFloat", read.values, to.constant(values), one, to.constant(steps), domain=MICROSOFT)
    # What the zero point added comes off again; the bias goes with it.
    sums = -values.sum(axis=0, dtype=np.int32) * steps
    beside = np.stack((sums, np.zeros_like(sums) if bias is None else bias)).astype(np.float32)
    return to.node("Add", to.node("Mul", product, read.scale), to.node("MatMul", read.offset, to.constant(beside)))


def quantise(to: Builder, rows: str) -> Quantised:
    """Round float32 rows to 8 bits, each on a scale of its own that reaches from its lowest value, or 0, to its highest, or 0."""
    axes, zero = to.ints(1), _number(to, 0.0)
    highest = to.node("Max", to.node("ReduceMax", rows, axes, keepdims=1), zero)
    lowest = to.node("Min", to.node("ReduceMin", rows, axes, keepdims=1), zero)
    step = to.node("Mul", to.node("Sub", highest, lowest), _number(to, 1 / 255))
    scale = to.node("Max", step, _number(to, _TINY))
    zero_point = to.node("Round", to.node("Neg", to.node("Div", lowest, scale)))
    whole = to.node("Cast", to.node("Squeeze", zero_point, axes), to=to.number_type(np.uint8))
    values = to.node("QuantizeLinear", rows, to.node("Squeeze", scale, axes), whole, axis=0)
    offset = to.node("Pad", to.node("Mul", scale, zero_point), to.ints(0, 0, 0, 1), _number(to, 1.0))
    return Quantised(values, scale, offset)


def quantised_weight(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return a weight `[outputs, inputs]` in 8 bits, turned over to `[inputs, outputs]`, and the step of each output."""
    steps = np.maximum(np.abs(weight).max(axis=1) / 127, _TINY).astype(np.float32)
    values = np.empty((weight.shape[1], weight.shape[0]), np.int8)
    np.rint(weight.T / steps, out=values, casting="unsafe")
    return values, steps


def _number(to: Builder, value: float) -> str:
    name: str = to.once(("number", value), lambda: to.constant(np.array(value, np.float32)))
    return name
