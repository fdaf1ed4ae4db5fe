"""Seconds and memory of a call."""

import ctypes
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

T = TypeVar("T")

PROC = Path("/proc/self")
MIB = 2**20


class Cost(NamedTuple):
    """What a call took; memory is None where it cannot be known."""

    seconds: float
    mib: float | None
    """Peak beyond what was held before the call."""
    peak_mib: float | None
    """Peak of all that was held."""


def cost_of(call: Callable[[], T], device: str = "cpu") -> tuple[T, Cost]:
    """Call, and measure.

    Memory is the process's resident one on the CPU, which Linux alone tells; PyTorch's allocations on CUDA.
    """
    before = _reset_peak(device)
    start = time.perf_counter()
    result = call()
    if device != "cpu":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    if before is None:
        return result, Cost(seconds, None, None)
    peak = _peak(device)
    return result, Cost(seconds, (peak - before) / MIB, peak / MIB)


def _reset_peak(device: str) -> int | None:
    """Forget the peak -> bytes held now; None if this system does not tell."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if not PROC.exists():
        return None
    with suppress(AttributeError):  # glibc's alone: a call is not to be served from what others have freed
        ctypes.CDLL(None).malloc_trim(0)
    try:
        (PROC / "clear_refs").write_text("5")  # resets VmHWM: man 5 proc
        return _status("VmRSS")
    except OSError:
        return None


def _peak(device: str) -> int:
    return _status("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated()


def _status(field: str) -> int:
    """A line of /proc/self/status, which is in KiB, in bytes."""
    lines = (PROC / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
