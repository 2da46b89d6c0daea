"""What a run was made on: processor, memory, system, versions, load; no host, user or path.

The standard library and `engine.machine` only.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from bench.stages import REPOSITORY, version_of

# Peers of stages that live in no extra of the project.
PEERS = (
    "ai-edge-litert", "ncnn", "onnx", "onnxruntime", "tensorflow", "tensorflow-cpu",
    "tflite-runtime", "torch", "torchvision",
)  # fmt: skip
# What the runtime of a peer or of ours looks at; their values change what is measured.
VARIABLES = (
    "ONEDNN_MAX_CPU_ISA", "OV_CPU_MAX_ISA", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS", "ATEN_CPU_CAPABILITY", "NUMBA_DISABLE_JIT", "NUMBA_CPU_NAME",
    "NUMBA_NUM_THREADS", "MALLOC_ARENA_MAX", "LD_PRELOAD",
)  # fmt: skip


def _system() -> str:
    # Only the number: what a builder adds to a kernel's name may be a name of a site.
    found = re.match(r"[\d.]+\d", platform.release())
    kernel = f"{platform.system()} {found[0] if found else ''}".strip()
    with contextlib.suppress(OSError, AttributeError):
        name = platform.freedesktop_os_release().get("PRETTY_NAME")
        if name:
            return f"{name}, {kernel}"
    return kernel


def _cores() -> str:
    from engine.machine import cpu_quota

    n = os.cpu_count() or 0
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else n
    quota = cpu_quota()
    said = f"{usable} of {n} usable" if usable != n else f"{n}"
    text = ""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    cores = set(re.findall(r"physical id\s*: (\d+).*?core id\s*: (\d+)", text, re.DOTALL))
    if len(cores) > 1 or "core id" in text:
        said += f" (logical; {len(cores)} physical)"
    return said + (f", limited to the time of {quota:g}" if quota is not None else "")


def _governor() -> str:
    with contextlib.suppress(OSError):
        path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
        return path.read_text(encoding="ascii").strip()
    return ""


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        if git("rev-parse", "--show-prefix"):
            return ""  # a repository around ours
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench")
        return git("rev-parse", "--short=12", "HEAD") + (", with changes" if changed else "")
    return ""


def packages() -> dict[str, str]:
    """Return the versions of what is installed of the project's packages and of the peers."""
    wanted = set(PEERS)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        wanted |= set(importlib.metadata.requires("hilum") or ())
    with contextlib.suppress(OSError):
        import tomllib

        project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
        table = project["project"]
        wanted |= set(table["dependencies"])
        wanted |= {line for lines in table["optional-dependencies"].values() for line in lines}
    names = {re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in wanted}
    found = {name: version_of(name) for name in sorted(names, key=str.lower)}
    return {name: version for name, version in found.items() if version is not None}


def machine_facts() -> dict[str, str]:
    """Return what is worth knowing of this machine.

    Returns
    -------
    dict of str to str
        Heading and value, in the order in which they are shown; what is not known is left out.
    """
    from engine.machine import found_levels, in_container, memory_bytes

    levels, model = found_levels()
    total, _ = memory_bytes()
    limits = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    facts = {
        "Processor": model,
        "Instruction sets": ", ".join(levels) if levels else "",
        "Processors": _cores(),
        "Clock governor": _governor(),
        "Memory": f"{total / 2**30:.1f} GiB" if total else "",
        "System": _system(),
        "In a container": "yes" if in_container() else "no",
        "C library": " ".join(platform.libc_ver()).strip(),
        "Python": f"{platform.python_implementation()} {platform.python_version()}, "
        f"{'64' if sys.maxsize > 2**32 else '32'} bits",
        "Variables": ", ".join(limits),
        "Commit": _commit(),
        "Packages": ", ".join(f"{name} {version}" for name, version in packages().items()),
    }
    return {name: value for name, value in facts.items() if value}


def load() -> str:
    """Return how busy the machine was in the last minute, in processes at work."""
    with contextlib.suppress(OSError, AttributeError):
        return f"{os.getloadavg()[0]:.1f}"
    return "not known"


def now() -> str:
    """Return the time, UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
