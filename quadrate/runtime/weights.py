"""The tensors of a model folder, read where they lie.

A safetensors file is mapped into memory and its tensors are views of the mapping, so that two processes that serve the same weights
share the pages, and what is never touched is never read. (The `safetensors` package copies each tensor that it hands to numpy.)
Half precision is widened to float32, which is exact; only such tensors are copied.

File format: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import contextlib
import json
import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quadrate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit, which keeps a damaged file from asking for any amount of memory."""

_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"), "F64": np.dtype("<f8")}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies: a file of the folder, and the offset in bytes."""

    file: str
    offset: int


class Weights:
    """Named float32 tensors of a model folder.

    Reads `model.safetensors`, or the shards that `model.safetensors.index.json` names. Raises ConfigError if there are none, or one is
    damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tensors: dict[str, _Tensor] = {}
        self._maps: dict[str, mmap.mmap] = {}
        for path in _shards(folder):
            self._add(path)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def get(self, name: str, *shape: int) -> NDArray[np.float32]:
        """Give a tensor as float32, a view of the file where it is stored so. Raises ConfigError unless it is there with `shape`."""
        if name not in self._tensors:
            raise ConfigError(f"{self.folder}: the weights hold no tensor {name!r}; the files do not fit their config.json")
        tensor = self._tensors[name]
        if tensor.shape != shape:
            raise ConfigError(f"{self.folder}: tensor {name!r} has the shape {list(tensor.shape)}, config.json asks for {list(shape)}")
        return tensor.read(self.folder, name)

    def place(self, array: NDArray[np.float32]) -> Place | None:
        """Say where in the files `array` lies, or None if it is not a whole view of one."""
        if not array.flags.c_contiguous:
            return None
        address = array.__array_interface__["data"][0]
        for file, mapping in self._maps.items():
            start = np.frombuffer(mapping, np.uint8).__array_interface__["data"][0]
            if start <= address and address + array.nbytes <= start + len(mapping):
                return Place(file, address - start)
        return None

    def release(self) -> None:
        """Let go of the pages read so far; they come back from the page cache when they are touched again."""
        for mapping in self._maps.values():
            mapping.madvise(mmap.MADV_DONTNEED)

    def _add(self, path: Path) -> None:
        with path.open("rb") as file:
            try:
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError as error:
                raise ConfigError(f"{path}: the file is empty; fetch the model again") from error
        header, start = _header(path, mapping)
        body = memoryview(mapping)[start:]
        for name, entry in header.items():
            if name != "__metadata__":
                self._tensors[name] = _tensor(path, name, entry, body)
        self._maps[path.name] = mapping


class _Tensor:
    """Where a tensor lies, and how it is stored."""

    __slots__ = ("data", "dtype", "shape")

    def __init__(self, dtype: str, shape: tuple[int, ...], data: memoryview) -> None:
        self.dtype = dtype
        self.shape = shape
        self.data = data

    def read(self, folder: Path, name: str) -> NDArray[np.float32]:
        if self.dtype not in _DTYPES:
            raise ConfigError(f"{folder}: tensor {name!r} is stored as {self.dtype}; readable are {', '.join(_DTYPES)}")
        array = np.frombuffer(self.data, _DTYPES[self.dtype]).reshape(self.shape)
        if self.dtype == "BF16":
            # bfloat16 is the upper half of a float32.
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array.astype(np.float32, copy=False)


def _shards(folder: Path) -> Sequence[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise ConfigError(f"{folder}: no model.safetensors and no model.safetensors.index.json; only safetensors weights can be read")
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"{index}: no readable weight_map; fetch the model again") from error
    missing = [name for name in names if "/" in name or not (folder / name).is_file()]
    if missing:
        raise ConfigError(f"{index}: names {missing[0]!r}, which is not in the folder; fetch the model again")
    return [folder / name for name in names]


def _header(path: Path, mapping: mmap.mmap) -> tuple[Mapping[str, object], int]:
    length = int.from_bytes(mapping[:8], "little")
    header: object = None
    if length <= min(MAX_HEADER_BYTES, len(mapping) - 8):
        with contextlib.suppress(ValueError):
            header = json.loads(mapping[8 : 8 + length])
    if not isinstance(header, dict):
        raise ConfigError(f"{path}: not a whole safetensors file; fetch the model again")
    return header, 8 + length


def _tensor(path: Path, name: str, entry: object, body: memoryview) -> _Tensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]  # type: ignore[index]  # checked by the except
        data = body[begin:end]
        whole = 0 <= begin <= end <= len(body)
        expected = _DTYPES[dtype].itemsize * int(np.prod(shape)) if dtype in _DTYPES else end - begin
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: tensor {name!r} is described wrongly; fetch the model again") from error
    if not whole or end - begin != expected:
        raise ConfigError(f"{path}: tensor {name!r} does not lie whole in the file; fetch the model again")
    return _Tensor(dtype, shape, data)
