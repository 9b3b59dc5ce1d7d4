"""The layers that encoders are made of, each as a few nodes over rows `[n, H]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

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


def linear(to: Builder, rows: str, weight: NDArray[np.float32], bias: NDArray[np.float32] | None = None, *, scale: float = 1.0) -> str:
    """Return `scale * rows @ weight.T + bias`; `weight` as it lies in the file, `[outputs, inputs]`."""
    # Gemm takes the weight as it lies in the file; MatMul would want a transposed copy and is not faster.
    inputs = [rows, to.constant(weight)]
    if bias is not None:
        inputs.append(to.constant(bias))
    return to.node("Gemm", *inputs, transB=1, alpha=scale)


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
