"""Command ``python -m engine.doctor``: prepare this machine, and say plainly what it lacks.

Only the standard library is imported here; what runs compiled code does so in a process of its own
(`engine.doctor_steps`).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine import __version__
from engine.cli import (
    EXIT_DONE,
    EXIT_MACHINE,
    EXIT_SOME_FAILED,
    check_files,
    check_stop,
    command_line,
    run,
    step_bar,
)
from engine.errors import OVERRIDABLE
from engine.machine import (
    ISA_VARIABLES,
    LEVELS,
    LIMITS,
    cpu_quota,
    found_levels,
    in_container,
    memory_bytes,
)
from engine.scrubbing import scrub, scrub_all
from formats.console import printable

OK, WARN, MISSING, FAIL = "OK", "WARN", "MISSING", "FAIL"

DEMONSTRATION_HEAD = Path(__file__).parent / "demonstration" / "pneumonia.safetensors"

DESCRIPTION = """\
Prepare this machine for predictions and say what it lacks: packages, instruction set, cores,
memory, caches. Compiles the networks of the heads and the kernels into the cache of the user who
runs it, compares what the networks compute with known answers, and predicts a synthetic X-ray with
each head in a process of its own. Takes seconds, a minute or two the first time. Works offline."""

EPILOG = """\
examples:
  python -m engine.doctor
      with the embedded demonstration head
  sudo -u orthanc python -m engine.doctor --head chest.safetensors
      for the account and the head of a PACS hook: caches belong to the user who runs this
  python -m engine.doctor --json doctor.json
      everything it found, to send to somebody who helps

OK: as it should be. WARN: predictions work, something is slower or less safe than need be.
MISSING: an extra that is not installed; needed for what its line says. FAIL: does not work.
Exit code 0 if predictions work, 3 if this machine cannot predict, 1 if it can, but a given head
cannot be used. The output holds no names of users or computers, and no paths but below ~."""

COLUMNS, ROWS = 80, 40
_NAME_COLUMNS = 15
_TEXT_AT = 8 + _NAME_COLUMNS
# Networks compile in a second; emulated or very old CPUs take minutes.
_MOST_SECONDS = 900
_WINDOWS_ILLEGAL_INSTRUCTION = 0xC000001D
_INSTALLATION_FAULTS = (
    "ImportError",
    "ModuleNotFoundError",
    "RuntimeError",
    "MemoryError",
    "BackboneError",
)
_LEAST_FREE_BYTES = 400 * 2**20
"""A prediction takes up to 150 MiB and so does a second one that waits; the rest is the PACS's."""

# Distribution: (module, least version). Held against pyproject.toml by a test.
CORE = {
    "cffi": ("_cffi_backend", "1.17"),
    "numba": ("numba", "0.61"),
    "numpy": ("numpy", "2.0"),
    "openvino": ("openvino", "2025.4"),
    "pillow": ("PIL", "11"),
    "pydicom": ("pydicom", "3.0"),
    "safetensors": ("safetensors", "0.5"),
    "tqdm": ("tqdm", "4.66"),
}
EXTRAS = {
    "dicom": (
        "DICOM files compressed as JPEG, JPEG-LS or JPEG 2000",
        {"pyjpegls": ("jpeg_ls", "1.4"), "python-gdcm": ("gdcm", "3.0.24")},
    ),
    "pacs": (
        "results as DICOM (--sr, --sc) and sending them (--store)",
        {"highdicom": ("highdicom", "0.25"), "pynetdicom": ("pynetdicom", "3.0")},
    ),
    "sign": ("signed containers", {"cryptography": ("cryptography", "43")}),
    "convert": ("containers from and to Parquet", {"pyarrow": ("pyarrow", "15")}),
}

# The runtime's release notes: 2026.0 dropped CPUs without AVX2, 2025.4.1 is the last before it.
_NEEDS_AVX2_FROM = (2026,)
_LAST_FOR_OLD_CPUS = "openvino==2025.4.1"


@dataclass(frozen=True)
class Check:
    """One line of the summary.

    Attributes
    ----------
    name : str
        What was looked at.
    status : str
        ``"OK"``, ``"WARN"``, ``"MISSING"`` or ``"FAIL"``.
    found : str
        What was found.
    cure : str
        What to do; empty if nothing.
    facts : dict
        All of it, for ``--json``.
    stops : bool
        Whether a FAIL means that this machine cannot predict.
    """

    name: str
    status: str
    found: str
    cure: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    stops: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return the check as an object of the JSON file."""
        return {
            "name": self.name,
            "status": self.status,
            "found": self.found,
            "cure": self.cure,
            "facts": self.facts,
        }


def parser() -> argparse.ArgumentParser:
    """Build the command line."""
    result = command_line("doctor", DESCRIPTION, EPILOG)
    add = result.add_argument
    add(
        "--head",
        action="append",
        metavar="HEAD.safetensors",
        help="a head that will be used on this machine; may be given several times (default: the "
        "embedded demonstration head)",
    )
    add("--json", metavar="FILE", help="also write everything that was found")
    add("--prepare-only", action="store_true", help="caches and known answers, no prediction")
    add("--quiet", action="store_true", help="print only what is not OK, and no progress bar")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name.

    Returns
    -------
    int
        Exit code.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    options = parser()
    arguments = options.parse_args(given)
    check_files(options, arguments.head or (), (), arguments.json)
    return run(lambda: _examine(arguments))


def _examine(arguments: argparse.Namespace) -> int:
    heads = [os.path.abspath(head) for head in arguments.head or ()]  # noqa: PTH100 - no links
    checks: list[Check] = []
    with _progress(quiet=arguments.quiet) as progress:
        checks += _machine_checks(progress)
        checks += _cache_checks(progress)
        found, usable = _head_checks(heads or [str(DEMONSTRATION_HEAD)], progress)
        checks += _network_checks(usable, progress)
        checks += _kernel_checks(progress)
        checks += found
        if not arguments.prepare_only and not _cannot_predict(checks):
            checks += _prediction_checks(usable, progress)
    code = exit_code_of(checks)
    if arguments.json is not None:
        _write_json(arguments.json, checks, code)
    print(summary(checks, quiet=arguments.quiet), flush=True)
    return code


def _cannot_predict(checks: Sequence[Check]) -> bool:
    return any(check.status == FAIL and check.stops for check in checks)


def exit_code_of(checks: Sequence[Check]) -> int:
    """Exit code for what was found.

    Parameters
    ----------
    checks : sequence of Check
        All of them.

    Returns
    -------
    int
        0, 1 or 3; warnings and missing extras count for nothing.
    """
    if _cannot_predict(checks):
        return EXIT_MACHINE
    return EXIT_SOME_FAILED if any(check.status == FAIL for check in checks) else EXIT_DONE


def _write_json(path: str, checks: Sequence[Check], code: int) -> None:
    import formats

    found = {
        "hilum": __version__,
        "can_predict": code != EXIT_MACHINE,
        "exit_code": code,
        "checks": [check.to_json() for check in checks],
    }
    formats.atomic_write(path, (json.dumps(found, indent=1) + "\n").encode())


# --- the summary --------------------------------------------------------------------------------


def summary(checks: Sequence[Check], *, quiet: bool = False) -> str:
    """Lay the checks out for a terminal of 80 columns and 40 rows.

    Parameters
    ----------
    checks : sequence of Check
        In the order of their lines.
    quiet : bool
        Leave out those that are OK.

    Returns
    -------
    str
        Several lines. Where all do not fit, lines of heads that are OK are left out and counted.
    """
    code = exit_code_of(checks)
    end = {
        EXIT_DONE: "This machine can predict.",
        EXIT_SOME_FAILED: "It can predict, but not with every head.",
        EXIT_MACHINE: "This machine cannot predict: see FAIL.",
    }[code]
    n_open = sum(check.status not in (OK, FAIL) for check in checks)
    if n_open:
        end += f" {n_open} line{'s' * (n_open > 1)} could be better."
    rows = [(check, _lines(check)) for check in checks if not quiet or check.status != OK]
    head = [] if quiet else [f"Hilum {__version__} on this machine"]
    n_left_out = 0
    # Room for the heading, the sentence at the end and one that counts what was left out.
    while sum(len(lines) for _, lines in rows) > ROWS - 4:
        repeated = [
            k
            for k, (check, _) in enumerate(rows)
            if check.status == OK and check.name in ("Head", "Prediction", "Network")
        ]
        if not repeated:
            break
        del rows[repeated[-1]]
        n_left_out += 1
    text = head + [line for _, lines in rows for line in lines]
    if n_left_out:
        text.append(f"{OK:8}and {n_left_out} more of the same, see --json")
    text = text[: ROWS - 3]
    return "\n".join([*text, *([] if quiet else [""]), end])


def _lines(check: Check) -> list[str]:
    width = COLUMNS - _TEXT_AT
    first = f"{check.status:8}{check.name:{_NAME_COLUMNS}}"
    lines = _wrap(printable(check.found), width, 3)
    lines += _wrap(printable(check.cure), width - 3, 6, "-> ")
    return [f"{first if k == 0 else '':{_TEXT_AT}}{line}".rstrip() for k, line in enumerate(lines)]


def _wrap(text: str, width: int, most: int, start: str = "") -> list[str]:
    if not text:
        return []
    # A number and its unit stay on one line.
    kept = re.sub(r"(?<=\d) (?=(?:m?s|[MG]iB|%)(?!\w))", "\N{NO-BREAK SPACE}", text)
    lines = textwrap.wrap(
        kept, width, max_lines=most, placeholder=" ...", break_on_hyphens=False
    ) or [""]
    lines = [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]
    return [(start if k == 0 else " " * len(start)) + line for k, line in enumerate(lines)]


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show what is being done; where tqdm is missing, nothing is shown."""
    with contextlib.ExitStack() as stack:
        bar: Callable[[int, int, str], None] | None = None
        with contextlib.suppress(ImportError):
            bar = stack.enter_context(step_bar("Looking", quiet=quiet))
        n_done = 0

        def step(text: str) -> None:
            nonlocal n_done
            check_stop()
            n_done += 1
            if bar is not None:
                # How many steps there are is not known before: half of what is left, each time.
                bar(n_done, n_done + 6, text)

        yield step


# --- processes of their own ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Outcome:
    """How a process ended: what it said, or why it said nothing."""

    lines: tuple[dict[str, Any], ...]
    failure: str | None
    code: int
    seconds: float
    peak_bytes: int | None
    last_words: str = ""

    @property
    def result(self) -> dict[str, Any] | None:
        """The answer of a step; None where it died before it."""
        return next((line["result"] for line in self.lines if "result" in line), None)

    @property
    def error(self) -> str | None:
        """What went wrong, in words."""
        if self.failure is not None:
            return self.failure
        answer = self.result
        if answer is None:
            return self.last_words or "it gave no answer"
        error = answer.get("error")
        return None if error is None else str(error["text"])


def _start(
    arguments: Sequence[str],
    listen: Callable[[dict[str, Any]], None] | None = None,
    environment: Mapping[str, str] | None = None,
) -> _Outcome:
    """Run a Python process and read JSON objects, a line each, from it."""
    variables = {**os.environ, **(environment or {})}
    # The same Hilum as this one, from wherever it was started. Installed, it is found anyhow, and
    # site-packages must not come before the standard library.
    here = str(Path(__file__).parents[1])
    if here not in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, (here, variables.get("PYTHONPATH"))))
    start = time.perf_counter()
    process = subprocess.Popen(  # noqa: S603 - this Python and our own modules
        [sys.executable, "-P", "-m", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=variables,
        encoding="utf-8",
        errors="replace",
    )
    late = threading.Event()

    def give_up() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(_MOST_SECONDS, give_up)
    timer.daemon = True
    timer.start()
    lines, noise = [], ""
    try:
        assert process.stdout is not None
        for text in process.stdout:
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            if isinstance(line, dict):
                lines.append(line)
                if listen is not None:
                    listen(line)
            else:
                noise = text.strip() or noise
        peak = _wait(process)
    finally:
        timer.cancel()
        if process.returncode is None:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
    failure = None
    if late.is_set():
        failure = f"no answer within {_MOST_SECONDS} s"
    elif process.returncode < 0:
        failure = _death(-process.returncode)
    elif process.returncode == _WINDOWS_ILLEGAL_INSTRUCTION:
        failure = _death(signal.SIGILL)
    elif process.returncode and not lines:
        failure = noise or f"it ended with code {process.returncode}"
    seconds = time.perf_counter() - start
    return _Outcome(tuple(lines), failure, process.returncode, seconds, peak, noise)


def _wait(process: subprocess.Popen[str]) -> int | None:
    """Wait for a process; return its peak memory in bytes where the system tells."""
    if not hasattr(os, "wait4"):  # Windows
        process.wait()
        return None
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return int(usage.ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def _death(number: int) -> str:
    if number == signal.SIGILL:
        return "killed by an instruction that this CPU does not have (SIGILL)"
    if number == getattr(signal, "SIGKILL", None):
        return "killed from outside (SIGKILL), most often because memory ran out"
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = str(number)
    return f"killed by signal {name}"


def _step(
    name: str, *arguments: str, listen: Callable[[dict[str, Any]], None] | None = None
) -> _Outcome:
    return _start(["engine.doctor_steps", name, *arguments], listen)


# --- machine ------------------------------------------------------------------------------------


def _machine_checks(progress: Callable[[str], None]) -> list[Check]:
    progress("Looking at the packages")
    packages = _look_at_packages()
    checks = [_python_check(), _core_check(packages)]
    checks += [_extra_check(name, packages) for name in EXTRAS]
    runtime = packages["openvino"]["version"] or ""
    return [*checks, _processor_check(runtime), _cores_check(), _memory_check()]


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _look_at_packages() -> dict[str, dict[str, Any]]:
    """Import every package in a process of its own, again behind one that kills it."""
    wanted = dict(CORE)
    for _, packages in EXTRAS.values():
        wanted |= packages
    found: dict[str, dict[str, Any]] = {}
    pending = list(wanted)
    while pending:
        outcome = _step("imports", *(f"{name}={wanted[name][0]}" for name in pending))
        for line in outcome.lines:
            if "package" in line:
                error = line["error"]
                found[line["package"]] = {"error": error and scrub(error)[:200]}
        left = [name for name in pending if name not in found]
        if left:
            # The one that it died of is the first without a line.
            found[left[0]] = {"error": scrub(outcome.error or "the import ended the process")}
            left = left[1:]
        pending = left
    for name, facts in found.items():
        version = _version(name)
        least = wanted[name][1]
        facts |= {"version": version, "least": least}
        if facts["error"] is None and version and _numbers(version) < _numbers(least):
            facts["error"] = f"is {version}, {least} or later is needed"
    return found


def _pip(packages: Mapping[str, tuple[str, str]]) -> str:
    quote = '"' if sys.platform == "win32" else "'"
    names = " ".join(f"{quote}{name}>={least}{quote}" for name, (_, least) in packages.items())
    return f"python -m pip install {names}"


def _python_check() -> Check:
    libc = " ".join(part for part in platform.libc_ver() if part)
    container = in_container()
    facts = {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "bits": 64 if sys.maxsize > 2**32 else 32,
        "libc": libc,
        "container": container,
        "virtual_environment": sys.prefix != sys.base_prefix,
    }
    parts = [f"{platform.python_version()}, {platform.system()} {platform.machine()}", libc]
    parts += ["in a container"] if container else []
    found = ", ".join(filter(None, parts))
    if facts["bits"] == 32:
        cure = "the runtime needs 64 bits: install a 64-bit Python"
        return Check("Python", FAIL, found + ", 32 bits", cure, facts)
    return Check("Python", OK, found, facts=facts)


def _core_check(packages: Mapping[str, Mapping[str, Any]]) -> Check:
    facts = {name: packages[name] for name in CORE}
    bad = {name: CORE[name] for name in CORE if facts[name]["error"] is not None}
    if bad:
        found = "; ".join(f"{name}: {facts[name]['error']}" for name in bad)
        return Check("Packages", FAIL, found, _pip(bad), facts)
    shown = ", ".join(f"{name} {facts[name]['version']}" for name in ("numpy", "numba"))
    return Check("Packages", OK, f"all {len(CORE)} are there: {shown}, …", facts=facts)


def _extra_check(extra: str, packages: Mapping[str, Mapping[str, Any]]) -> Check:
    purpose, members = EXTRAS[extra]
    facts = {name: packages[name] for name in members}
    bad = {name: members[name] for name in members if facts[name]["error"] is not None}
    if not bad:
        shown = ", ".join(f"{name} {facts[name]['version']}" for name in members)
        return Check(f"[{extra}]", OK, shown, facts=facts)
    found = "; ".join(f"{name} {facts[name]['error']}" for name in bad)
    return Check(f"[{extra}]", MISSING, f"{found}. For {purpose}", _pip(bad), facts, stops=False)


def _processor_check(runtime: str) -> Check:
    levels, model = found_levels()
    limits = {name: os.environ[name] for name in ISA_VARIABLES if os.environ.get(name)}
    facts: dict[str, Any] = {
        "model": model,
        "levels": None if levels is None else list(levels),
        "limits": limits,
        "openvino": runtime,
    }
    name = re.sub(r"\((?:R|TM)\)| CPU|@.*| \d+-Core Processor", "", model).strip()
    name = name or platform.machine()
    if levels is None:
        if platform.machine().lower() in ("x86_64", "amd64"):
            cure = "nothing to do if the lines below are OK"
            return Check("Processor", WARN, f"{name}: instruction sets unknown", cure, facts)
        cure = "Hilum is measured on x86-64; nothing to do if the lines below are OK"
        return Check("Processor", WARN, f"{name}: no x86-64", cure, facts)
    order = [level for level, _, _ in LEVELS]
    best = levels[-1] if levels else None
    limited = [LIMITS[value.upper()] for value in limits.values() if value.upper() in LIMITS]
    effective = min([*limited, *([best] if best else [])], key=order.index, default=None)
    facts |= {"level": best, "effective_level": effective if best else None}
    shown = f"{name}: {best or 'older than SSE4.1'}"
    supported = best is not None and (
        "AVX2" in levels if _numbers(runtime)[:1] >= _NEEDS_AVX2_FROM else "SSE4.2" in levels
    )
    facts["inside_upstream_support"] = supported
    if not supported:
        found = f"{shown}; outside of what OpenVINO {runtime} supports"
        if "SSE4.2" in levels:
            cure = (
                "the last release for this CPU: python -m pip install "
                f"{_LAST_FOR_OLD_CPUS} . This one is used as long as the lines below are OK"
            )
        else:
            cure = "no release supports it; it is used as long as the lines below are OK"
        return Check("Processor", WARN, found, cure, facts)
    if limits:
        found = f"{shown}, limited by {' and '.join(limits)} to {effective}"
        cure = f"for full speed remove {' and '.join(limits)} from the environment"
        if len(set(limits.values())) > 1 or len(limits) == 1:
            cure = f"set both of {' and '.join(ISA_VARIABLES)} to one value, or none"
        return Check("Processor", WARN, found, cure, facts)
    return Check("Processor", OK, f"{shown}; supported by OpenVINO {runtime}", facts=facts)


def _cores_check() -> Check:
    n_all = os.cpu_count() or 1
    n_usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else n_all
    quota = cpu_quota()
    facts = {"cpus": n_all, "usable": n_usable, "quota": quota}
    found = f"{n_usable} of {n_all} usable"
    if quota is not None:
        found += f"; the container may use {quota:g}"
        if quota < n_usable:
            cure = f"predict many files with --threads {max(1, int(quota))}"
            return Check("Cores", WARN, found, cure, facts)
    return Check("Cores", OK, found, facts=facts)


def _memory_check() -> Check:
    total, free = memory_bytes()
    facts = {"total_bytes": total, "available_bytes": free}
    if total is None or free is None:
        return Check("Memory", OK, "unknown on this system", facts=facts)
    found = f"{total / 2**30:.1f} GiB, {free / 2**30:.1f} GiB of it free"
    if free < _LEAST_FREE_BYTES:
        cure = "a prediction takes about 0.15 GiB: close other programs or add memory"
        return Check("Memory", WARN, found, cure, facts)
    return Check("Memory", OK, found, facts=facts)


# --- caches -------------------------------------------------------------------------------------


_NOT_KEPT = (
    "each start compiles anew: set XDG_CACHE_HOME to a private folder of the account that predicts"
)
_NOT_KEPT_WINDOWS = "each start compiles anew: set LOCALAPPDATA to a folder of this account"


def _cache_checks(progress: Callable[[str], None]) -> list[Check]:
    progress("Looking at the cache")
    outcome = _step("cache")
    facts: dict[str, Any] = scrub_all(outcome.result or {})
    if outcome.error is not None:
        return [Check("Cache", WARN, scrub(outcome.error), "see the lines above", facts)]
    cure = _NOT_KEPT_WINDOWS if sys.platform == "win32" else _NOT_KEPT
    folder = facts["folder"]
    if folder is None:
        return [Check("Cache", WARN, facts["reason"], cure, facts)]
    if not facts.get("own", True):
        found = f"{folder}: belongs to another user"
        return [Check("Cache", WARN, found, "run this as the account that predicts", facts)]
    if not facts["writable"]:
        found = f"{folder}: cannot be written to ({facts['reason']})"
        return [Check("Cache", WARN, found, cure, facts)]
    if not facts["private"]:
        found = f"{folder}: other users may write to it, and it holds programs"
        return [Check("Cache", WARN, found, f"chmod 700 {folder}", facts)]
    if not facts["locks"]:
        found = f"{folder} is fine, but locks can be kept nowhere: hooks at once all run at once"
        return [Check("Cache", WARN, found, "chmod 700 the folder hilum in XDG_RUNTIME_DIR", facts)]
    return [Check("Cache", OK, f"{folder}: private, can be written to", facts=facts)]


# --- heads, networks, kernels -------------------------------------------------------------------


@dataclass(frozen=True)
class _Head:
    """A head that can be used, by the number of its place on the command line."""

    number: int
    path: str
    name: str
    backbone: str
    taps: tuple[str, ...]


def _head_checks(
    paths: Sequence[str], progress: Callable[[str], None]
) -> tuple[list[Check], list[_Head]]:
    checks, heads = [], []
    for number, path in enumerate(paths, 1):
        progress(f"Reading head {number}")
        outcome = _step("head", path)
        if outcome.error is not None:
            # The person knows which file it is; who reads this over their shoulder need not.
            text = outcome.error.replace(path, f"head {number}")
            # The embedded head is a part of this installation, a given one is a file.
            kind = ((outcome.result or {}).get("error") or {}).get("kind", "")
            stops = path == str(DEMONSTRATION_HEAD) or kind in _INSTALLATION_FAULTS or not kind
            facts = {"number": number, "error": scrub(text)}
            cure = "install hilum again" if stops else "copy the file again, or train it anew"
            checks.append(Check("Head", FAIL, scrub(text), cure, facts, stops=stops))
            continue
        found = outcome.result or {}
        heads.append(_Head(number, path, found["name"], found["backbone"], tuple(found["taps"])))
        shown = f"{number} {found['name']}: {found['n_classes']} classes on {found['backbone']}"
        checks.append(Check("Head", OK, shown, facts=found | {"number": number}))
    return checks, heads


def _network_checks(heads: Sequence[_Head], progress: Callable[[str], None]) -> list[Check]:
    # Joined networks are compiled and checked one by one, each up to the last tap of any head.
    groups: dict[tuple[str, tuple[str, ...]], None] = {}
    for head in heads:
        parts = [part.strip() for part in head.backbone.split("+")]
        for part in parts:
            mine = head.taps
            if len(parts) > 1:
                mine = tuple(t.removeprefix(f"{part}.") for t in mine if t.startswith(f"{part}."))
            groups[part, mine] = None
    checks = []
    for name, taps in groups:
        progress(f"Compiling {name}")
        outcome = _step("network", name, ",".join(taps))
        checks += _network_lines(name, outcome)
    # Two heads may need the same network cut at the same place: one line says it.
    unique: dict[tuple[str, str, str], Check] = {}
    for check in checks:
        key = (check.name, str(check.facts.get("backbone")), str(check.facts.get("taps")))
        unique.setdefault(key, check)
    return list(unique.values())


def _network_lines(name: str, outcome: _Outcome) -> list[Check]:
    if outcome.error is not None:
        facts: dict[str, Any] = {"backbone": name, "error": scrub(outcome.error)}
        cure = "python -m pip install --force-reinstall hilum"
        if outcome.failure is not None and "SIGILL" in outcome.failure:
            cure = f"python -m pip install {_LAST_FOR_OLD_CPUS}"
            kind = os.environ.get("OPENBLAS_CORETYPE")
            if kind:
                cure += f"; unset OPENBLAS_CORETYPE first: NumPy takes this CPU for a {kind}"
        # The engine's own messages end with what to do.
        cure = "" if "install" in outcome.error else cure
        return [Check("Network", FAIL, f"{name}: {scrub(outcome.error)}", cure, facts)]
    facts = outcome.result or {}
    shown = (
        f"{name} up to {facts['taps'][-1]}: ready after {facts['first_ms']:.0f} ms, from the "
        f"cache {facts['second_ms']:.0f} ms; {facts['n_streams']} pictures at once"
    )
    if facts["cache"] == "not kept":
        shown = f"{name} up to {facts['taps'][-1]}: {facts['first_ms']:.0f} ms, and not kept"
        network = Check("Network", WARN, shown, "see Cache", facts)
    else:
        network = Check("Network", OK, shown, facts=facts)
    probes = facts["probes"]
    failed = [probe for probe in probes if not probe["passed"]]
    facts = {"backbone": name, "taps": facts["taps"], "probes": probes}
    if not failed:
        share = max(probe["distance"] / probe["tolerance"] for probe in probes)
        shown = f"{name}: all {len(probes)}, at {100 * share:.0f} % of the tolerance"
        return [network, Check("Known answers", OK, shown, facts=facts)]
    worst = failed[0]
    far = (
        "no number"
        if worst["distance"] is None
        else f"{worst['distance'] / worst['tolerance']:.1f} times the tolerance away"
    )
    shown = (
        f"{name}: {len(failed)} of {len(probes)} are wrong, the first at {worst['tap']} "
        f"({worst['probe']}), {far}"
    )
    cure = (
        "answers of this machine would be wrong. Install again: python -m pip install "
        "--force-reinstall openvino hilum. If that does not help, use another machine, and send "
        "us the file of --json"
    )
    return [network, Check("Known answers", FAIL, shown, cure, facts)]


def _kernel_checks(progress: Callable[[str], None]) -> list[Check]:
    def listen(line: dict[str, Any]) -> None:
        if "progress" in line:
            name, done, total = line["progress"]
            progress(f"Compiling kernels {done}/{total} ({name})")

    progress("Compiling kernels")
    outcome = _step("kernels", listen=listen)
    facts: dict[str, Any] = scrub_all(outcome.result or {})
    if outcome.error is not None:
        cure = "predictions of one file work without them. " + _pip({"numba": CORE["numba"]})
        return [Check("Kernels", WARN, scrub(outcome.error), cure, facts)]
    if facts["state"] == "off":
        cure = "remove NUMBA_DISABLE_JIT from the environment"
        return [Check("Kernels", WARN, "numba is switched off", cure, facts)]
    if facts["state"] == "not kept":
        found = "compiled in each process that needs them"
        return [Check("Kernels", WARN, found, "see Cache", facts)]
    n = facts["n_compiled"]
    found = f"{n} compiled and kept in {facts['seconds']:.0f} s" if n else "all kept before"
    return [Check("Kernels", OK, found, facts=facts)]


# --- the whole way ------------------------------------------------------------------------------


def _prediction_checks(heads: Sequence[_Head], progress: Callable[[str], None]) -> list[Check]:
    checks: list[Check] = []
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            progress("Drawing a synthetic X-ray")
            drawn = _step("draw", folder)
            if drawn.error is not None:
                text = scrub(drawn.error)
                return [Check("Prediction", FAIL, text, "install hilum again", {"error": text})]
            for head in heads:
                progress(f"Predicting with head {head.number}")
                checks.append(_prediction_check(head, Path(folder)))
    except OSError as error:
        found = f"not tried: no folder for temporary files ({error.strerror or error})"
        checks.append(Check("Prediction", WARN, found, "set TMPDIR to a folder of this account"))
    return checks


def _prediction_check(head: _Head, folder: Path) -> Check:
    # A drawing is none of the images a head learned from: whatever speaks against it is allowed.
    allowed = [word for reason in OVERRIDABLE for word in ("--allow", reason)]
    facts: dict[str, Any] = {"number": head.number, "head": head.name}
    shown = []
    for kind in ("png", "dcm"):
        path = folder / f"phantom.{kind}"
        outcome = _start(
            ["engine.predict", str(path), "--head", head.path, "--quiet", *allowed],
        )
        answer = next((line for line in outcome.lines if "status" in line), {})
        reason = outcome.failure or answer.get("reason")
        if outcome.code or answer.get("status") != "ok":
            text = str(reason or f"it ended with code {outcome.code}")
            text = scrub(text.replace(head.path, f"head {head.number}").replace(str(path), kind))
            facts |= {"kind": kind, "error": text}
            # A message of the command's own, and no answer: head and installation do not fit.
            own = not answer and text.startswith("error: ") and outcome.code == EXIT_SOME_FAILED
            stops = not own or head.path == str(DEMONSTRATION_HEAD)
            cure = "update Hilum on this machine, or train the head anew with its release"
            if stops:
                cure = "see the lines above; if they are OK, send us the file of --json"
            found = f"head {head.number}, {kind}: {text.removeprefix('error: ')}"
            return Check("Prediction", FAIL, found, cure, facts, stops=stops)
        peak = outcome.peak_bytes
        facts[kind] = {
            "seconds": round(outcome.seconds, 3),
            "peak_bytes": peak,
            "milliseconds": answer.get("milliseconds"),
        }
        memory = "" if peak is None else f", {peak / 2**20:.0f} MiB"
        shown.append(f"{'PNG' if kind == 'png' else 'DICOM'} {outcome.seconds:.2f} s{memory}")
    found = f"head {head.number}, from a cold start: {'; '.join(shown)}"
    return Check("Prediction", OK, found, facts=facts)


if __name__ == "__main__":
    sys.exit(main())
