"""Checkpoints of torch (`pytorch_model.bin`, `sparse_linear.pt`): a zip archive of a pickle, which is not run, and of plain numbers.

Layout since torch 1.6, all members below one folder, stored and not compressed: `data.pkl`, `data/0`, `data/1`, …, `byteorder`.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from typing import TYPE_CHECKING

from quadrate.errors import ConfigError
from quadrate.runtime.weights import state_pickle
from quadrate.runtime.weights.tensor import Tensor, dense_strides, extent

if TYPE_CHECKING:
    import mmap
    from collections.abc import Mapping
    from pathlib import Path

    from quadrate.runtime.weights.state_pickle import Stored

MAX_PICKLE_BYTES = 4 * 2**20
"""Some fifty times what the largest of our models needs. Each byte may make an object of 64."""

_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_LOCAL_HEADER_BYTES = 30
_WAY_OUT = "Convert it where you trust it, with save_pretrained(safe_serialization=True), or use a safetensors file."


def read(path: Path, mapping: mmap.mmap) -> Mapping[str, Tensor]:
    """Return the tensors of a mapped file by name.

    Raises ConfigError if it is damaged, is older than torch 1.6, or holds more than tensors.
    """
    if mapping[:4] != b"PK\x03\x04":
        raise ConfigError(
            f"{path}: is no zip archive, so it is no torch file or one of torch before 1.6, which only running it reads. {_WAY_OUT}"
        )
    try:
        archive = _Archive(mapping)
        found = state_pickle.tensors(archive.program())
        return {name: archive.tensor(stored) for name, stored in found.items()}
    except state_pickle.RefusedError as refused:
        raise ConfigError(f"{path}: {refused}. Nothing of it was run. {_WAY_OUT}") from refused
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, KeyError, OSError, EOFError, ValueError, struct.error) as error:
        raise ConfigError(f"{path}: not a whole torch file; fetch the model again.") from error


class _Archive:
    def __init__(self, mapping: mmap.mmap) -> None:
        self._bytes = memoryview(mapping)
        self._zip = zipfile.ZipFile(_Mapped(mapping))
        found = [name for name in self._zip.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(found) != 1:
            raise state_pickle.RefusedError("is a zip archive without the one data.pkl of a torch file")
        self._folder = found[0].removesuffix("data.pkl")
        if self._folder + "code/" in {name[: len(self._folder) + 5] for name in self._zip.namelist()}:
            raise state_pickle.RefusedError("is a TorchScript program, not weights")
        order = self._folder + "byteorder"
        if order in self._zip.namelist() and self._member(order) != b"little":
            raise state_pickle.RefusedError("was written on a machine with big-endian numbers")

    def program(self) -> bytes:
        """Return the pickle."""
        return self._member(self._folder + "data.pkl")

    def tensor(self, stored: Stored) -> Tensor:
        """Return a tensor whose numbers lie in the archive."""
        info = self._stored(f"{self._folder}data/{stored.storage}")
        size = _ITEM_BYTES[stored.dtype]
        begin = stored.offset * size
        end = begin + extent(stored.shape, stored.strides) * size
        if max(end, math.prod(stored.shape) * size) > info.file_size:  # strides of 0 would make much of little
            raise state_pickle.RefusedError(f"describes a tensor of {list(stored.shape)} that does not lie whole in it")
        start = self._start(info)
        strides = None if stored.strides == dense_strides(stored.shape) else stored.strides
        return Tensor(stored.dtype, stored.shape, self._bytes[start + begin : start + end], strides)

    def _start(self, info: zipfile.ZipInfo) -> int:
        """Return where a member's own bytes begin: after a header that states the length of two fields of its own."""
        if info.header_offset < 0:  # what the end of the archive states is subtracted from it; a slice would count from behind
            raise zipfile.BadZipFile
        head = self._bytes[info.header_offset : info.header_offset + _LOCAL_HEADER_BYTES]
        if bytes(head[:4]) != b"PK\x03\x04":
            raise zipfile.BadZipFile
        start = info.header_offset + len(head) + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        if start + info.file_size > len(self._bytes):
            raise zipfile.BadZipFile
        return start

    def _member(self, name: str) -> bytes:
        info = self._stored(name)
        if info.file_size > MAX_PICKLE_BYTES:
            raise state_pickle.RefusedError(f"has a {name} of {info.file_size} bytes; at most {MAX_PICKLE_BYTES} are read")
        return self._zip.read(info)

    def _stored(self, name: str) -> zipfile.ZipInfo:
        """Return a member that lies in the archive as it is: what is compressed may be a thousand times as long as the file."""
        info = self._zip.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED:
            raise state_pickle.RefusedError("holds compressed members, which torch does not write")
        return info


class _Mapped(io.RawIOBase):
    """A mapping as the file that `zipfile` reads, with a place of its own."""

    def __init__(self, mapping: mmap.mmap) -> None:
        super().__init__()
        self._mapping = mapping
        self._place = 0

    def readable(self) -> bool:
        """Return true."""
        return True

    def seekable(self) -> bool:
        """Return true."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: len(self._mapping)}[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        """Return the place."""
        return self._place

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        end = len(self._mapping) if size is None or size < 0 else self._place + size
        found = self._mapping[self._place : end]
        self._place += len(found)
        return found
