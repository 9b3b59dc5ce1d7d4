"""Matrix products in half precision, for GPUs: float16 in and out, summed in float32 by the kernels; all between them stays float32.

What overflows float16 (above 65,504), as the inner rows of T5's feed-forward layers do (https://github.com/huggingface/transformers/pull/5651),
is brought down by a power of two first and up again behind, which is exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quadrate.runtime.graphs.builder import Builder


def linear(to: Builder, rows: str, weight: NDArray[np.float32], bias: NDArray[np.float32] | None, *, headroom_bits: int = 0) -> str:
    """Return `rows @ weight.T + bias` for float32 rows, `[n, inputs]` to `[n, outputs]`, as float32.

    Args:
        to: Where nodes are added.
        rows: float32.
        weight: `[outputs, inputs]`, every value below 65,504.
        bias: `[outputs]`.
        headroom_bits: How many more powers of two rows and product may have than float16 holds.
    """
    if headroom_bits:
        rows = to.node("Mul", rows, to.constant(np.array(2.0**-headroom_bits, np.float32)))
    product = widen(to, to.node("Gemm", narrow(to, rows), to.constant(weight.astype(np.float16)), transB=1))
    if headroom_bits:
        product = to.node("Mul", product, to.constant(np.array(2.0**headroom_bits, np.float32)))
    return product if bias is None else to.node("Add", product, to.constant(bias))


def product(to: Builder, left: str, right: str) -> str:
    """Return the matrix product of two float32 values."""
    return widen(to, to.node("MatMul", narrow(to, left), narrow(to, right)))


def narrow(to: Builder, value: str) -> str:
    """Return a value in float16."""
    name: str = to.once(("float16", value), lambda: to.node("Cast", value, to=to.number_type(np.float16)))
    return name


def widen(to: Builder, value: str) -> str:
    """Return a value in float32."""
    return to.node("Cast", value, to=to.number_type(np.float32))
