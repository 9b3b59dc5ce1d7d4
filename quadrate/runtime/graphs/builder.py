"""Writing an ONNX graph node by node.

A graph is a proto without its large weights. A weight that lies in the model's file as it is needed stays there: the proto names file and
offset, ONNX Runtime maps it, and processes that serve the same file share its pages. A weight that had to be computed (a sum, a wider
number format) is handed over beside the proto.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from quadrate.runtime.weights import Weights

OPSET = 20
"""The first opset with `Gelu`; every ONNX Runtime since 1.17 and every OpenVINO since 2024 reads it."""
ATTENTION_OPSET = 23
"""The first with `Attention`, which OpenVINO runs by a kernel of its own."""
IR_VERSION = 10
INLINE_BYTES = 16_384
"""Smaller constants go into the proto: the optimizer looks at them, and they are not worth a handle each."""

_ROWS = {"text": "b", "token": "t"}

Arithmetic = Literal["float32", "float16", "int8"]
"""How matrix products with weights are written; see `quadrate.runtime.graphs.layers.linear`."""
Kernels = Literal["none", "onnxruntime", "openvino"]
"""Whose kernels there are for attention; `quadrate.runtime.graphs.fused` writes them. None: it is written out in standard operators."""
_CONTRIB = helper.make_opsetid("com.microsoft", 1)


@dataclass(frozen=True, slots=True)
class Form:
    """What one output is.

    Attributes:
        per: Whether it has a row for each text or for each token.
        width: Values of a row.
    """

    per: Literal["text", "token"]
    width: int


@dataclass(frozen=True, slots=True)
class Graph:
    """A model ready for a session.

    Attributes:
        proto: The serialised ModelProto, without the large weights.
        folder: Where the files lie that the proto names.
        computed: The large weights that lie in no file, by the name that the proto calls them.
        inputs: The names of the inputs; see `quadrate.runtime.packing.FEEDS`.
        outputs: The outputs by name, and what each is.
        weight_bytes: What all its weights take.
    """

    proto: bytes
    folder: Path
    computed: Mapping[str, NDArray[Any]]
    inputs: tuple[str, ...]
    outputs: Mapping[str, Form]
    weight_bytes: int


class Builder:
    """Collects nodes and constants; a node's value goes by the name that is returned.

    Args:
        weights: Where large constants may lie already.
        arithmetic: How matrix products are to be written.
        kernels: Whose kernels attention may be written for.
    """

    def __init__(self, weights: Weights, arithmetic: Arithmetic = "float32", kernels: Kernels = "onnxruntime") -> None:
        self.arithmetic = arithmetic
        self.kernels = kernels
        self._weights = weights
        self._written: dict[Hashable, Any] = {}
        self._nodes: list[Any] = []
        self._constants: list[TensorProto] = []
        self._computed: dict[str, NDArray[Any]] = {}
        self._inputs: list[Any] = []
        self._weight_bytes = 0

    def input(self, name: str, dtype: type[np.generic], shape: Sequence[int | str]) -> str:
        """Declare an input; a word in the shape is a length that is known only when it runs."""
        self._inputs.append(_value(name, dtype, shape))
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return the name of its value."""
        return self.nodes(kind, *inputs, results=1, **attributes)[0]

    def nodes(self, kind: str, *inputs: str, results: int, **attributes: Any) -> list[str]:
        """Add a node and return the names of its values."""
        name = f"{kind}_{len(self._nodes)}"
        names = [name] if results == 1 else [f"{name}_{index}" for index in range(results)]
        self._nodes.append(helper.make_node(kind, inputs, names, name=name, **attributes))
        return names

    def constant(self, array: NDArray[Any]) -> str:
        """Add a constant and return its name. A large one must not change as long as a session is made of it."""
        name = f"constant_{len(self._constants)}"
        self._weight_bytes += array.nbytes
        if array.nbytes <= INLINE_BYTES:
            self._constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
            return name
        place = self._weights.place(array)
        if place is None:
            self._computed[name] = np.ascontiguousarray(array)
            location = {"location": "computed"}
        else:
            location = {"location": place.file, "offset": str(place.offset), "length": str(array.nbytes)}
        self._constants.append(_external(name, array, location))
        return name

    def once(self, key: Hashable, write: Callable[[], Any]) -> Any:
        """Return what `write` wrote for this key; it writes once, however many ask."""
        if key not in self._written:
            self._written[key] = write()
        return self._written[key]

    @staticmethod
    def number_type(dtype: type[np.generic]) -> int:
        """Return ONNX's number for a type, as `Cast` wants it."""
        return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def ints(self, *values: int) -> str:
        """Add a list of integers, for shapes and axes."""
        return self.constant(np.array(values, np.int64))

    def finish(self, outputs: Mapping[str, tuple[str, Form]]) -> Graph:
        """Close the graph; `outputs` names each result's value and form, all float32 of `[B or T, width]`."""
        for name, (value, _) in outputs.items():
            self._nodes.append(helper.make_node("Identity", [value], [name], name=name))
        results = [_value(name, np.float32, [_ROWS[form.per], form.width]) for name, (_, form) in outputs.items()]
        graph = helper.make_graph(self._nodes, "quadrate", self._inputs, results, self._constants)
        opset = ATTENTION_OPSET if any(node.op_type == "Attention" for node in self._nodes) else OPSET
        opsets = [helper.make_opsetid("", opset), *([_CONTRIB] if any(node.domain for node in self._nodes) else [])]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="quadrate")
        inputs = tuple(value.name for value in self._inputs)
        forms = {name: form for name, (_, form) in outputs.items()}
        return Graph(model.SerializeToString(), self._weights.folder, self._computed, inputs, forms, self._weight_bytes)


def _value(name: str, dtype: type[np.generic], shape: Sequence[int | str]) -> Any:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


def _external(name: str, array: NDArray[Any], location: Mapping[str, str]) -> TensorProto:
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = TensorProto(name=name, data_type=kind, dims=array.shape, data_location=TensorProto.EXTERNAL)
    for key, value in location.items():
        tensor.external_data.add(key=key, value=value)
    return tensor
