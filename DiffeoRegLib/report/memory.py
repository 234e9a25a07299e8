"""The most memory this process has held, asked from the operating system."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


def peak_memory_mb() -> float | None:
    """Largest resident memory of this process so far, MB (2^20 bytes); None where the system does not say."""
    if sys.platform == "win32":
        return _windows_peak_mb()
    # Linux's rusage counts what the parent held when it started this process; the status file does not.
    if STATUS.is_file():
        for line in STATUS.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB elsewhere


def reset_peak_memory() -> bool:
    """Forget the peaks so far, so that the next are of what follows; False where the system cannot.

    Without it `peak_memory_mb` speaks of the whole life of the process.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        CLEAR.write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True


def peak_device_memory_mb(device: torch.device | None) -> float | None:
    """Most memory torch has held on a CUDA device, MB; None for other devices."""
    if device is None or device.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(device) / 2**20


class _Counters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of the Windows interface."""

    _fields_ = (
        ("size", ctypes.c_ulong),
        ("page_faults", ctypes.c_ulong),
        ("peak_working_set", ctypes.c_size_t),
        ("working_set", ctypes.c_size_t),
        ("peak_paged_pool", ctypes.c_size_t),
        ("paged_pool", ctypes.c_size_t),
        ("peak_nonpaged_pool", ctypes.c_size_t),
        ("nonpaged_pool", ctypes.c_size_t),
        ("pagefile", ctypes.c_size_t),
        ("peak_pagefile", ctypes.c_size_t),
    )


def _windows_peak_mb() -> float | None:
    counters = _Counters()
    counters.size = ctypes.sizeof(_Counters)
    windows = getattr(ctypes, "windll")  # noqa: B009 - the name exists on Windows only
    process = ctypes.c_void_p(windows.kernel32.GetCurrentProcess())
    if not windows.psapi.GetProcessMemoryInfo(process, ctypes.byref(counters), counters.size):
        return None
    return float(counters.peak_working_set) / 2**20
