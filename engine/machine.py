"""What this computer is and what of it a process may use: processor, memory, a container's limits.

The standard library only: it also answers on a machine on which nothing else runs.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from pathlib import Path

__all__ = [
    "ISA_VARIABLES",
    "LEVELS",
    "LIMITS",
    "cpu_levels",
    "cpu_quota",
    "found_levels",
    "in_container",
    "memory_bytes",
]

ISA_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "OV_CPU_MAX_ISA")
"""Limit the instruction sets of the runtime; only both together do so rightly."""

# Lowest first: name, flags in /proc/cpuinfo, number for Windows' IsProcessorFeaturePresent.
LEVELS: tuple[tuple[str, frozenset[str], int | None], ...] = (
    ("SSE4.1", frozenset({"sse4_1"}), 37),
    ("SSE4.2", frozenset({"sse4_2"}), 38),
    ("AVX", frozenset({"avx"}), 39),
    ("AVX2", frozenset({"avx2", "fma"}), 40),
    ("AVX2-VNNI", frozenset({"avx_vnni"}), None),
    ("AVX-512", frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"}), 41),
    ("AVX-512 VNNI", frozenset({"avx512_vnni"}), None),
    ("AMX", frozenset({"amx_tile", "amx_int8"}), None),
)

LIMITS = {
    "SSE41": "SSE4.1",
    "AVX": "AVX",
    "AVX2": "AVX2",
    "AVX2_VNNI": "AVX2-VNNI",
    "AVX512_CORE": "AVX-512",
    "AVX512_CORE_VNNI": "AVX-512 VNNI",
}
"""Values of `ISA_VARIABLES` and the levels they stand for."""


def cpu_levels(flags: frozenset[str]) -> tuple[str, ...]:
    """Name the instruction sets of a CPU.

    Parameters
    ----------
    flags : frozenset of str
        As Linux lists them in ``/proc/cpuinfo``.

    Returns
    -------
    tuple of str
        Names of `LEVELS`, lowest first.
    """
    return tuple(name for name, needed, _ in LEVELS if needed <= flags)


def found_levels() -> tuple[tuple[str, ...] | None, str]:
    """Find the instruction sets and the model of this computer's processor.

    Returns
    -------
    levels : tuple of str or None
        Names of `LEVELS`, lowest first; None where they cannot be known.
    model : str
        As the processor calls itself; may be empty.
    """
    text = ""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    entries: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        entries[key.strip()] = value.strip()
    model = " ".join(entries.get("model name", platform.processor() or "").split())
    if "flags" in entries:
        return cpu_levels(frozenset(entries["flags"].split())), model
    if sys.platform == "win32":
        import ctypes

        present = ctypes.windll.kernel32.IsProcessorFeaturePresent
        return tuple(
            name for name, _, number in LEVELS if number is not None and present(number)
        ), model
    return None, model


def in_container() -> bool:
    """Whether this process runs in a container.

    Returns
    -------
    bool
        True where one of the usual marks is found.
    """
    marks = ("/.dockerenv", "/run/.containerenv")
    if "container" in os.environ or any(Path(mark).exists() for mark in marks):
        return True
    with contextlib.suppress(OSError):
        text = Path("/proc/1/cgroup").read_text(encoding="ascii", errors="replace")
        return any(word in text for word in ("docker", "kubepods", "lxc", "containerd"))
    return False


def _cgroup(v2: str, v1: str) -> list[str]:
    """Read a limit of this process's control groups, nearest first."""
    values = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            if not line.startswith("0::"):
                continue
            folder = Path("/sys/fs/cgroup") / line[3:].strip("/")
            while folder.is_relative_to("/sys/fs/cgroup"):
                with contextlib.suppress(OSError):
                    values.append((folder / v2).read_text(encoding="ascii").strip())
                folder = folder.parent
    with contextlib.suppress(OSError):
        values.append((Path("/sys/fs/cgroup") / v1).read_text(encoding="ascii").strip())
    return values


def cpu_quota() -> float | None:
    """Return the CPU time that a container may use.

    Returns
    -------
    float or None
        In CPUs; None without a limit.
    """
    quotas = []
    for value in _cgroup("cpu.max", "cpu/cpu.cfs_quota_us"):
        quota, _, period = value.partition(" ")
        if quota.isdigit():
            quotas.append(int(quota) / int(period or 100_000))
    return min(quotas, default=None)


def memory_bytes() -> tuple[int | None, int | None]:
    """Return total and available memory, the container's if it has less.

    Returns
    -------
    total, available : int or None
        Bytes; None where the system does not tell.
    """
    total = free = None
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            key, _, value = line.partition(":")
            if key == "MemTotal":
                total = int(value.split()[0]) * 1024
            elif key == "MemAvailable":
                free = int(value.split()[0]) * 1024
    if sys.platform == "win32":
        import ctypes

        class Status(ctypes.Structure):
            _fields_ = (
                ("length", ctypes.c_ulong),
                ("load", ctypes.c_ulong),
                *((name, ctypes.c_ulonglong) for name in ("total", "free", *"abcde")),
            )

        status = Status(length=ctypes.sizeof(Status))
        if ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
            total, free = int(status.total), int(status.free)
    limits = [
        int(value)
        for value in _cgroup("memory.max", "memory/memory.limit_in_bytes")
        if value.isdigit()
    ]
    limit = min(limits, default=None)
    if limit is not None and (total is None or limit < total):
        total = limit
        used = [int(value) for value in _cgroup("memory.current", "memory/memory.usage_in_bytes")]
        left = limit - used[0] if used else limit
        free = left if free is None else min(free, left)
    return total, free
