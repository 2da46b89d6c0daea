"""Run the benchmark suite, or some of its stages, and write RESULTS.md with charts.

python -m bench [NAME...] [--data FOLDER] [--rounds N] [--output FOLDER] [--quick] [--list]

Each stage runs in a process of its own, one after the other: what one does to memory, threads or
the process does not reach the next. A stage that fails is reported, and the others run. Stages that
are not named keep what was found of them before. Exit 0: all ran; 1: some failed; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from bench.facts import load, machine_facts, now
from bench.results import Run, scrub, stage_facts, write_results
from bench.stages import REPOSITORY, Findings, Missing, Setting, Stage, find_stages

ROUNDS = 7
QUICK_ROUNDS = 2
FOUND, FAILED = "findings.json", "failure.json"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="stages to run; none: all")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="real X-rays; else phantoms")
    parser.add_argument(
        "--rounds", type=int, metavar="N",
        help=f"how often each figure is taken (default {ROUNDS}, with --quick {QUICK_ROUNDS})",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER",
        help="gets RESULTS.md, charts and results (default bench, with --quick build/bench)",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="smallest sizes: every line runs, nothing is proved"
    )
    parser.add_argument("--list", action="store_true", help="say what stages there are")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    return parser


def _run_inside(module: str, work: Path) -> int:
    """Run one stage in this process; leave findings or the failure in its folder."""
    settings = json.loads((work / "setting.json").read_text(encoding="utf-8"))
    data = Path(settings["data"]) if settings["data"] else None
    space = work / "work"
    space.mkdir()
    setting = Setting(data, settings["rounds"], space, settings["quick"])
    try:
        found = importlib.import_module(module)
        found.measure(setting).save(work / FOUND)
    except Missing as error:
        _fail(work, "missing", str(error))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also SystemExit of commands that a stage calls
        traceback.print_exc()
        _fail(work, "failed", f"{type(error).__name__}: {error}")
        return 1
    return 0


def _fail(work: Path, status: str, reason: str) -> None:
    (work / FAILED).write_text(json.dumps({"status": status, "reason": reason}), encoding="utf-8")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a stage, if it has not ended, and what it left running: it would disturb the next."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def run_stage(
    stage: Stage, module: str, options: argparse.Namespace, machine: dict[str, str], command: str
) -> Run:
    """Run a stage in a process of its own.

    Parameters
    ----------
    stage : Stage
        Which.
    module : str
        Where it is.
    options : argparse.Namespace
        Of the command.
    machine : dict of str to str
        Facts of this machine.
    command : str
        What gives the same again.

    Returns
    -------
    Run
        What it found, scrubbed; or how it failed, with what it had found until then.
    """
    date, busy, start = now(), load(), time.perf_counter()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        work = Path(name)
        settings = {
            "data": str(options.data.resolve()) if options.data else None,
            "rounds": options.rounds,
            "quick": options.quick,
        }
        (work / "setting.json").write_text(json.dumps(settings), encoding="utf-8")
        paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        process = subprocess.Popen(
            [sys.executable, "-m", "bench", "--inside", str(work), module],
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,
        )
        status, reason = "done", ""
        try:
            code = process.wait()
        finally:
            _end(process)
        if (work / FAILED).exists():
            said = json.loads((work / FAILED).read_text(encoding="utf-8"))
            status, reason = said["status"], said["reason"]
        elif code:
            status = "failed"
            reason = f"ended by signal {-code}" if code < 0 else f"ended with code {code}"
        kept = [path for path in (work / FOUND, work / "work" / FOUND) if path.exists()]
        findings = Findings.load(kept[0]) if kept else None
        places = {str(work): "WORK", str(work.resolve()): "WORK"}
        if options.data:
            places |= {str(options.data.resolve()): "DATA", str(options.data.absolute()): "DATA"}
        found = dict(vars(findings)) if findings else {}
        return Run(
            stage=stage_facts(stage), status=status, reason=scrub(reason, places),
            seconds=round(time.perf_counter() - start, 1), date=date, command=command,
            rounds=options.rounds, quick=options.quick, real=options.data is not None, load=busy,
            machine=scrub(machine, places), findings=scrub(found, places),
        )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suite."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.inside is not None:
        return _run_inside(*options.names, options.inside)
    if options.rounds is None:
        options.rounds = QUICK_ROUNDS if options.quick else ROUNDS
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: take each figure at least once")
    if options.data is not None and not options.data.is_dir():
        parser.error(f"--data {options.data}: no such folder")
    default = REPOSITORY / "build" / "bench" if options.quick else REPOSITORY / "bench"
    output: Path = (options.output or default).resolve()
    stages, broken = find_stages()
    unknown = [name for name in options.names if name not in stages]
    if unknown:
        why = "".join(f"\n  {module} cannot be used: {text}" for module, text in broken.items())
        parser.error(f"no stage {', '.join(unknown)}; there are {', '.join(stages)}{why}")
    chosen = [name for name in stages if not options.names or name in options.names]
    if options.list:
        for name in chosen:
            print(f"{name:14} {stages[name][0].title}")
            for question in stages[name][0].asks:
                print(f"{'':14}   {question}")
    for module, text in broken.items():
        print(f"{module} cannot be used: {text}", file=sys.stderr)
    if options.list:
        return 1 if broken else 0
    # Ended from outside, it still ends the stage it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    machine = machine_facts()
    failed = []
    for number, name in enumerate(chosen, 1):
        stage, module = stages[name]
        print(f"\n[{number}/{len(chosen)}] {name}: {stage.title}", file=sys.stderr, flush=True)
        run = run_stage(stage, module, options, machine, _command(name, options))
        run.save(output / "results")
        path = write_results(output)
        if run.status != "done":
            word = "FAILED" if run.status == "failed" else "not run here"
            print(f"{name}: {word}: {run.reason}", file=sys.stderr, flush=True)
        if run.status == "failed":
            failed.append(name)
    if chosen:
        print(f"\nwrote {path}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed or broken else 0


def _command(name: str, options: argparse.Namespace) -> str:
    """Return the command that runs one stage the same way; no folder is named."""
    words = ["python", "-m", "bench", name]
    words += ["--data", "FOLDER"] if options.data else []
    words += ["--quick"] if options.quick else []
    words += ["--rounds", str(options.rounds)]
    return shlex.join(words)


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        print("\nstopped; the stages before are kept", file=sys.stderr)
        raise SystemExit(130) from None
