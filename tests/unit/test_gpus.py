"""What NVML says of GPUs, over a described machine: there is no GPU where these tests run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from quadrate.cli import hardware
from quadrate.runtime import gpus
from quadrate.testing.nvml import FakeGpu, FakeNvml

if TYPE_CHECKING:
    import pytest

SLICE = FakeGpu("MIG-5a1c", name="NVIDIA H200 MIG 3g.71gb", memory_bytes=71 * 2**30)


def test_a_machine_without_a_driver_has_no_gpu_and_says_why() -> None:
    """No driver is an answer, not an error."""
    fake = FakeNvml(driver=None)
    found = gpus.find(fake)
    assert (found.gpus, fake.opened) == ((), 0)
    assert "no NVIDIA driver answers (Driver Not Loaded)" in found.reason


def test_gpus_are_told_with_memory_and_pcie() -> None:
    """A GPU is told with its memory and its way to the host; what runs below what it could says so."""
    fake = FakeNvml([FakeGpu("GPU-1"), FakeGpu("GPU-2", bus="0:2b:0.0", pcie=(1, 16, 5, 16), ways={"GPU-1": 50})])
    fake_one = fake._gpus[0]
    fake_one.ways = {"GPU-2": 50}
    found = gpus.find(fake)
    assert [(gpu.index, gpu.uuid, gpu.memory_bytes) for gpu in found.gpus] == [(0, "GPU-1", 140 * 2**30), (1, "GPU-2", 140 * 2**30)]
    assert found.gpus[0].pcie == "PCIe 5 x16"
    assert found.gpus[1].pcie.startswith("PCIe 1 x16 (of 5 x16")
    assert (found.driver, fake.opened) == ("580.95.05", 0)


def test_slices_are_told_by_the_names_that_settings_take() -> None:
    """MIG slices are told by their UUIDs, which are what EMBED_DEVICE takes."""
    (gpu,) = gpus.find(FakeNvml([FakeGpu("GPU-1", mig=[SLICE])])).gpus
    assert gpu.is_mig
    assert [(part.uuid, part.memory_bytes) for part in gpu.mig] == [("MIG-5a1c", 71 * 2**30)]


def test_nvlinks_are_counted_directly_and_through_switches() -> None:
    """NVLinks to another GPU are counted, also where a switch stands between; without them the PCIe way is told."""
    buses = ["0:18:0.0", "0:2b:0.0", "0:3a:0.0"]
    direct = [
        FakeGpu("GPU-0", bus=buses[0], nvlinks=[buses[1]] * 4, ways={"GPU-2": 30}),
        FakeGpu("GPU-1", bus=buses[1], nvlinks=[buses[0]] * 4, ways={"GPU-2": 20}),
        FakeGpu("GPU-2", bus=buses[2], ways={"GPU-0": 30, "GPU-1": 20}),
    ]
    assert [dict(gpu.links) for gpu in gpus.find(FakeNvml(direct)).gpus] == [
        {1: "NV4", 2: "PHB"},
        {0: "NV4", 2: "PXB"},
        {0: "PHB", 1: "PXB"},
    ]
    switched = [FakeGpu(f"GPU-{place}", bus=bus, nvlinks=["switch"] * 18) for place, bus in enumerate(buses)]
    assert dict(gpus.find(FakeNvml(switched)).gpus[0].links) == {1: "NV18", 2: "NV18"}


def test_what_a_driver_does_not_tell_is_left_out() -> None:
    """A card whose driver knows nothing of PCIe and MIG is told without them."""
    (gpu,) = gpus.find(FakeNvml([FakeGpu("GPU-1", pcie=None)])).gpus
    assert (gpu.pcie, gpu.is_mig, gpu.mig) == ("", False, ())


def test_check_shows_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """`quadrate check` shows processor, memory, engines and GPUs, as text and as JSON."""
    assert hardware.run(as_json=False) == 0
    text = capsys.readouterr().out
    assert "cores usable here" in text
    assert "onnxruntime" in text
    assert hardware.run(as_json=True) == 0
    assert set(json.loads(capsys.readouterr().out)) >= {"processor", "memory_bytes", "engines", "gpus", "ways"}


def test_check_shows_gpus_slices_and_ways() -> None:
    """The report draws the matrix of ways and explains its words."""
    cards = [FakeGpu("GPU-0", nvlinks=["switch"] * 18), FakeGpu("GPU-1", bus="0:2b:0.0", nvlinks=["switch"] * 18, mig=[SLICE])]
    report = hardware.look(gpus.find(FakeNvml(cards)))
    lines = hardware._lines(report)
    assert any("gpu:MIG-5a1c" in line for line in lines)
    assert report["ways"] == [["X", "NV18"], ["NV18", "X"]]
    assert lines[-1].strip() == "NV#: so many NVLinks"
