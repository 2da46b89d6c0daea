from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from formats_helpers import GOLDEN, ROOT, notes_of, write_small

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
    # 20 groups of an image and a view of it, which is not counted: class = group % 3, split =
    # group % 4; row 5, a view, is withdrawn
    assert "19 of them are augmented views" in out
    assert ["normal", "2", "(2)", "1", "(1)", "2", "(2)", "2", "(2)", "7", "(7)"] in table
    assert ["viral", "1", "(1)", "2", "(2)", "2", "(2)", "1", "(1)", "6", "(6)"] in table
    assert ["all", "5", "(5)", "5", "(5)", "5", "(5)", "5", "(5)", "20", "(20)"] in table


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
                rows = c.rows(None if cell["split"] == "all" else cell["split"], views=False)
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
    monkeypatch.setattr("formats._identity.find_identity", lambda *_, **__: None)
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


# ---- merge, subset, withdraw, resplit, export, import ------------------------------------------


def text_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must succeed; returns what it printed."""
    assert main([str(argument) for argument in arguments]) == 0
    out, err = capsys.readouterr()
    assert "error" not in err
    return out


def test_merge_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.hilum"
    write_small(other, 6, 12)
    with formats.open_container(FULL) as container:
        notes = container.notes
        features = container.features
        formats.write_container(
            other,
            features[:6].astype(np.float32) + 200,
            {**notes, "n_refused": 0},
            dtype="i8",
            columns={"label": np.zeros(6, int), "group": np.arange(6)},
        )
    out = tmp_path / "m.hilum"
    text = text_of(capsys, "merge", FULL, other, "-o", out, "--seed", 1)
    assert text.startswith(f"{out}: 45 rows, 26 patients, ")
    assert "withdrawn rows left out: 1" in text
    first = out.read_bytes()
    assert (
        main(["merge", FULL, str(other), "-o", str(out), "--seed", "1", "--quiet", "--overwrite"])
        == 0
    )
    assert capsys.readouterr() == ("", "")
    assert out.read_bytes() == first
    assert main(["merge", FULL, str(other), "-o", str(out), "--without-splits", "--overwrite"]) == 0
    err = capsys.readouterr().err
    assert "note: i8 features were quantised anew" in err
    assert "note: other.hilum has no column age: filled with unknown" in err
    table = text_of(capsys, "inspect", out)
    assert "split" not in table.split("columns")[1].splitlines()[0]
    assert f"derived from   {formats.open_container(FULL).uuid}" in table
    assert main(["merge", FULL, PLAIN, "-o", str(out), "--overwrite"]) == 1
    err = capsys.readouterr().err
    assert "cannot be merged with" in err and PLAIN in err and FULL in err


def test_subset_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s.hilum"
    (tmp_path / "rows.txt").write_text("0\n1\n7\n")
    for arguments, n_rows in (
        (["--split", "train,test"], 20),
        (["--class", "normal,viral"], 25),
        (["--class", "normal", "--class", "viral"], 25),
        (["--rows", "0:10"], 9),
        (["--rows", ":"], 39),
        (["--rows", "1:20:2"], 9),
        (["--rows", "7"], 1),
        (["--rows", tmp_path / "rows.txt"], 3),
        (["--group", "1,2"], 4 - 1),
        (["--source", "site-a"], None),
        (["--class", "viral", "--drop-classes"], 11),
    ):
        text = text_of(capsys, "subset", FULL, "-o", out, "--overwrite", *arguments)
        with formats.open_container(out) as container:
            assert f"{out}: {container.n_rows} rows, " in text
            if n_rows is not None:
                assert container.n_rows == n_rows, arguments
    with formats.open_container(out) as container:
        assert container.classes == ("viral",)


def test_withdraw_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, patient = tmp_path / "a.hilum", tmp_path / "p.hilum"
    shutil.copy(FULL, path)
    text = text_of(capsys, "withdraw", path, "--group", 3, "-o", tmp_path / "w.hilum")
    assert "rows withdrawn: 2; patients: 1; rows were withdrawn before: 1" in text
    assert "Copies and backups of the old file still hold these rows." in text
    assert path.read_bytes() == Path(FULL).read_bytes()
    text_of(capsys, "subset", path, "--group", 4, "-o", patient)
    text = text_of(capsys, "withdraw", path, "--matching", patient, "--in-place")
    assert "rows withdrawn: 2; patients: 1" in text
    with formats.open_container(FULL) as old, formats.open_container(path) as new:
        assert set(old.rows()) - set(new.rows()) == set(np.flatnonzero(old.groups == 4))
    before = path.read_bytes()
    assert main(["withdraw", str(path), "--group", "4", "--in-place"]) == 1
    assert "withdrawn already" in capsys.readouterr().err
    assert path.read_bytes() == before
    (tmp_path / "a.hilum.sig").write_bytes(bytes(64))
    assert main(["withdraw", str(path), "--rows", "0", "--in-place", "--drop", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("warning: a.hilum.sig signs what was at this name before")
    with formats.open_container(path) as container:
        assert container.n_rows == 40 - 5


def test_resplit_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r.hilum"
    for fractions in ("60,20,20", "0.6,0.2,0.2"):
        text = text_of(
            capsys, "resplit", FULL, "-o", out, "--fractions", fractions, "--seed", 3, "--overwrite"
        )
        table = [line.split() for line in text.splitlines()]
        assert ["class,", "images", "(patients)", "train", "valid", "test", "all"] in table
        with formats.open_container(out) as container:
            assert container.group_clean
            expected = ["all"]
            for split in ("train", "valid", "test"):
                rows = container.rows(split, views=False)
                expected += [str(len(rows)), f"({len(set(container.groups[rows]))})"]
        assert [*expected, "20", "(20)"] in table


@pytest.mark.parametrize("ending", ["npz", "safetensors", "csv", "parquet"])
def test_export_and_import_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    table, again = tmp_path / f"t.{ending}", tmp_path / "b.hilum"
    text = text_of(capsys, "export", FULL, "-o", table)
    assert f"{table}: 40 rows, " in text and PRIVACY in text
    assert main(["export", FULL, "-o", str(table)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert text_of(capsys, "export", FULL, "-o", table, "--overwrite", "--quiet") == ""
    text = text_of(capsys, "import", table, "-o", again, "--keep-order")
    assert f"{again}: 40 rows, 12 x i8 a row, 20 patients, " in text
    with formats.open_container(FULL) as a, formats.open_container(again) as b:
        assert a.features.tobytes() == b.features.tobytes()
    text_of(capsys, "import", table, "-o", again, "--seed", 1, "--dtype", "f16", "--overwrite")
    assert "f16" in text_of(capsys, "inspect", again)


def test_import_of_a_strangers_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text("label,patient,f0,f1\nx,p,1,2\ny,q,3,4\n")
    assert main(["import", str(tmp_path / "t.csv"), "-o", str(tmp_path / "x.hilum")]) == 1
    assert "Give a JSON file (--notes)" in capsys.readouterr().err
    notes = {
        "backbone": {"name": "other", "sha256": "ab" * 32},
        "preprocessing": {"version": 1},
    }
    (tmp_path / "n.json").write_text(json.dumps(notes))
    text = text_of(
        capsys, "import", tmp_path / "t.csv", "-o", tmp_path / "x.hilum", "--notes",
        tmp_path / "n.json",
    )  # fmt: skip
    assert "2 rows, 2 x f32 a row, 2 patients" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["merge", FULL, "-o", "x"],
        ["merge", FULL, PLAIN],
        ["merge", FULL, PLAIN, "-o", "x", "--seed", "-1"],
        ["merge", FULL, PLAIN, "-o", "x", "--dtype", "f64"],
        ["subset", FULL, "-o", "x", "--split", "training"],
        ["subset", FULL, "-o", "x", "--rows", "0:4:0"],
        ["subset", FULL, "-o", "x", "--rows", "no such file"],
        ["subset", FULL, "-o", "x", "--rows", "-3"],
        ["withdraw", FULL, "-o", "x"],
        ["withdraw", FULL, "--group", "1"],
        ["withdraw", FULL, "--group", "1", "-o", "x", "--in-place"],
        ["resplit", FULL, "-o", "x", "--fractions", "70,20"],
        ["resplit", FULL, "-o", "x", "--fractions", "70,20,20"],
        ["resplit", FULL, "-o", "x", "--fractions", "nan,20,20"],
        ["resplit", FULL, "-o", "x", "--fractions", "120,-10,-10"],
        ["export", FULL],
        ["import", FULL],
    ],
)
def test_wrong_use_of_the_newer_commands(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["merge", "subset", "withdraw", "resplit", "export", "import", "sign", "keygen"]
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([command, "--help"], ["--help"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments, prog="hilum")
        assert caught.value.code == 0
        out = capsys.readouterr().out
        assert f"{'hilum ' if command in arguments else ''}{command}" in out
        assert "python -m formats" not in out


def test_verify_with_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    path = tmp_path / "a.hilum"
    shutil.copy(FULL, path)
    for name in ("site", "other"):
        formats.make_key_pair(tmp_path / f"{name}.pem")
    site, other = tmp_path / "site.pub.pem", tmp_path / "other.pub.pem"
    assert main(["verify", str(path), "--key", str(site)]) == 1
    assert "a.hilum" in capsys.readouterr().err
    formats.sign_container(path, tmp_path / "site.pem")
    assert "ok, 40 rows, 6.9 kB, signed by " in text_of(capsys, "verify", path, "--key", site)
    assert "signed by" in text_of(capsys, "verify", path, "--key", other, "--key", site)
    assert main(["verify", str(path), "--key", str(other)]) == 1
    capsys.readouterr()
    data = bytearray(path.read_bytes())
    data[4100] ^= 1
    path.write_bytes(data)
    assert main(["verify", str(path), "--key", str(site)]) == 1
    assert "rows 0 to" in capsys.readouterr().err
