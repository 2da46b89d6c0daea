from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from formats_helpers import GOLDEN, ROOT, notes_of

import formats
from formats.__main__ import PRIVACY, main

FULL = str(GOLDEN / "valid" / "i8_every_column.hilum")
PLAIN = str(GOLDEN / "valid" / "f32_no_columns.hilum")
MULTI = str(GOLDEN / "valid" / "f16_multi_label_crossing_groups.hilum")
BROKEN = str(GOLDEN / "corrupt" / "feature_bit.hilum")
ALIEN = str(GOLDEN / "corrupt" / "text.hilum")


def test_inspect_tells_what_is_inside(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", FULL]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for text in (
        "rows           40 (1 withdrawn)",
        "12 x i8 a row",
        "golden, sha256 ",
        "block4 mean: features 0 to 5",
        "final max: features 6 to 11",
        "label, split, group, sample_key[16], source",
        "20 patients, no patient in two splits",
        "unknown, site-a",
        "2 images were not taken in",
        "For tests only",
        "ages (years)   0 to 90",
        PRIVACY,
    ):
        assert text in out, text
    table = [line.split() for line in out.splitlines()]
    # 20 groups of two rows: class = group % 3, split = group % 4; row 5 is withdrawn
    assert ["normal", "4", "(2)", "2", "(1)", "4", "(2)", "4", "(2)", "14", "(7)"] in table
    assert ["viral", "2", "(1)", "4", "(2)", "3", "(2)", "2", "(1)", "11", "(6)"] in table
    assert ["all", "10", "(5)", "10", "(5)", "9", "(5)", "10", "(5)", "39", "(20)"] in table


def test_inspect_json_agrees_with_the_container(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--json", FULL, PLAIN, MULTI]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["path"] for entry in lines] == [FULL, PLAIN, MULTI]
    for entry in lines:
        with formats.open_container(entry["path"]) as c:
            assert entry["n_rows"] == c.n_rows
            assert entry["uuid"] == c.uuid
            assert entry["size_bytes"] == Path(entry["path"]).stat().st_size
            assert [column["name"] for column in entry["columns"]] == list(c.columns)
            assert entry["classes"] == list(c.classes)
            for cell in entry["table"]:
                rows = c.rows(None if cell["split"] == "all" else cell["split"])
                if cell["class"] is not None:
                    index = c.classes.index(cell["class"])
                    of_class = c.labels[:, index] == 1 if c.multilabel else c.labels == index
                    rows = rows[of_class[rows]]
                assert cell["rows"] == len(rows)
                if c.groups is None:
                    assert cell["groups"] is None
                else:
                    assert cell["groups"] == len(set(c.groups[rows].tolist()))
    assert {len(entry["table"]) for entry in lines} == {20, 1, 15}


def test_inspect_goes_on_after_a_bad_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", ALIEN, PLAIN]) == 1
    out, err = capsys.readouterr()
    assert "starts like a text file" in err
    assert ALIEN in err
    assert "rows           5" in out
    assert main(["inspect", "--json", ALIEN, PLAIN]) == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["path"] == ALIEN and "text file" in first["error"]
    assert second["n_rows"] == 5


def test_notes_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("formats.notes.find_identity", lambda *_, **__: None)
    notes = notes_of(1, about={"title": "\x1b[31mred\x07"})
    formats.write_container(tmp_path / "x", [[1.0]], notes)
    assert main(["inspect", str(tmp_path / "x")]) == 0
    out = capsys.readouterr().out
    assert "?[31mred?" in out
    assert "\x1b" not in out


def test_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", FULL, PLAIN]) == 0
    out, err = capsys.readouterr()
    sizes = [Path(path).stat().st_size / 1000 for path in (FULL, PLAIN)]
    assert out.splitlines() == [
        f"{FULL}: ok, 40 rows, {sizes[0]:.1f} kB",
        f"{PLAIN}: ok, 5 rows, {sizes[1]:.1f} kB",
    ]
    assert err == ""
    assert main(["verify", "--quiet", FULL]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["verify", BROKEN, FULL, str(tmp_path / "gone.hilum")]) == 1
    out, err = capsys.readouterr()
    assert "rows 0 to 39" in err and BROKEN in err
    assert "gone.hilum: the file does not exist" in err
    assert "2 of 3 files are not fine" in err
    assert FULL in out and BROKEN not in out


@pytest.mark.parametrize("arguments", [[], ["inspect"], ["verify"], ["mend", "x"], ["--nonsense"]])
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: " in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"], prog="hilum")
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "hilum verify *.hilum" in out
    assert "exit status" in out
    assert "python -m formats" not in out


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("formats.container.Container.verify", interrupt)
    assert main(["verify", FULL]) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_as_a_program(tmp_path: Path) -> None:
    shutil.copy(FULL, tmp_path / "ä.hilum")
    for arguments, code in ((["verify", "ä.hilum"], 0), (["inspect", BROKEN], 0), (["x"], 2)):
        result = subprocess.run(
            [sys.executable, "-m", "formats", *arguments],
            cwd=tmp_path if arguments[0] == "verify" else ROOT,
            capture_output=True,
            check=False,
        )
        assert result.returncode == code, result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("shell", ["{0} | true", "{0} {1} {1} {1} | head -n 1", "{0} > /dev/full"])
def test_an_output_nobody_can_take_is_no_traceback(shell: str) -> None:
    golden = next((ROOT / "formats" / "golden" / "valid").glob("*.hilum"))
    command = f"{sys.executable} -m formats inspect {golden}"
    result = subprocess.run(
        ["/bin/sh", "-c", shell.format(command, golden)], cwd=ROOT, capture_output=True, check=False
    )
    assert b"Traceback" not in result.stderr
    assert b"Exception" not in result.stderr
