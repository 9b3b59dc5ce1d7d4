"""The layers that encoders are made of, each as a few nodes over rows `[n, H]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from quadrate.runtime.graphs import float16, int8

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from quadrate.runtime.graphs.builder import Builder

Activation = Literal["none", "gelu", "gelu_tanh", "relu", "silu", "tanh"]
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""By the names that config.json files use."""
_OPERATORS = {"relu": "Relu", "tanh": "Tanh"}


def linear(
    to: Builder,
    rows: str,
    weight: NDArray[np.float32],
    bias: NDArray[np.float32] | None = None,
    *,
    scale: float = 1.0,
    headroom_bits: int = 0,
) -> str:
    """Return `scale * rows @ weight.T + bias` in the graph's arithmetic.

    Args:
        to: Where nodes are added.
        rows: float32 `[n, inputs]`.
        weight: As it lies in the file, `[outputs, inputs]`.
        bias: `[outputs]`.
        scale: What the product is multiplied by.
        headroom_bits: For float16: how many more powers of two than it holds rows and product may have.
    """
    if to.arithmetic == "int8" and len(weight) >= int8.LEAST_OUTPUTS:
        return int8.linear(to, rows, weight if scale == 1 else weight * np.float32(scale), bias)
    if to.arithmetic == "float16":
        return float16.linear(to, rows, weight if scale == 1 else weight * np.float32(scale), bias, headroom_bits=headroom_bits)
    # Gemm takes the weight as it lies in the file; MatMul would want a transposed copy and is not faster.
    inputs = [rows, to.constant(weight)]
    if bias is not None:
        inputs.append(to.constant(bias))
    return to.node("Gemm", *inputs, transB=1, alpha=scale)


def product(to: Builder, left: str, right: str) -> str:
    """Return the matrix product of two float32 values in the graph's arithmetic; 8 bits are for weights alone."""
    return float16.product(to, left, right) if to.arithmetic == "float16" else to.node("MatMul", left, right)


def activation(to: Builder, kind: Activation, rows: str) -> str:
    """Return an activation's values."""
    if kind == "none":
        return rows
    if kind in _OPERATORS:
        return to.node(_OPERATORS[kind], rows)
    if kind == "silu":
        return to.node("Mul", rows, to.node("Sigmoid", rows))
    return to.node("Gelu", rows, approximate="tanh" if kind == "gelu_tanh" else "none")


def layer_norm(to: Builder, rows: str, scale: NDArray[np.float32], bias: NDArray[np.float32] | None, *, epsilon: float) -> str:
    """Normalise rows to mean 0 and variance 1 (Ba et al. 2016)."""
    inputs = [rows, to.constant(scale), *([to.constant(bias)] if bias is not None else [])]
    return to.node("LayerNormalization", *inputs, axis=-1, epsilon=epsilon)


def rms_norm(to: Builder, rows: str, scale: NDArray[np.float32], *, epsilon: float) -> str:
    """Bring the last axis to a mean square of 1 (Zhang & Sennrich 2019)."""
    # Written out as exporters write it: both engines know it by this form and run it as one operator.
    square = to.node("Pow", rows, to.constant(np.array(2, np.float32)))
    mean = to.node("ReduceMean", square, to.ints(-1), keepdims=1)
    root = to.node("Sqrt", to.node("Add", mean, to.constant(np.array(epsilon, np.float32))))
    return to.node("Mul", to.node("Div", rows, root), to.constant(scale))


def unit(to: Builder, rows: str) -> str:
    """Bring rows to length one; a row of zeros stays one (torch.nn.functional.normalize, eps 1e-12)."""
    length = to.node("ReduceL2", rows, to.ints(-1), keepdims=1)
    return to.node("Div", rows, to.node("Max", length, to.constant(np.array(1e-12, np.float32))))
