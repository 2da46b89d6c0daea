"""A burst of hooks: twenty processes at once, then a thousand files; time, memory, results.

python -m bench.bench_burst FOLDER [--hooks 20] [--files 1000]

FOLDER holds JPEG or PNG files. They are copied, each with a few bytes of its own behind its end, so
that no answer is a stored one. Memory is that of all processes together, looked at every 10 ms:
the sum of what each has resident, and of what it shares with no other.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.spool import submit, wait

SECONDS = 0.01


class Watch:
    """Looks at processes until it is told to end."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.resident = self.anonymous = 0.0
        self.most_at_work = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(SECONDS):
            resident = anonymous = 0
            at_work = 0
            for process in list(self.processes):
                with contextlib.suppress(OSError, KeyError, ValueError):
                    text = Path(f"/proc/{process.pid}/status").read_text()
                    facts = dict(line.split(":", 1) for line in text.splitlines())
                    resident += int(facts["VmRSS"].split()[0])
                    anonymous += int(facts["RssAnon"].split()[0])
                    at_work += int(facts["VmRSS"].split()[0]) > 60 * 1024
            self.resident = max(self.resident, resident / 1024)
            self.anonymous = max(self.anonymous, anonymous / 1024)
            self.most_at_work = max(self.most_at_work, at_work)


def start(watch: Watch, module: str, *arguments: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments], stdout=subprocess.DEVNULL
    )
    watch.processes.append(process)
    return process


@contextlib.contextmanager
def resident(watch: Watch, spool: Path) -> Iterator[None]:
    """Hold a worker ready."""
    process = start(watch, "engine.serve", str(spool), "--quiet")
    while not (spool / "socket").exists():
        time.sleep(0.01)
    time.sleep(2.0)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def say(what: str, begin: float, watch: Watch, folder: Path, n_wanted: int) -> None:
    n_results = sum(
        json.loads(path.read_bytes())["status"] in {"ok", "refused"}
        for path in folder.glob("*.json")
    )
    print(
        f"  {what:44}{time.perf_counter() - begin:8.2f} s{watch.resident:8.0f} MiB resident"
        f"{watch.anonymous:7.0f} MiB of its own, {watch.most_at_work} above 60 MiB, "
        f"{n_results} of {n_wanted} results",
        flush=True,
    )


def hooks(what: str, files: Sequence[Path], out: Path, *options: str, worker: bool = False) -> None:
    """Start one process a file, all at once."""
    with contextlib.ExitStack() as stack:
        watch = stack.enter_context(Watch())
        if worker:
            stack.enter_context(resident(watch, Path(options[1])))
        begin = time.perf_counter()
        started = [start(watch, "engine.predict", str(path), *options, "--quiet") for path in files]
        for process in started:
            process.wait()
        say(what, begin, watch, out, len(files))


def main() -> None:
    """Measure."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path)
    options.add_argument("--hooks", type=int, default=20)
    options.add_argument("--files", type=int, default=1000)
    arguments = options.parse_args()
    images = sorted(
        path for path in arguments.folder.iterdir() if path.suffix in {".jpg", ".jpeg", ".png"}
    )
    if not images:
        options.error(f"{arguments.folder}: no JPEG or PNG file in it")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        os.environ["XDG_RUNTIME_DIR"] = str(work)
        copies = []
        for number in range(3 * arguments.hooks + arguments.files):
            image = images[number % len(images)]
            copies.append(work / f"{number}{image.suffix}")
            copies[-1].write_bytes(image.read_bytes() + number.to_bytes(8, "little"))

        def spool(out: Path) -> Path:
            """Make a spool whose settings are known."""
            folder = out.with_suffix(".spool")
            command = ("-m", "engine.serve", str(folder), "--output-dir", str(out), "--once")
            subprocess.run([sys.executable, *command, "--quiet"], check=True)
            return folder

        n = arguments.hooks
        print(f"{n} hooks at once:")
        out = work / "a"
        hooks("each for itself (--output-dir)", copies[:n], out, "--output-dir", str(out))
        out = work / "b"
        hooks("--spool, no worker", copies[n : 2 * n], out, "--spool", str(spool(out)))
        out = work / "c"
        hooks(
            "--spool, resident worker", copies[2 * n : 3 * n], out, "--spool", str(spool(out)),
            worker=True,
        )  # fmt: skip
        files = copies[3 * n :]
        print(f"{len(files)} files:")
        out = work / "d"
        with Watch() as watch:
            begin = time.perf_counter()
            paths = map(str, files)
            start(watch, "engine.predict", *paths, "--output-dir", str(out), "--quiet").wait()
            say("one engine.predict", begin, watch, out, len(files))
        out = work / "e"
        folder = spool(out)
        with Watch() as watch, resident(watch, folder):
            begin = time.perf_counter()
            jobs = [submit(folder, path) for path in files]
            print(f"  {'handed over after':44}{time.perf_counter() - begin:8.2f} s")
            for job in jobs:
                wait(folder, job)
            say("spool, resident worker", begin, watch, out, len(files))


if __name__ == "__main__":
    main()
