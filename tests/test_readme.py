"""The README is true word for word: its commands begin from nothing and its Python runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import engine
from engine.cli import COMMANDS
from engine.phantoms import draw_phantom, write_png


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text(encoding="utf-8")


def blocks(readme: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", readme, re.S)


def test_it_opens_with_one_sentence_and_two_commands_from_nothing(readme: str) -> None:
    title, sentence, *_ = [part for part in readme.split("\n\n") if part.strip()]
    assert title == "# Hilum"
    assert sentence.count(".") == 1
    first, second, *_ = blocks(readme, "sh")
    for command, end in ((first, "-m engine.demo"), (second, "-m pytest")):
        assert command.count("\n") == 1
        assert command.startswith("python3 -m venv .venv && ")
        assert command.strip().endswith(end)


def test_its_three_lines_of_python_run(
    readme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On phantoms: six patients, two findings."""
    for seed in range(6):
        finding = ("none", "lobar")[seed % 2]
        target = tmp_path / "xrays" / finding / f"{seed}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_png(draw_phantom(seed, finding, height=160, width=200), target)
    monkeypatch.chdir(tmp_path)
    code = blocks(readme, "python")[0]
    assert code.count("\n") == 3
    names: dict[str, object] = {"engine": engine}
    exec(code, names)
    assert names["head"].classes == ("lobar", "none")  # type: ignore[attr-defined]


def test_every_command_it_names_exists(readme: str) -> None:
    for name in re.findall(r"-m engine\.(\w+)", readme):
        assert name in COMMANDS
    for name in re.findall(r"`hilum (\w+)`", readme):
        assert name in COMMANDS
    for link in re.findall(r"\]\(([\w./]+)\)", readme):
        assert (Path(__file__).parents[1] / link).exists(), link
