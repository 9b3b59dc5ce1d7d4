"""Files of torch.save, read by our interpreter and by torch."""

# ruff: noqa: PLC0415 - torch is imported by the tests that need it, so that collecting needs it not

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from quadrate.errors import ConfigError
from quadrate.runtime.weights import Weights

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_file_of_torch_save_holds_what_torch_reads(tmp_path: Path, dtype: str, protocol: int) -> None:
    """A state dict with parameters, views and tied tensors is read as torch reads it, whatever the pickle's protocol."""
    import torch

    torch.manual_seed(1)
    module = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.LayerNorm(7)).to(getattr(torch, dtype))
    state = {**module.state_dict(), "parameter": module[0].weight, "turned": module[0].weight.T, "tied": module[0].bias, "steps": 3}
    torch.save(state, tmp_path / "pytorch_model.bin", pickle_protocol=protocol)
    weights = Weights(tmp_path)
    assert set(weights) == set(state) - {"steps"}
    for name in weights:
        expected = state[name].detach().float().numpy()
        assert np.array_equal(weights.get(name, *expected.shape), expected)


def test_a_saved_state_dict_of_a_module_is_read(tmp_path: Path) -> None:
    """The layers beside bge-m3 are state dicts of a linear layer."""
    import torch

    layer = torch.nn.Linear(16, 1)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    torch.save(layer.state_dict(), tmp_path / "sparse_linear.pt")
    weights = Weights(tmp_path)
    assert np.array_equal(weights.get("sparse_linear.weight", 1, 16), layer.weight.detach().numpy())


def test_whole_modules_and_old_files_are_refused(tmp_path: Path) -> None:
    """A pickled module needs its own code, and a file of before torch 1.6 is no archive: both are refused with the reason."""
    import torch

    file = tmp_path / "pytorch_model.bin"
    torch.save(torch.nn.Linear(2, 2), file)
    with pytest.raises(ConfigError, match=r"names 'torch\.nn\.modules\.linear\.Linear'"):
        Weights(tmp_path)
    torch.save({"weight": torch.zeros(2)}, file, _use_new_zipfile_serialization=False)
    with pytest.raises(ConfigError, match=r"before 1\.6"):
        Weights(tmp_path)
