"""Who does a piece of work, how much memory it may take, and who hears how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from engine.rows import MEMORY_BYTES, Crew

__all__ = [
    "Course",
    "Progress",
    "Work",
]

# What a fold, or the fit of the head, counts in the progress that is reported; reading and checking
# counts a tenth of it.
_STEP_PARTS, _READING = 100, 0.1

#: Called as ``progress(done, total, text)``.
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Work:
    """Who does a piece of work, how much it may hold, and who hears how far it is."""

    crew: Crew
    #: Standardised features one fit may hold.
    hold_bytes: int
    #: Called with the share that is done, 0 to 1, and what is being done.
    report: Callable[[float, str], None]

    def part(self, low: float, high: float, name: str) -> Work:
        """Return the same for a part of the work, from one share to another."""
        report = self.report

        def narrowed(share: float, text: str) -> None:
            report(low + (high - low) * share, ", ".join(filter(None, (name, text))))

        return replace(self, report=narrowed)


class Course:
    """How far a training is: what is reported never goes back."""

    def __init__(self, steps: int, progress: Progress | None) -> None:
        self._total = round((_READING + steps) * _STEP_PARTS)
        self._progress = progress
        self._done = 0

    def say(self, steps: float, text: str) -> None:
        """Report so many steps, counted with parts of steps."""
        now = min((_READING + steps) * _STEP_PARTS, self._total)
        self._done = max(self._done, round(now))
        if self._progress is not None:
            self._progress(self._done, self._total, text)

    def reading(self, crew: Crew) -> Work:
        """Return the work that comes before the first step."""
        return Work(crew, 0, lambda share, text: self.say(_READING * (share - 1.0), text))

    def work(self, crew: Crew, step: int) -> Work:
        """Return the work of one step, counted from 0."""
        return Work(crew, MEMORY_BYTES // 2, lambda share, text: self.say(step + share, text))
