"""Number formats of vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from quadrate import vectors
from quadrate.v1.options_pb2 import BINARY, FLOAT16, FLOAT32, INT8, UBINARY, UINT8

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDTHS = [8, 32, 100, 384, 1024]


def unit_vectors(width: int, count: int = 200) -> NDArray[np.float32]:
    """Return random vectors of length one, and two that are none: zeros, and a single one."""
    values = np.random.default_rng(width).standard_normal((count, width)).astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    values[0], values[1] = 0, np.eye(width)[0]
    return values


@pytest.mark.parametrize("width", WIDTHS)
def test_int8_is_the_value_times_sixteen_roots_of_the_width(width: int) -> None:
    """Rounded, clipped, zero at zero; uint8 is the same 128 higher."""
    values = unit_vectors(width)
    found = vectors.convert(values, INT8)
    wanted = np.clip(16 * np.sqrt(width) * values.astype(np.float64), -128, 127)
    assert found.dtype == np.int8
    assert np.abs(found - wanted).max() <= 0.5 + 1e-3
    assert not found[0].any()
    assert np.array_equal(vectors.convert(values, UINT8), (found.astype(np.int16) + 128).astype(np.uint8))


@pytest.mark.parametrize("width", [100, 384, 1024])
def test_int8_keeps_directions(width: int) -> None:
    """The cosine to float32 stays above 0.999 for vectors without outliers."""
    values = unit_vectors(width)[2:]
    bytes_ = vectors.convert(values, INT8).astype(np.float64)
    assert ((values * bytes_).sum(axis=1) / np.linalg.norm(bytes_, axis=1)).min() > 0.999


def test_a_vectors_bytes_do_not_depend_on_its_company() -> None:
    """Alone, in a batch, or as a row of a matrix, its bytes are the same."""
    values = unit_vectors(32)
    for kind in (FLOAT32, FLOAT16, INT8, UINT8, BINARY, UBINARY):
        together = vectors.convert(values, kind)
        alone = np.stack([vectors.convert(row, kind) for row in values])
        assert together.dtype == alone.dtype == vectors.DTYPES[kind]
        assert np.array_equal(together, alone)


def test_signs_are_packed_first_value_first() -> None:
    """Above zero is one; the first value is the highest bit; a width that is no multiple of eight is filled with zeros."""
    values = np.array([0.5, -1, 0, 1e-9, -0.0, -2, -3, 4, 1, -1], np.float32)
    assert vectors.convert(values, UBINARY).tolist() == [0b10010001, 0b10000000]
    assert vectors.convert(values, BINARY).tolist() == [0b10010001 - 128, 0b10000000 - 128]


def test_what_a_vector_takes_is_known_beforehand() -> None:
    """The bytes of a row are those that converting one gives."""
    for width in (10, 32):
        for kind in (FLOAT32, FLOAT16, INT8, UINT8, BINARY, UBINARY):
            assert vectors.row_bytes(width, kind) == vectors.convert(np.zeros(width, np.float32), kind).nbytes


@pytest.mark.parity
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("kind", "precision"), [(INT8, "int8"), (UINT8, "uint8"), (BINARY, "binary"), (UBINARY, "ubinary")])
def test_the_bytes_are_those_of_sentence_transformers(width: int, kind: int, precision: str) -> None:
    """`quantize_embeddings` with our ranges gives the same bytes and the same type."""
    util = pytest.importorskip("sentence_transformers.util")
    values = unit_vectors(width)
    wanted = util.quantize_embeddings(values, precision, ranges=vectors.ranges(width))
    found = vectors.convert(values, kind)
    assert found.dtype == wanted.dtype
    assert np.array_equal(found, wanted)
