"""Safetensors files, read without copying them, as the `safetensors` package does for numpy.

File format: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import contextlib
import json
import math
from typing import TYPE_CHECKING

from quadrate.errors import ConfigError
from quadrate.runtime.weights.tensor import DTYPES, Tensor

if TYPE_CHECKING:
    import mmap
    from collections.abc import Mapping
    from pathlib import Path

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit, which keeps a damaged file from asking for any amount of memory."""


def read(path: Path, mapping: mmap.mmap) -> Mapping[str, Tensor]:
    """Return the tensors of a mapped file by name. Raises ConfigError if it is damaged."""
    header, start = _header(path, mapping)
    body = memoryview(mapping)[start:]
    return {name: _tensor(path, name, entry, body) for name, entry in header.items() if name != "__metadata__"}


def _header(path: Path, mapping: mmap.mmap) -> tuple[Mapping[str, object], int]:
    length = int.from_bytes(mapping[:8], "little")
    header: object = None
    if length <= min(MAX_HEADER_BYTES, len(mapping) - 8):
        with contextlib.suppress(ValueError, RecursionError):
            header = json.loads(mapping[8 : 8 + length])
    if not isinstance(header, dict):
        raise ConfigError(f"{path}: not a whole safetensors file; fetch the model again")
    return header, 8 + length


def _tensor(path: Path, name: str, entry: object, body: memoryview) -> Tensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]  # type: ignore[index]  # checked by the except
        data = body[begin:end]
        are_counts = all(isinstance(number, int) and number >= 0 for number in (*shape, begin, end))
        whole = are_counts and begin <= end <= len(body)
        expected = DTYPES[dtype].itemsize * math.prod(shape) if dtype in DTYPES else end - begin
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: tensor {name!r} is described wrongly; fetch the model again") from error
    if not whole or end - begin != expected:
        raise ConfigError(f"{path}: tensor {name!r} does not lie whole in the file; fetch the model again")
    return Tensor(dtype, shape, data)
