"""A hook's side of the spool: pictures handed over, their answers awaited.

Imports as little as `engine.spool` does; the worker is imported only where none lives.
"""

# ruff: noqa: PTH100, PTH110, PTH112, PTH118, PTH208 - pathlib would be a third of what a hook imports.

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from engine.spool import (
    INCOMING,
    SETTINGS_FILE,
    TICKET,
    WORKING,
    await_answer,
    error_answer,
    never_started,
    prepare,
    read_answer,
    submit,
    worker_lives,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["hand_over"]


def hand_over(
    spool: str | os.PathLike[str],
    paths: Iterable[str | os.PathLike[str]],
    wait: bool = True,
) -> Iterator[dict[str, Any]]:
    """Hand pictures over and yield their answers; work oneself where no worker lives.

    Parameters
    ----------
    spool : str or PathLike
        The folder. Its ``serve.json`` says what is to be done with the pictures.
    paths : iterable of (str or PathLike)
        A sequence is handed over whole before anything is awaited; of anything else each path is
        answered before the next is taken.
    wait : bool, default True
        False: only say under which names the jobs are in the spool.

    Yields
    ------
    dict
        The answers in the order of the paths; without `wait`, ``{"job": name}``.

    Raises
    ------
    WriteError
        The spool cannot be written or is open to others, or no worker lives and none was ever
        started, so that nobody knows what is to be done.
    EngineError
        No worker lives, and the heads that ``serve.json`` names cannot be loaded. What was handed
        over stays in the spool.
    """
    if not os.path.isdir(spool):
        # Made here, a folder of a misspelt name would take pictures that nobody looks for.
        raise never_started(os.fspath(spool))
    folder = prepare(spool)
    if not wait:
        for path in paths:
            yield {"job": submit(folder, path)}
        return
    _check_known(folder)
    if isinstance(paths, (list, tuple)):
        yield from _answers(folder, [(submit(folder, path), path) for path in paths])
    else:
        for path in paths:
            yield from _answers(folder, [(submit(folder, path), path)])


def _check_known(spool: str) -> None:
    if not os.path.exists(os.path.join(spool, SETTINGS_FILE)) and not worker_lives(spool):
        raise never_started(spool)


def _answers(
    spool: str, jobs: Sequence[tuple[str, str | os.PathLike[str]]]
) -> Iterator[dict[str, Any]]:
    """Yield the answers of jobs in their order, whoever works."""
    waiting = list(reversed(jobs))
    missed = ""
    while waiting:
        job, path = waiting[-1]
        answer = read_answer(spool, job)
        lives = answer is not None or worker_lives(spool)
        if answer is None and _is_lost(spool, job):
            # A worker that lives may have passed it from one place to another while we looked.
            if missed == job or not (lives or worker_lives(spool)):
                reason = "lost: somebody took the job out of the spool; hand the picture over again"
                answer = error_answer(os.path.abspath(os.fspath(path)), reason)
            missed = job
        elif not lives:
            from engine.serve import stand_in

            for _ in stand_in(spool):
                while waiting and (answer := read_answer(spool, waiting[-1][0])) is not None:
                    waiting.pop()
                    yield answer
            continue
        if answer is None:
            answer = await_answer(spool, job, 0.5)
        if answer is not None:
            waiting.pop()
            yield answer


def _is_lost(spool: str, job: str) -> bool:
    """Whether a job is nowhere. In the order of its way: it cannot pass by unseen."""
    if os.path.exists(os.path.join(spool, INCOMING, job + TICKET)):
        return False
    working = os.path.join(spool, WORKING)
    if any(os.path.exists(os.path.join(working, name, job)) for name in os.listdir(working)):
        return False
    return read_answer(spool, job) is None
