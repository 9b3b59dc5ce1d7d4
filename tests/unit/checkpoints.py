"""Writes checkpoints as torch.save writes them, without torch: a zip archive of a pickle and of numbers."""

from __future__ import annotations

import struct
import zipfile
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

ORDERED = b"ccollections\nOrderedDict\n)R"
KINDS = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "float64": "DoubleStorage",
    "int64": "LongStorage",
    "uint16": "BFloat16Storage",
}


def text(value: str) -> bytes:
    """Return the instruction that pushes a text."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    """Return the instruction that pushes a number."""
    return b"J" + struct.pack("<i", value)


def numbers(values: Sequence[int]) -> bytes:
    """Return the instructions that push a tuple of numbers."""
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(kind: str, member: str, offset: int, shape: Sequence[int], strides: Sequence[int]) -> bytes:
    """Return the instructions that push a tensor."""
    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(member) + text("cpu") + number(0) + b"tQ"
    values = storage + number(offset) + numbers(shape) + numbers(strides) + b"\x89" + ORDERED
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + values + b"tR"


def program(entries: Mapping[str, bytes]) -> bytes:
    """Return a pickle of a state dict whose values the instructions push."""
    body = b"".join(text(name) + value for name, value in entries.items())
    return b"\x80\x02" + ORDERED + b"(" + body + b"u}" + text("_metadata") + ORDERED + b"sb."


def write(path: Path, pickled: bytes, storages: Mapping[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> Path:
    """Write an archive and return its path."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        for name, data in storages.items():
            archive.writestr(f"archive/data/{name}", data)
        archive.writestr("archive/version", "3\n")
    return path


def save(path: Path, state: Mapping[str, NDArray[np.generic]]) -> Path:
    """Write a state dict, each tensor in a storage of its own; uint16 stands for bfloat16's bits."""
    entries, storages = {}, {}
    for place, (name, array) in enumerate(state.items()):
        strides = [step // array.itemsize for step in np.ascontiguousarray(array).strides]
        entries[name] = tensor(KINDS[str(array.dtype)], str(place), 0, array.shape, strides)
        storages[str(place)] = array.tobytes()
    return write(path, program(entries), storages)
