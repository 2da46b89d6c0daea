"""The suite's runner: what is missing is named, what fails does not stop the others."""

from __future__ import annotations

import functools
import math
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

import bench.__main__
from bench.charts import draw
from bench.results import scrub
from bench.stages import REPOSITORY, Findings, Measured, find_stages, in_turn, judge

STAGE = """
import os
from bench.stages import Findings, Missing, Stage
STAGE = Stage("{name}", "Stage {name}")
def measure(setting):
    findings = Findings(setting)
    findings.missing("rival", "not installed: pip install rival", asked="> 7")
    findings.ratio("other / ours", [1.0, 2.0], [4.0, 8.0], asked=">= 1.5")
    findings.ratio("slow / ours", [1.0, 2.0], [0.5, 1.0], asked=">= 1.5")
    findings.chart("Times", {{"ours": [1, 2]}}, unit="s")
    findings.note("{word}")
    {end}
"""
Suite = Callable[..., tuple[int, str]]


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """Write stages of these endings, run some of them; exit code and RESULTS.md."""
    folder, out = tmp_path / "stages", tmp_path / "out"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(bench.__main__, "find_stages", functools.partial(find_stages, folder, ""))

    def run(*arguments: str, word: str = "first", **ends: str) -> tuple[int, str]:
        for name, end in ends.items():
            text = STAGE.format(name=name, end=end, word=word)
            (folder / f"bench_{name}.py").write_text(text)
            sys.modules.pop(f"bench_{name}", None)
        code = bench.__main__.main([*arguments, "--output", str(out), "--rounds", "1"])
        return code, (out / "RESULTS.md").read_text(encoding="utf-8")

    yield run
    for name in [name for name in sys.modules if name.startswith("bench_")]:
        del sys.modules[name]


def test_a_failing_stage_is_reported_and_the_others_run(suite: Suite, tmp_path: Path) -> None:
    code, said = suite(
        xa="raise SystemExit('broke')", xb="return findings", xc="raise Missing('no wait4 here')"
    )
    assert code == 1
    summary = said[: said.index("## Machine")]
    assert "| [xa](#xa-stage-xa) | the rest of the stage | – | – | FAILED: SystemExit: broke |" in (
        summary
    )
    assert "not run here: no wait4 here" in summary
    assert "| [xb](#xb-stage-xb) | other / ours | >= 1.5 | 4.00 | met |" in summary
    assert "| slow / ours | >= 1.5 | 0.500 | NOT MET |" in summary
    assert "| against rival | > 7 | – | not measured: not installed: pip install rival |" in summary
    # What was found before the failure is kept.
    assert summary.count("other / ours") == 3
    for name in ("xa", "xb", "xc"):
        assert f"charts/{name}-1.svg" in said
        ElementTree.parse(tmp_path / "out" / "charts" / f"{name}-1.svg")


def test_a_stage_that_dies_is_reported(suite: Suite) -> None:
    code, said = suite(xa="os._exit(7)", xb="return findings")
    assert code == 1
    assert "FAILED: ended with code 7" in said
    assert "## xb: Stage xb" in said


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ended_from_outside_it_ends_its_stage(suite: Suite, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    kill = f"open({str(alive)!r}, 'w').write(str(os.getpid())); os.kill(os.getppid(), 15)"
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            suite(xa=f"{kill}; import time; time.sleep(600)")
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert ended.value.code == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int(alive.read_text()), 0)


def test_one_stage_rerun_keeps_the_others(suite: Suite) -> None:
    suite(xa="return findings", xb="return findings")
    code, said = suite("xb", word="second", xb="return findings")
    assert code == 0
    first, second = said.index("## xa: Stage xa"), said.index("## xb: Stage xb")
    assert "\nfirst\n" in said[first:second]
    assert "\nsecond\n" in said[second:]
    assert "first" not in said[second:]


def test_no_folder_and_no_host_reaches_the_results(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "node", lambda: "ward-seven")
    folder = tmp_path / "patients"
    folder.mkdir()
    secret = "f'{__file__} {os.getcwd()} {setting.work} {setting.data}: ward-seven'"
    code, said = suite(
        "--data", str(folder), xa=f"findings.note({secret}); raise RuntimeError({secret})"
    )
    assert code == 1
    assert "FAILED: RuntimeError: " in said
    for word in (str(tmp_path), str(REPOSITORY), tempfile.gettempdir() + "/", "ward-seven"):
        assert word not in said, word
    assert "bench_xa.py" in said


def test_scrubbing_leaves_words_divisions_and_addresses() -> None:
    text = "(a + b) / ours, and/or, https://example.org/a/b, ./bench/x.py, 1/2 of 3 MiB/s"
    assert scrub(text, {}) == text
    assert scrub({"k": ["/opt/venv/lib/x.py"]}, {}) == {"k": ["…x.py"]}
    assert scrub("C:\\Users\\jo\\x.py", {}) == "…x.py"


def test_a_cheap_stage_runs(tmp_path: Path) -> None:
    arguments = ["preprocess", "--quick", "--rounds", "1", "--output", str(tmp_path)]
    assert bench.__main__.main(arguments) == 0
    said = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "| naive chain / ours, 16 bits | >= 8 |" in said
    assert "not judged: quick run" in said
    assert "| 16 bits, big endian |" in said
    assert "FAILED" not in said
    assert (tmp_path / "charts" / "preprocess-1.svg").exists()


def test_every_stage_can_be_found() -> None:
    stages, broken = find_stages()
    assert broken == {}
    files = {path.stem for path in (REPOSITORY / "bench").glob("bench_*.py")}
    assert {module.removeprefix("bench.") for _, module in stages.values()} == files


def test_ratios_are_made_round_by_round() -> None:
    assert Findings().ratio("x", [1, 2], [4, 6]).rounds == (4.0, 3.0)
    assert Findings().ratio("x", [1, 2], [4, 8], better="lower").median == 0.25
    # Rounds that are not the same are no pairs.
    assert Findings().ratio("x", [1, 2, 3], [4, 8]).rounds == (3.0,)
    assert Findings().ratio("x", [0.0], [1.0]).rounds == (math.inf,)


@pytest.mark.parametrize(
    ("asked", "rounds", "verdict"),
    [
        (">= 3", (4.0, 3.0), "met"),
        (">= 3.5", (4.0, 3.2), "met by the median, not by every round"),
        (">= 1,000", (999.0,), "NOT MET"),
        ("<= 1", (2.0,), "NOT MET"),
        ("> 1", (1.0,), "NOT MET"),
        ("< 2", (1.0, 1.5), "met"),
        ("<= 2", (1.0, math.nan, 1.0), "NOT MET"),
        ("", (1.0,), ""),
    ],
)
def test_verdicts(asked: str, rounds: tuple[float, ...], verdict: str) -> None:
    assert judge(asked, Measured(rounds)) == verdict


def test_what_is_asked_is_a_sign_and_a_number() -> None:
    with pytest.raises(ValueError, match="wanted a sign and a number"):
        judge("at least 3", Measured((1.0,)))


def test_all_are_timed_in_every_round() -> None:
    order: list[str] = []
    ticks = iter(range(100))
    works = {name: functools.partial(order.append, name) for name in "abc"}
    times = in_turn(works, rounds=3, warm_up=1, clock=lambda: float(next(ticks)))
    assert times == {name: [1.0] * 3 for name in "abc"}
    assert [set(order[i : i + 3]) for i in range(0, 12, 3)] == [set("abc")] * 4


@pytest.mark.parametrize("log", [False, True])
def test_charts_are_well_formed(log: bool) -> None:
    findings = Findings()
    name = 'a < b & "c"'
    findings.chart(name, {name: {name: [1, 2], "ours": 3}}, unit="s", log=log, ours=("ours",),
                   limit=(name, 2.0))  # fmt: skip
    findings.chart(name, {name: [(1, [1, 2]), (5, 3)], "ours": [(1, 2.0)]}, unit="s", kind="line",
                   log=log, x=name)  # fmt: skip
    for chart in findings.charts:
        root = ElementTree.fromstring(draw(chart))
        words = [one.text for one in root.iter("{http://www.w3.org/2000/svg}text")]
        assert words.count(name) >= 2
        assert "ours" in words


def test_an_unknown_stage_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as found:
        bench.__main__.main(["nothing", "--output", str(tmp_path)])
    assert found.value.code == 2
