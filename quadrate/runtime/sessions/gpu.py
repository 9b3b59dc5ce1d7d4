"""Which GPU: how many there are, and which one a worker's device names."""

from __future__ import annotations

import contextlib
import ctypes
import os
from dataclasses import dataclass

from quadrate.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU or a MIG slice of one.

    Attributes:
        ordinal: Its number among those that CUDA shows to this process.
        memory_bytes: The most that a session's arena may take; 0 for no limit.
    """

    ordinal: int = 0
    memory_bytes: int = 0


def count() -> int:
    """Return how many GPUs or MIG slices CUDA shows to this process; 0 without a driver."""
    found = ctypes.c_int(0)
    with contextlib.suppress(OSError):
        driver = ctypes.CDLL("libcuda.so.1")
        if driver.cuInit(0) == 0:
            driver.cuDeviceGetCount(ctypes.byref(found))
    return found.value


def ordinal(device: str) -> int:
    """Return the number of the GPU that a device names: `gpu`, `gpu:1`, `gpu:GPU-…` or `gpu:MIG-…`.

    A UUID is put into CUDA_VISIBLE_DEVICES, which is how CUDA takes one, and the only way to a MIG slice: this process then sees that one
    alone. It has to happen before CUDA is first used. Raises ConfigError if there is no such GPU.
    """
    name = device.partition(":")[2]
    if name.startswith(("GPU-", "MIG-")):
        os.environ["CUDA_VISIBLE_DEVICES"] = name
        name = "0"
    number, there = int(name or 0), count()
    if number >= there:
        raise ConfigError(
            f"device {device} is asked for, and CUDA shows {there} to this process. Look at nvidia-smi -L, the driver and "
            "CUDA_VISIBLE_DEVICES, or set the device to cpu."
        )
    return number
