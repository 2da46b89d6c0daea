"""How what the stages found becomes RESULTS.md: what is kept, how it is put together and written.

Each stage leaves ``results/NAME.json``, with its machine, its date and its command; RESULTS.md is
made of all that are there. A stage that is run again replaces its own only.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.charts import draw, shown, spread
from bench.stages import REPOSITORY, Findings, Measured, Stage

__all__ = ["Run", "scrub", "write_results"]

# Folders of an absolute path, down to its last name; divisions and addresses are none.
_FOLDERS = re.compile(r"(?<![\w.:/\\~])(?:/(?:[\w.@+-]+/)+|[A-Za-z]:\\(?:[^\\\n]+\\)+)")


@dataclass
class Run:
    """One stage as it was run."""

    stage: dict[str, Any]
    status: str  # "done", "failed" or "missing"
    reason: str
    seconds: float
    date: str
    command: str
    rounds: int
    quick: bool
    real: bool
    load: str
    machine: dict[str, str]
    findings: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write it into a folder, all or nothing."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.stage['name']}.json"
        part = path.with_suffix(".part")
        part.write_text(
            json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        part.replace(path)


def stage_facts(stage: Stage) -> dict[str, Any]:
    """Return what the results say of a stage."""
    return {
        "name": stage.name, "title": stage.title, "asks": list(stage.asks), "order": stage.order,
    }  # fmt: skip


def scrub(value: Any, places: dict[str, str]) -> Any:
    """Replace folders, and the name of the host, in whatever text is inside.

    Parameters
    ----------
    value : any
        What JSON can hold.
    places : dict of str to str
        Paths, and what is written for each.

    Returns
    -------
    any
        The same, scrubbed.
    """
    if isinstance(value, dict):
        return {scrub(key, places): scrub(one, places) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [scrub(one, places) for one in value]
    if not isinstance(value, str):
        return value
    known = {**places, str(REPOSITORY): ".", str(Path.home()): "~"}
    for path in sorted(known, key=len, reverse=True):
        if len(path) > 1:
            value = value.replace(path, known[path])
    value = _FOLDERS.sub("…", value)
    host = platform.node()
    if len(host) > 3:
        value = re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w.-])", "HOST", value)
    return value


def _cell(cell: Any) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, dict):
        return spread(Measured(tuple(cell["rounds"])))
    if isinstance(cell, int):
        return f"{cell:,}"
    return str(cell).replace("|", "\\|").replace("\n", " ")


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Write a table; columns of figures stand to the right."""

    def number(column: int) -> bool:
        kinds = [row[column] for row in rows if row[column] is not None]
        return bool(kinds) and all(isinstance(kind, (dict, int)) for kind in kinds)

    rule = "|".join("---:" if number(column) else "---" for column in range(len(columns)))
    lines = ["| " + " | ".join(_cell(column) for column in columns) + " |", f"|{rule}|"]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _verdict(run: Run, entry: dict[str, Any]) -> str:
    if not entry["asked"]:
        return ""
    if run.quick:
        return "not judged: quick run"
    if len(entry["rounds"]) == 1 and entry["verdict"] == "met":
        return "met (one round)"
    return str(entry["verdict"])


def _value(entry: dict[str, Any]) -> str:
    said = spread(Measured(tuple(entry["rounds"])))
    return f"{said} {entry['unit']}".strip()


def _link(run: Run) -> str:
    heading = f"{run.stage['name']} {run.stage['title']}".lower()
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading))


def _heading(run: Run) -> str:
    return f"## {run.stage['name']}: {run.stage['title']}\n"


def _same(left: dict[str, str], right: dict[str, str]) -> bool:
    # Packages are added between stages; a commit that changes RESULTS.md itself is another one.
    skipped = {"Commit", "Packages"}
    return all(left.get(key) == right.get(key) for key in {*left, *right} - skipped)


def _facts(facts: dict[str, str]) -> str:
    return _table(("machine", ""), list(facts.items()))


def _other(run: Run, first: dict[str, str]) -> str:
    """Say in what a stage's commit and packages differ from those above."""
    said = []
    if run.machine.get("Commit") != first.get("Commit"):
        said.append(f"commit {run.machine.get('Commit', 'not known')}")
    own, above = (set(facts.get("Packages", "").split(", ")) for facts in (run.machine, first))
    said += sorted(own - above)
    return ", ".join(filter(None, said))


def write_results(folder: Path) -> Path:
    """Make RESULTS.md and the charts from all stages that were kept in a folder.

    Parameters
    ----------
    folder : Path
        Holds ``results/*.json``; gets ``RESULTS.md`` and ``charts/*.svg``.

    Returns
    -------
    Path
        Of RESULTS.md.
    """
    runs = [
        Run(**json.loads(path.read_text(encoding="utf-8")))
        for path in sorted((folder / "results").glob("*.json"))
    ]
    runs.sort(key=lambda run: (run.stage["order"], run.stage["name"]))
    parts = ["# Results of the benchmark suite\n"]
    if any(run.quick for run in runs):
        parts.append(
            "**Stages marked *quick* ran with the smallest sizes, to see that every line works. "
            "Their figures are no evidence.**\n"
        )
    parts.append(_asked(runs))
    parts.append(
        "Figures are medians of rounds, with the lowest and the highest round in brackets; each "
        "ratio compares two costs of the same run. Written by `python -m bench`; "
        "`bench/README.md` says how to read it and how to run it again.\n"
    )
    if runs:
        newest = max(runs, key=lambda run: run.date)
        first = newest.machine
        parts += ["## Machine\n", _facts({"Last run": newest.date} | first)]
        parts += ["## Not measured\n", _absent(runs)]
        charts = folder / "charts"
        charts.mkdir(exist_ok=True)
        for old in charts.glob("*.svg"):
            old.unlink()
        for run in runs:
            parts += _section(run, first, charts)
    path = folder / "RESULTS.md"
    part = path.with_suffix(".part")
    part.write_text("\n".join(parts), encoding="utf-8")
    part.replace(path)
    return path


def _asked(runs: Sequence[Run]) -> str:
    """Write one row for each figure that was asked for, those that are missing too."""
    rows = []
    for run in runs:
        stage = f"[{run.stage['name']}](#{_link(run)})"
        rows += [
            (stage, entry["name"], entry["asked"], _value(entry), _verdict(run, entry))
            for entry in run.findings.get("ratios", ()) if entry["asked"]
        ]  # fmt: skip
        rows += [
            (stage, f"against {entry['peer']}", entry["asked"], None,
             f"not measured: {entry['reason']}")
            for entry in run.findings.get("absent", ()) if entry["asked"]
        ]  # fmt: skip
        if run.status != "done":
            word = "FAILED" if run.status == "failed" else "not run here"
            rows.append((stage, _rest(run), None, None, f"{word}: {run.reason}"))
    if not rows:
        return "None of the stages that were run has a figure that was asked for.\n"
    return _table(("stage", "figure", "asked", "reached", "verdict"), rows)


def _rest(run: Run) -> str:
    return "the rest of the stage" if run.findings else "the whole stage"


def _absent(runs: Sequence[Run]) -> str:
    rows = [
        (f"[{run.stage['name']}](#{_link(run)})", _rest(run),
         f"{'FAILED: ' if run.status == 'failed' else ''}{run.reason}")
        for run in runs if run.status != "done"
    ]  # fmt: skip
    rows += [
        (f"[{run.stage['name']}](#{_link(run)})", entry["peer"], entry["reason"])
        for run in runs for entry in run.findings.get("absent", ())
    ]  # fmt: skip
    return _table(("stage", "what", "why"), rows) if rows else "Nothing is missing.\n"


def _section(run: Run, machine: dict[str, str], charts: Path) -> list[str]:
    name = run.stage["name"]
    parts = [_heading(run)]
    parts += [f"- {question}" for question in run.stage["asks"]]
    quick = "; *quick*" if run.quick else ""
    pictures = "real X-rays" if run.real else "phantoms"
    parts.append(
        f"\n`{run.command}`: {run.date}, {shown(run.seconds)} s, {run.rounds} rounds, {pictures}, "
        f"load {run.load} at the start{quick}.\n"
    )
    if not _same(run.machine, machine):
        parts += ["**On another machine, or with other variables:**\n", _facts(run.machine)]
    elif other := _other(run, machine):
        parts.append(f"Other than above: {other}\n")
    if run.status != "done":
        what = "**FAILED:**" if run.status == "failed" else "Not run here:"
        parts.append(f"{what} {_cell(run.reason)}\n")
    findings = Findings(**run.findings)
    for number, chart in enumerate(findings.charts, 1):
        file = charts / f"{name}-{number}.svg"
        file.write_text(draw(chart), encoding="utf-8")
        parts.append(f"![{_cell(chart['title'])}](charts/{file.name})\n")
    if findings.ratios:
        rows = [
            (entry["name"], _value(entry), entry["asked"], _verdict(run, entry), entry["note"])
            for entry in findings.ratios
        ]
        columns = ("figure", "reached", "asked", "verdict", "note")
        kept = [
            i for i, column in enumerate(columns) if i < 2 or any(row[i] for row in rows)
        ]  # fmt: skip
        parts.append(_table([columns[i] for i in kept], [[row[i] for i in kept] for row in rows]))
    for table in findings.tables:
        parts += [f"### {table['title']}\n", _table(table["columns"], table["rows"])]
        if table["note"]:
            parts.append(f"{table['note']}\n")
    if findings.peers:
        parts.append("### Peers\n")
        rows = [(peer["name"], peer["version"], peer["how"]) for peer in findings.peers]
        parts.append(_table(("peer", "version", "how"), rows))
    parts += [f"Not measured: {entry['peer']}: {entry['reason']}\n" for entry in findings.absent]
    parts += [f"{note}\n" for note in findings.notes]
    return parts
