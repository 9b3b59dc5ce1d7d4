"""Torch checkpoints: their tensors are read, and nothing that they hold runs."""

from __future__ import annotations

import pickle
import struct
import subprocess
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadrate.errors import ConfigError
from quadrate.runtime.weights import Weights, state_pickle
from quadrate.testing.model_folder import tiny_config, tiny_weights
from tests.unit import checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

FOUR = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_a_checkpoint_has_the_tensors_that_a_safetensors_file_has(tmp_path: Path) -> None:
    """Tensors are views of the file, know their place in it, and hold what was written."""
    written = tiny_weights(tiny_config())
    file = checkpoints.save(tmp_path / "pytorch_model.bin", written)
    weights = Weights(tmp_path)
    assert sorted(weights) == sorted(written)
    for name, array in written.items():
        read = weights.get(name, *array.shape)
        assert np.array_equal(read, array)
        place = weights.place(read)
        assert place is not None
        assert file.read_bytes()[place.offset : place.offset + read.nbytes] == array.tobytes()


def test_half_and_double_precision_become_float32(tmp_path: Path) -> None:
    """float16 and bfloat16 are widened exactly, float64 is rounded; whole numbers are no weights."""
    upper = (FOUR.view(np.uint32) >> 16).astype(np.uint16)
    state: dict[str, NDArray[Any]] = {
        "half": FOUR.astype(np.float16),
        "brain": upper,
        "double": FOUR.astype(np.float64),
        "position_ids": np.arange(4),
    }
    checkpoints.save(tmp_path / "pytorch_model.bin", state)
    weights = Weights(tmp_path)
    for name in ("half", "brain", "double"):
        assert np.array_equal(weights.get(name, 3, 4), FOUR)
    with pytest.raises(ConfigError, match="'position_ids' is stored as I64"):
        weights.get("position_ids", 4)


def test_views_of_one_storage_are_read(tmp_path: Path) -> None:
    """A transposed tensor, a slice and a parameter are read as torch reads them."""
    parameter = (
        b"ctorch._utils\n_rebuild_parameter\n("
        + checkpoints.tensor("FloatStorage", "0", 0, [12], [1])
        + b"\x88"
        + checkpoints.ORDERED
        + b"tR"
    )
    entries = {
        "turned": checkpoints.tensor("FloatStorage", "0", 0, [4, 3], [1, 4]),
        "row": checkpoints.tensor("FloatStorage", "0", 4, [4], [1]),
        "flat": parameter,
        "nothing": checkpoints.tensor("FloatStorage", "0", 0, [0, 4], [4, 1]),
    }
    checkpoints.write(tmp_path / "pytorch_model.bin", checkpoints.program(entries), {"0": FOUR.tobytes()})
    weights = Weights(tmp_path)
    assert np.array_equal(weights.get("turned", 4, 3), FOUR.T)
    assert np.array_equal(weights.get("row", 4), FOUR[1])
    assert np.array_equal(weights.get("flat", 12), FOUR.ravel())
    assert weights.get("nothing", 0, 4).size == 0


def test_layers_beside_the_model_are_named_after_their_file(tmp_path: Path) -> None:
    """bge-m3's heads and the modules of sentence-transformers stand beside the model's own weights."""
    checkpoints.save(tmp_path / "pytorch_model.bin", {"weight": FOUR})
    checkpoints.save(tmp_path / "sparse_linear.pt", {"weight": FOUR[:1], "bias": FOUR[0, :1]})
    (tmp_path / "2_Dense").mkdir()
    checkpoints.save(tmp_path / "2_Dense" / "pytorch_model.bin", {"linear.weight": FOUR})
    assert sorted(Weights(tmp_path)) == ["2_Dense/linear.weight", "sparse_linear.bias", "sparse_linear.weight", "weight"]


class _Calls:
    """A thing whose pickle calls a function when it is loaded."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("function", [eval, subprocess.check_call, getattr, __import__])
def test_a_pickle_that_calls_something_is_refused_by_name_and_calls_nothing(
    tmp_path: Path, protocol: int, function: Callable[..., Any]
) -> None:
    """Whatever the pickle would call, nothing is called, and the error says what it was."""
    trap = tmp_path / "sprung"
    code = f"open({str(trap)!r}, 'w')" if function is eval else ["touch", str(trap)]
    pickled = pickle.dumps({"weight": _Calls(function, code)}, protocol)
    checkpoints.write(tmp_path / "pytorch_model.bin", pickled, {})
    with pytest.raises(ConfigError) as caught:
        Weights(tmp_path)
    assert not trap.exists()
    assert function.__name__ in str(caught.value) or "pickle instruction" in str(caught.value)
    assert "Nothing of it was run" in str(caught.value)


@pytest.mark.parametrize(
    ("pickled", "said"),
    [
        (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", "names 'os.system'"),
        (b"\x80\x02X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93.", "names 'os.system'"),
        (b"(ios\nsystem\n.", "the pickle instruction INST"),
        (b"\x80\x02\x82\x01.", "the pickle instruction EXT1"),
        (b"\x80\x02ctorch.nn.modules.linear\nLinear\n)\x81.", "names 'torch.nn.modules.linear.Linear'"),
        (b"\x80\x02ctorch\nFloatStorage\n)\x81.", "the pickle instruction NEWOBJ"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "calls 'F32'"),
        (b"\x80\x02]X\x01\x00\x00\x00aR.", "calls something that is no name"),
        (b"\x80\x02K\x01.", "holds no state dict"),
        (b"\x80\x02h\x05.", "is damaged"),
        (b"\x80\x02}K\x01", "is damaged"),
        (b"\x80\x02u.", "is damaged"),
        (b"\x80\x02})K\x01s.", "keys are no names"),
        (b"not a pickle", "is damaged"),
        (b"", "is damaged"),
    ],
)
def test_other_instructions_are_refused(pickled: bytes, said: str) -> None:
    """Each way around the names is refused."""
    with pytest.raises(state_pickle.RefusedError) as caught:
        state_pickle.tensors(pickled)
    assert said in str(caught.value)


@given(st.binary(max_size=200) | st.lists(st.sampled_from([*map(bytes, zip(range(256)))]), max_size=60).map(b"".join))
def test_no_bytes_raise_anything_else(pickled: bytes) -> None:
    """Whatever the bytes are, they are read or refused."""
    try:
        state_pickle.tensors(b"\x80\x02" + pickled)
    except state_pickle.RefusedError:
        return


def test_a_tensor_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    """Shapes, strides and offsets are checked against the numbers that are there."""
    for offset, shape, strides in ((0, [13], [1]), (1, [3, 4], [4, 1]), (0, [2], [12]), (0, [2**31 - 1], [0])):
        entry = checkpoints.tensor("FloatStorage", "0", offset, shape, strides)
        checkpoints.write(tmp_path / "pytorch_model.bin", checkpoints.program({"weight": entry}), {"0": FOUR.tobytes()})
        with pytest.raises(ConfigError, match="does not lie whole"):
            Weights(tmp_path)


def test_what_is_no_archive_of_weights_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """Files of before torch 1.6, other archives, compressed numbers and halves of files are refused with the reason."""
    file = tmp_path / "pytorch_model.bin"

    def refusal() -> str:
        with pytest.raises(ConfigError) as caught:
            Weights(tmp_path)
        return str(caught.value)

    file.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2))
    assert "of torch before 1.6" in refusal()
    assert "safe_serialization" in refusal()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("word/document.xml", "")
    assert "without the one data.pkl" in refusal()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02}.")
        archive.writestr("model/code/__torch__.py", "")
    assert "is a TorchScript program" in refusal()
    entry = checkpoints.tensor("FloatStorage", "0", 0, [3, 4], [4, 1])
    checkpoints.write(file, checkpoints.program({"weight": entry}), {"0": FOUR.tobytes()}, compression=zipfile.ZIP_DEFLATED)
    assert "compressed members" in refusal()
    checkpoints.write(file, checkpoints.program({"weight": entry}), {})
    assert "not a whole torch file" in refusal()
    whole = checkpoints.save(file, {"weight": FOUR}).read_bytes()
    for size in (10, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        assert "torch file" in refusal()
    file.write_bytes(whole.replace(b"little", b"big---"))
    assert "not a whole torch file" in refusal() or "big-endian" in refusal()


def test_a_local_header_that_points_outside_is_refused(tmp_path: Path) -> None:
    """The numbers' place is computed from the archive, and never leaves the file."""
    whole = checkpoints.save(tmp_path / "pytorch_model.bin", {"weight": FOUR}).read_bytes()
    place = whole.index(b"archive/data/0") - 2
    (tmp_path / "pytorch_model.bin").write_bytes(whole[:place] + struct.pack("<H", 65535) + whole[place + 2 :])
    with pytest.raises(ConfigError, match="not a whole torch file"):
        Weights(tmp_path)


def test_a_member_before_the_file_is_refused(tmp_path: Path) -> None:
    """An archive whose end states a directory farther on puts a member before the file: its numbers would be whatever memory holds."""
    file = tmp_path / "pytorch_model.bin"
    entry = checkpoints.tensor("FloatStorage", "0", 0, [64, 16], [1, 64])
    whole = checkpoints.write(file, checkpoints.program({"weight": entry}), {"0": bytes(4096)}).read_bytes()
    end = whole.rindex(b"PK\x05\x06")
    (directory,) = struct.unpack_from("<I", whole, end + 16)
    shift = len(whole) + whole.index(b"archive/data/0") - whole.index(b"archive/version")
    moved = bytearray(whole)
    struct.pack_into("<I", moved, end + 16, directory + shift)
    place = directory
    while place < end:  # all other members stay where they are
        (offset,) = struct.unpack_from("<I", whole, place + 42)
        lengths = struct.unpack_from("<HHH", whole, place + 28)
        if whole[place + 46 : place + 46 + lengths[0]] != b"archive/data/0":
            struct.pack_into("<I", moved, place + 42, offset + shift)
        place += 46 + sum(lengths)
    file.write_bytes(moved)
    with pytest.raises(ConfigError, match="not a whole torch file"):
        Weights(tmp_path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_compressed_pickle_is_refused_unread(tmp_path: Path, compression: int) -> None:
    """A small file cannot make a long pickle, nor one decoder's errors pass for ours."""
    file = checkpoints.write(tmp_path / "pytorch_model.bin", b"\x80\x02" + b"}" * 4_000_000 + b".", {}, compression=compression)
    assert file.stat().st_size < 10_000
    with pytest.raises(ConfigError, match="compressed members"):
        Weights(tmp_path)


def test_a_long_pickle_is_refused_unread(tmp_path: Path) -> None:
    """A pickle has an end: each of its bytes may ask for an object."""
    checkpoints.write(tmp_path / "pytorch_model.bin", b"\x80\x02" + b"}" * 2**22 + b".", {})
    with pytest.raises(ConfigError, match="at most 4194304 are read"):
        Weights(tmp_path)


@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from([0, 1, 0x7F, 0x80, 0xFF])), min_size=1, max_size=5))
def test_a_changed_archive_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, int]]) -> None:
    """Whatever bytes of an archive are changed, it is read or refused with the reason."""
    file = checkpoints.save(tmp_path_factory.getbasetemp() / "pytorch_model.bin", {"weight": FOUR})
    data = bytearray(file.read_bytes())
    for place, value in changes:
        data[int(place * len(data))] = value
    file.write_bytes(data)
    try:
        weights = Weights(file.parent)
        assert all(weights.get(name, *weights.shape(name)).size < len(data) for name in weights)
    except ConfigError as error:
        assert str(file.parent) in str(error)  # noqa: PT017 - being read is as good


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """A member whose name cannot be read is refused like any damaged file."""
    file = checkpoints.save(tmp_path / "pytorch_model.bin", {"weight": FOUR})
    whole = bytearray(file.read_bytes())
    place = whole.rindex(b"archive/version")
    whole[place] = 0x80
    whole[place - 46 + 9] |= 0x08  # the names are UTF-8
    file.write_bytes(whole)
    with pytest.raises(ConfigError, match="not a whole torch file"):
        Weights(tmp_path)
