"""The tensors of a model folder by name.

A file is mapped into memory and its tensors are views of the mapping, so that two processes that serve the same weights share the pages,
and what is never touched is never read. Half precision is widened to float32, which is exact; only such tensors are copied.
"""

from __future__ import annotations

import json
import mmap
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quadrate.errors import ConfigError
from quadrate.runtime.weights import safetensors, torch_zip

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from quadrate.runtime.weights.tensor import Tensor

SINGLE = ("model.safetensors", "pytorch_model.bin")
"""The file of a model or of one of its modules, the one that is preferred first."""
HEADS = ("sparse_linear.pt", "colbert_linear.pt")
"""Layers that lie beside a model in files of their own (bge-m3)."""

_MODULE = re.compile(r"\d+_\w+")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies: a file of the folder, and the offset in bytes."""

    file: str
    offset: int


class Weights:
    """Named float32 tensors of a model folder.

    Reads `model.safetensors` or the shards that `model.safetensors.index.json` names, without them `pytorch_model.bin` or its shards;
    the layers of modules such as `2_Dense` as `2_Dense/linear.weight`; those in HEADS as `sparse_linear.weight`. Raises ConfigError if
    there are none, or one is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tensors: dict[str, Tensor] = {}
        self._maps: dict[str, mmap.mmap] = {}
        for path in _shards(folder):
            self._add(path, "")
        for inner in sorted(path for path in folder.iterdir() if _MODULE.fullmatch(path.name)):
            for path in [inner / name for name in SINGLE if (inner / name).is_file()][:1]:
                self._add(path, f"{inner.name}/")
        for path in (folder / name for name in HEADS):
            if path.is_file():
                self._add(path, f"{path.stem}.")

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def get(self, name: str, *shape: int) -> NDArray[np.float32]:
        """Give a tensor as float32, a view of the file where it is stored so. Raises ConfigError unless it is there with `shape`."""
        return self._tensor(name, shape).read(self.folder, name)

    def rows(self, name: str, rows: Sequence[int], *shape: int) -> NDArray[np.float32]:
        """Give some rows of a tensor of `shape` as float32: `[len(rows), ...]`. Raises ConfigError as `get` does."""
        return self._tensor(name, shape).read(self.folder, name, rows)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's lengths. Raises ConfigError unless it is there."""
        if name not in self._tensors:
            raise ConfigError(f"{self.folder}: the weights hold no tensor {name!r}; the files do not fit their config.json")
        return self._tensors[name].shape

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

    def _tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if self.shape(name) != shape:
            raise ConfigError(f"{self.folder}: tensor {name!r} has the shape {list(self.shape(name))}, config.json asks for {list(shape)}")
        return self._tensors[name]

    def _add(self, path: Path, prefix: str) -> None:
        with path.open("rb") as file:
            try:
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError as error:
                raise ConfigError(f"{path}: the file is empty; fetch the model again") from error
        read = safetensors.read if path.suffix == ".safetensors" else torch_zip.read
        self._tensors.update({prefix + name: tensor for name, tensor in read(path, mapping).items()})
        self._maps[path.relative_to(self.folder).as_posix()] = mapping


def _shards(folder: Path) -> Sequence[Path]:
    for single in SINGLE:
        index = folder / f"{single}.index.json"
        if (folder / single).is_file():
            return [folder / single]
        if index.is_file():
            return _named(folder, index)
    raise ConfigError(f"{folder}: no {' and no '.join(SINGLE)}, nor an index of shards; fetch the model again, or convert its weights.")


def _named(folder: Path, index: Path) -> Sequence[Path]:
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ConfigError(f"{index}: no readable weight_map; fetch the model again") from error
    missing = [name for name in names if not isinstance(name, str) or "/" in name or not (folder / name).is_file()]
    if missing:
        raise ConfigError(f"{index}: names {missing[0]!r}, which is not in the folder; fetch the model again")
    return [folder / name for name in names]
