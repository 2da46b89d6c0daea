"""engine.serve and hand-over with a worker that costs nothing and does what the file says.

Usage: fake_worker.py serve ARGUMENTS of engine.serve | hand_over SPOOL PATH...

The first word of a file: ``kill`` the process, ``raise`` an error, ``fault`` (an error nobody
knows, as an answer), ``bad`` (status error), ``full`` (no space left, while DIR/full exists),
``slow``; anything else is answered ok. Results go to the output folder as those of the real worker
do; its ``log`` has a line for each begun.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import engine.worker
from engine import serve, spool
from engine.answers import INTERNAL
from engine.handover import hand_over


class Answer:
    def __init__(self, **facts: Any) -> None:
        self.facts = facts

    def to_json(self) -> dict[str, Any]:
        return self.facts


class Worker:
    def __init__(self, settings: engine.worker.Settings, **_more: object) -> None:
        self.settings = settings
        self.folder = Path(settings.output_dir or ".")
        # Taken ahead, as several streams do.
        self.ahead = settings.threads or 1

    @property
    def heads(self) -> tuple[str, ...]:
        self.folder.mkdir(exist_ok=True)
        return ()

    def close(self) -> None:
        pass

    def answer(self, path: str) -> Answer:
        name = Path(path).name
        content = Path(path).read_bytes()
        word = content.split()[0].decode() if content else ""
        with (self.folder / "log").open("a") as log:
            log.write(f"{name}\n")
        if word == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "raise":
            raise RuntimeError("a bug")
        if word == "full" and (self.folder / "full").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        if word == "slow":
            time.sleep(0.05)
        if word == "fault":
            reason = f"{INTERNAL}: {path}: unexpected KeyError"
            return Answer(input=path, status="error", reason=reason, milliseconds=0.0)
        if word == "bad":
            return Answer(input=path, status="error", reason=f"{path}: bad", milliseconds=0.0)
        if word == "refuse":
            reason = f"lateral: {path}"
            return Answer(input=path, status="refused", reason=reason, milliseconds=0.0)
        result = self.folder / f"{name}.json"
        facts: dict[str, Any] = {"input": path, "status": "ok", "reason": None, "milliseconds": 0.5}
        if result.exists():
            facts["stored"] = True
        else:
            spool.write_file(str(self.folder), result.name, json.dumps(facts).encode())
        return Answer(**facts)

    def deliver(self, answer: Answer) -> Answer:
        return answer

    def judge_many(self, paths: Iterable[str]) -> Iterator[Answer]:
        waiting = []
        for path in paths:
            waiting.append(path)
            if len(waiting) >= self.ahead:
                yield self.answer(waiting.pop(0))
        for path in waiting:
            yield self.answer(path)


def main() -> int:
    engine.worker.Worker = Worker  # type: ignore[assignment,misc]
    command, *arguments = sys.argv[1:]
    if command == "serve":
        return serve.main(arguments)
    for answer in hand_over(arguments[0], arguments[1:]):
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
