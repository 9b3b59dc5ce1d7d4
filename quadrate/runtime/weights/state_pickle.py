"""What a torch checkpoint says of its tensors, understood without unpickling it.

A checkpoint is a pickle: a program for a small stack machine, which may call any function of any module that Python can import. This is
another machine for the same programs. It knows the instructions that plain data needs, and of names only those in `_NAMES`, none of
which it looks up: `torch._utils._rebuild_tensor_v2` is a word to it that makes a `Stored` of five values. Any other instruction or name
ends the reading, with that name in the error, and nothing of it has run.

The instructions: https://github.com/python/cpython/blob/main/Lib/pickletools.py. The words: torch/serialization.py, torch/_utils.py.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_NAMES = {
    "collections OrderedDict": "dict",
    "torch._utils _rebuild_tensor_v2": "tensor",
    "torch._utils _rebuild_parameter": "parameter",
    "torch FloatStorage": "F32",
    "torch HalfStorage": "F16",
    "torch BFloat16Storage": "BF16",
    "torch DoubleStorage": "F64",
    "torch LongStorage": "I64",
    "torch IntStorage": "I32",
    "torch ShortStorage": "I16",
    "torch CharStorage": "I8",
    "torch ByteStorage": "U8",
    "torch BoolStorage": "BOOL",
}
"""Every name that may stand in a checkpoint, and what it means here."""

_STORAGE_FIELDS = 5
_TENSOR_FIELDS = 4


class RefusedError(Exception):
    """The pickle holds something that tensors do not need, or is damaged. The text says what, without the file's name."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as a checkpoint describes it.

    Attributes:
        dtype: By safetensors' names.
        storage: The archive's member that holds its numbers.
        offset: The first of its values in there.
        shape: Its lengths.
        strides: Values between neighbours of each axis.
    """

    dtype: str
    storage: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Name:
    means: str


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: str
    member: str


_MARK = object()
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_LIST": list}
_LITERALS = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = {"PROTO", "FRAME", "STOP"}


def tensors(program: bytes) -> Mapping[str, Stored]:
    """Return the tensors of a state dict by name; what else stands in it (counters, versions) is left out.

    Raises RefusedError.
    """
    machine = _Machine()
    try:
        for instruction, argument, _ in pickletools.genops(program):
            machine.do(instruction.name, argument)
        (state,) = machine.stack
    except RefusedError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, MemoryError) as error:
        raise RefusedError("is damaged") from error
    if not isinstance(state, dict):
        raise RefusedError("holds no state dict, a mapping of names to tensors")
    return {name: tensor for name, tensor in state.items() if isinstance(name, str) and isinstance(tensor, Stored)}


class _Machine:
    """The stack, and what was noted for later use."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def do(self, name: str, argument: Any) -> None:
        """Carry out one instruction."""
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            self.stack.append(self._take(_TUPLES[name]))
        elif name not in _IGNORED:
            step = getattr(self, f"_do_{name.lower()}", None)
            if step is None:
                raise RefusedError(f"uses the pickle instruction {name}, which tensors have no need of")
            step(argument)

    def _do_mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def _do_tuple(self, _: Any) -> None:
        self.stack.append(self._take_to_mark())

    def _do_binput(self, place: int) -> None:
        self._memo[place] = self.stack[-1]

    _do_long_binput = _do_binput

    def _do_memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self.stack[-1]

    def _do_binget(self, place: int) -> None:
        self.stack.append(self._memo[place])

    _do_long_binget = _do_binget

    def _do_append(self, _: Any) -> None:
        (value,) = self._take(1)
        _list(self.stack[-1]).append(value)

    def _do_appends(self, _: Any) -> None:
        values = self._take_to_mark()
        _list(self.stack[-1]).extend(values)

    def _do_setitem(self, _: Any) -> None:
        self._set(self._take(2))

    def _do_setitems(self, _: Any) -> None:
        self._set(self._take_to_mark())

    def _do_global(self, name: str) -> None:
        if name not in _NAMES:
            raise RefusedError(f"names {name.replace(' ', '.')[:100]!r}, which tensors have no need of")
        self.stack.append(_Name(_NAMES[name]))

    def _do_stack_global(self, _: Any) -> None:
        module, name = self._take(2)
        self._do_global(f"{module} {name}")

    def _do_binpersid(self, _: Any) -> None:
        (reference,) = self._take(1)
        if len(reference) != _STORAGE_FIELDS or reference[0] != "storage":
            raise RefusedError("refers to something that is no storage")
        self.stack.append(_Storage(_means(reference[1]), _text(reference[2])))

    def _do_build(self, _: Any) -> None:
        # The attributes of a state dict, such as the versions of its modules: nothing that its tensors need.
        self._take(1)
        _dict(self.stack[-1])

    def _do_reduce(self, _: Any) -> None:
        made, values = self._take(2)
        what = _means(made)
        if what == "dict" and not values:
            self.stack.append({})
        elif what == "tensor":
            self.stack.append(_stored(*values[:_TENSOR_FIELDS]))
        elif what == "parameter" and isinstance(values[0], Stored):
            self.stack.append(values[0])
        else:
            raise RefusedError(f"calls {what!r}, which is no way to make a tensor")

    def _set(self, values: tuple[Any, ...]) -> None:
        mapping = _dict(self.stack[-1])
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str | int):  # hashing a tuple of tuples of … would overrun the process's stack
                raise RefusedError("has a mapping whose keys are no names")
            mapping[key] = value

    def _take(self, count: int) -> tuple[Any, ...]:
        values = tuple(self.stack[-count:])
        if len(values) < count or any(value is _MARK for value in values):
            raise RefusedError("is damaged")
        del self.stack[-count:]
        return values

    def _take_to_mark(self) -> tuple[Any, ...]:
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:  # an IndexError below the bottom
            place -= 1
        values = tuple(self.stack[place + 1 :])
        del self.stack[place:]
        return values


def _stored(storage: Any, offset: Any, shape: Any, strides: Any) -> Stored:
    lengths, steps = tuple(map(_count, shape)), tuple(map(_count, strides))
    if not isinstance(storage, _Storage) or len(lengths) != len(steps):
        raise RefusedError("describes a tensor wrongly")
    return Stored(storage.dtype, storage.member, _count(offset), lengths, steps)


def _means(name: Any) -> str:
    if not isinstance(name, _Name):
        raise RefusedError("calls something that is no name")
    return name.means


def _count(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise RefusedError("describes a tensor wrongly")
    return int(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise RefusedError("describes a tensor wrongly")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise RefusedError("is damaged")
    return value


def _dict(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise RefusedError("is damaged")
    return value
