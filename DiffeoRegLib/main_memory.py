"""How much main memory this computer has left, within the limit of a container. No torch."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

CGROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def main_memory_bytes() -> int | None:
    """Bytes that can still be had, of the machine or of its container; None when the system does not say."""
    known = [amount for amount in (system_bytes(), cgroup_bytes()) if amount is not None]
    return min(known) if known else None


def system_bytes() -> int | None:
    """What the operating system says is free."""
    if sys.platform == "win32":
        return _windows_bytes()
    listing = Path("/proc/meminfo")
    if listing.is_file():
        return meminfo_bytes(listing.read_text(encoding="utf-8"))
    if sys.platform == "darwin":  # free memory is not one number there: three quarters of all memory
        return int(os.sysconf("SC_PAGE_SIZE")) * int(os.sysconf("SC_PHYS_PAGES")) * 3 // 4
    return None


def meminfo_bytes(text: str) -> int | None:
    """MemAvailable of a /proc/meminfo listing, in bytes."""
    for line in text.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def cgroup_bytes(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a container limit (cgroup v2 or v1) leaves free, or None without a limit."""
    for limit_file, used_file in CGROUP_FILES:
        limit_path, used_path = root / limit_file, root / used_file
        if not (limit_path.is_file() and used_path.is_file()):
            continue
        limit = limit_path.read_text(encoding="utf-8").strip()
        if limit != "max" and int(limit) < 2**60:  # v1 writes a huge number for "no limit"
            return max(
                int(limit) - int(used_path.read_text(encoding="utf-8")) + _reclaimable(limit_path.parent), 0
            )
    return None


def _reclaimable(folder: Path) -> int:
    """File cache the kernel gives back on demand, counted as used by the container, bytes."""
    statistics = folder / "memory.stat"
    if statistics.is_file():
        for line in statistics.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                return int(value)
    return 0


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of the Windows interface."""

    _fields_ = (
        ("length", ctypes.c_ulong),
        ("load", ctypes.c_ulong),
        ("total", ctypes.c_ulonglong),
        ("available", ctypes.c_ulonglong),
        ("total_page", ctypes.c_ulonglong),
        ("available_page", ctypes.c_ulonglong),
        ("total_virtual", ctypes.c_ulonglong),
        ("available_virtual", ctypes.c_ulonglong),
        ("available_extended", ctypes.c_ulonglong),
    )


def _windows_bytes() -> int | None:
    status = _MemoryStatus()
    status.length = ctypes.sizeof(_MemoryStatus)
    kernel: object = getattr(ctypes, "windll").kernel32  # noqa: B009 - the name exists on Windows only
    if not kernel.GlobalMemoryStatusEx(ctypes.byref(status)):  # type: ignore[attr-defined]
        return None
    return int(status.available)
