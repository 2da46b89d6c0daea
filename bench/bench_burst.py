"""A burst of hooks: twenty processes at once, then a thousand files; time, memory, results.

python -m bench burst [--data FOLDER]

Each burst has an output folder, and a spool, of its own, so that no answer is a stored one, and
pictures that differ in a few bytes behind their end. Memory is that of all processes together,
looked at every 10 ms: the sum of what each has resident, and of what it shares with no other. A
process that has more than 60 MiB resident has loaded a network: so those are counted that work. The
resident worker has answered one picture before the clock starts.

There is no other program to compare with: the same twenty processes without the bound on engines
stand in its place.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.stages import REPOSITORY, Findings, Missing, Setting, Stage
from engine.spool import submit, wait

STAGE = Stage(
    "burst",
    "A burst of hooks",
    [
        "Twenty hooks at once, then a thousand files: how long, and in how much memory?",
        "Never more than one engine at work; exactly one result for every file.",
    ],
    order=66,
)
SECONDS = 0.01
AT_WORK_KIB = 60 * 1024
# Phantoms are no pictures like those that the embedded head knows.
ALLOW = ("--allow", "out_of_distribution")
UNBOUND = "hooks, each for itself, no bound on engines"
BOUND = "hooks, each for itself"
SPOOLED = "hooks, spool, no worker"
RESIDENT = "hooks, spool, resident worker"
ONE = "files, one engine.predict"
HANDED = "files, spool, resident worker"


class Watch:
    """Looks at processes until it is told to end."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.resident = self.own = 0.0
        self.at_work = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start one of our commands, and look at it."""
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments, "--quiet"],
            stdout=subprocess.DEVNULL,
            cwd=REPOSITORY,
        )
        self.processes.append(process)
        return process

    def _run(self) -> None:
        while not self._end.wait(SECONDS):
            resident = own = at_work = 0
            for process in list(self.processes):
                with contextlib.suppress(OSError, KeyError, ValueError):
                    text = Path(f"/proc/{process.pid}/status").read_text()
                    facts = dict(line.split(":", 1) for line in text.splitlines())
                    kib = int(facts["VmRSS"].split()[0])
                    resident += kib
                    own += int(facts["RssAnon"].split()[0])
                    at_work += kib > AT_WORK_KIB
            self.resident = max(self.resident, resident / 1024)
            self.own = max(self.own, own / 1024)
            self.at_work = max(self.at_work, at_work)


@dataclass
class Burst:
    """What one way to work off files cost in each round."""

    wanted: int
    seconds: list[float] = field(default_factory=list)
    resident: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    at_work: list[float] = field(default_factory=list)
    results: list[float] = field(default_factory=list)

    def add(self, begin: float, watch: Watch, out: Path, before: int = 0) -> None:
        """Note a round that began at a time."""
        self.seconds.append(time.perf_counter() - begin)
        self.resident.append(watch.resident)
        self.own.append(watch.own)
        self.at_work.append(watch.at_work)
        answers = [json.loads(path.read_bytes())["status"] for path in out.glob("*.json")]
        self.results.append(sum(answer in {"ok", "refused"} for answer in answers) - before)


def _check(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    codes = {process.wait() for process in processes}
    if codes != {0}:
        raise RuntimeError(f"engine.predict ended with {sorted(codes)}; wanted 0")


def _spool(out: Path) -> Path:
    """Make a spool whose settings are known."""
    folder = out.with_suffix(".spool")
    command = ("-m", "engine.serve", str(folder), "--output-dir", str(out), *ALLOW, "--once")
    subprocess.run([sys.executable, *command, "--quiet"], check=True, cwd=REPOSITORY)
    return folder


@contextlib.contextmanager
def _resident(watch: Watch, spool: Path, first: Path) -> Iterator[None]:
    """Hold a worker ready that has answered one picture."""
    process = watch.start("engine.serve", str(spool))
    try:
        wait(spool, submit(spool, first), timeout=60.0)
        yield
    finally:
        process.terminate()
        process.wait()


def _hooks(burst: Burst, files: Sequence[Path], out: Path, *options: str) -> None:
    """Start one process a file, all at once."""
    with Watch() as watch:
        begin = time.perf_counter()
        _check([watch.start("engine.predict", str(path), *options) for path in files])
        burst.add(begin, watch, out)


def _round(bursts: dict[str, Burst], few: list[Path], many: list[Path], work: Path) -> None:
    """Do all of them once; the first picture of `few` is for workers to begin with."""
    first, few = few[0], few[1:]
    out = work / "a"
    alone = ("--output-dir", str(out), *ALLOW)
    _hooks(bursts[UNBOUND], few, out, *alone, "--engines", "0")
    out = work / "b"
    _hooks(bursts[BOUND], few, out, "--output-dir", str(out), *ALLOW)
    out = work / "c"
    _hooks(bursts[SPOOLED], few, out, "--spool", str(_spool(out)))
    out = work / "d"
    spool = _spool(out)
    with Watch() as watch, _resident(watch, spool, first):
        begin = time.perf_counter()
        options = ("--spool", str(spool))
        _check([watch.start("engine.predict", str(path), *options) for path in few])
        bursts[RESIDENT].add(begin, watch, out, 1)
    out = work / "e"
    with Watch() as watch:
        begin = time.perf_counter()
        alone = ("--output-dir", str(out), *ALLOW)
        _check([watch.start("engine.predict", *map(str, many), *alone)])
        bursts[ONE].add(begin, watch, out)
    out = work / "f"
    spool = _spool(out)
    with Watch() as watch, _resident(watch, spool, first):
        begin = time.perf_counter()
        jobs = [submit(spool, path) for path in many]
        for job in jobs:
            wait(spool, job)
        bursts[HANDED].add(begin, watch, out, 1)


def measure(setting: Setting) -> Findings:
    """Measure every burst in every round."""
    if not Path("/proc/self/status").exists():
        raise Missing("memory and engines of a burst are read from /proc: run this stage on Linux")
    findings = Findings(setting)
    n_hooks, n_files = setting.size(20, 2), setting.size(1000, 4)
    wanted = 1 + n_hooks + n_files
    limit = wanted if setting.data else min(wanted, setting.size(120, 8))
    images = [path for path in setting.images(limit) if path.suffix.lower() != ".dcm"]
    if not images:
        raise Missing("only DICOM files in the folder of --data; wanted JPEG or PNG among them")
    # Locks of this run alone: what else predicts here neither waits for it nor makes it wait.
    runtime = setting.work / "run"
    runtime.mkdir(mode=0o700)
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)
    copies = []
    for number in range(wanted):
        image = images[number % len(images)]
        copies.append(setting.work / f"{number}{image.suffix}")
        copies[-1].write_bytes(image.read_bytes() + number.to_bytes(8, "little"))
    few, many = copies[: 1 + n_hooks], copies[1 + n_hooks :]
    with Watch() as watch:  # compiles the network where it is in no cache yet
        warm = ("--output-dir", str(setting.work / "warm"), *ALLOW)
        _check([watch.start("engine.predict", str(few[0]), *warm)])
    bursts = {
        name: Burst(n_files if name in (ONE, HANDED) else n_hooks)
        for name in (UNBOUND, BOUND, SPOOLED, RESIDENT, ONE, HANDED)
    }
    for number in range(setting.rounds):
        folder = setting.work / f"round{number}"
        folder.mkdir()
        _round(bursts, few, many, folder)
    rows = [
        [name, burst.wanted, burst.results, burst.seconds, burst.resident, burst.own, burst.at_work]
        for name, burst in bursts.items()
    ]
    columns = ["way", "files", "results", "s", "resident, MiB", "of their own, MiB", "at work"]
    findings.table("Bursts", columns, rows, note="At work: processes above 60 MiB at a time.")
    bound = [burst for name, burst in bursts.items() if name != UNBOUND]
    rounds = range(setting.rounds)
    findings.figure(
        "engines at work at a time", [max(burst.at_work[i] for burst in bound) for i in rounds],
        asked="<= 1",
    )  # fmt: skip
    for sign, worst in ((">= 1", min), ("<= 1", max)):
        findings.figure(
            f"results a file, {'least' if worst is min else 'most'}",
            [worst(burst.results[i] / burst.wanted for burst in bound) for i in rounds],
            asked=sign,
        )  # fmt: skip
    of_hooks = {name: bursts[name] for name in (UNBOUND, BOUND, SPOOLED, RESIDENT)}
    for name in (BOUND, RESIDENT):
        findings.ratio(
            f"memory, no bound / {name}", bursts[name].resident, bursts[UNBOUND].resident
        )
        findings.ratio(f"time, no bound / {name}", bursts[name].seconds, bursts[UNBOUND].seconds)
    findings.chart(
        f"{n_hooks} hooks at once", {name: burst.seconds for name, burst in of_hooks.items()},
        unit="s, lower is better", ours=(BOUND, SPOOLED, RESIDENT),
    )  # fmt: skip
    findings.chart(
        f"Memory of {n_hooks} hooks at once",
        {name: burst.resident for name, burst in of_hooks.items()},
        unit="MiB resident together, lower is better", ours=(BOUND, SPOOLED, RESIDENT),
    )  # fmt: skip
    findings.note("No peer: no other program that a PACS hook calls was at hand.")
    return findings
