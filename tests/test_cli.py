"""Commands from the outside: exit codes, messages with file and cure, nothing half-written."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from head_helpers import make_head
from PIL import Image

import engine
import formats
from engine import cli, evaluate, extract, predict, train
from engine.ood import fit_ood
from engine.phantoms import draw_phantom, write_dicom
from engine.prediction import Prediction
from engine.views import MAX_VIEWS
from engine.worker import MOST_VIEWS

Main = Callable[[list[str]], int]


def draw(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8)).astype(np.uint8)
    Image.fromarray(coarse).resize((120, 100), Image.Resampling.BICUBIC).save(path)
    return path


def files_in(folder: Path) -> list[str]:
    """What lies in a folder; notes of the results, on which nothing depends, do not count."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.name for path in found if ".hilum" not in path.parts)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty images of fifteen patients in three classes, five bad files, and a manifest."""
    folder = tmp_path_factory.mktemp("study")
    lines = ["file,label,patient,split"]
    for i in range(30):
        patient = i // 2
        draw(folder / f"{i:02}.png", i)
        split = ("train", "train", "valid", "test", "")[patient // 3]
        lines.append(f"{i:02}.png,{'abc'[patient % 3]},p{patient},{split}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def container(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("container") / "study.hilum"
    manifest = str(study / "labels.csv")
    assert extract.main(["--manifest", manifest, "-o", str(out), "--seed", "1", "--quiet"]) == 0
    return out


@pytest.fixture(scope="module")
def head(container: Path) -> Path:
    out = container.with_name("study.safetensors")
    assert train.main([str(container), "-o", str(out), "--quiet"]) == 0
    return out


def usage_error(main: Main, *arguments: str) -> int:
    """Exit code of a command line that argparse itself may refuse."""
    try:
        return main(list(arguments))
    except SystemExit as stop:
        return int(stop.code or 0)


# ---- The way through ---------------------------------------------------------------------------


def test_three_commands(
    container: Path, head: Path, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "m.json"
    out = tmp_path / "h.safetensors"
    assert train.main([str(container), "-o", str(out), "--cv", "3", "--json", str(figures)]) == 0
    assert "AUROC" in capsys.readouterr().out
    with formats.open_container(container) as opened:
        n_learned = len(opened.rows(["none", "train"]))
    found = json.loads(figures.read_text())
    assert found["n_rows"] == n_learned
    assert found["classes"] == ["a", "b", "c"]
    assert set(found["auroc"]) == {"a", "b", "c"}
    assert len(found["ci95"]["accuracy"]) == 2
    assert {"n_groups", "accuracy", "auroc_macro"} <= set(found)

    assert evaluate.main([str(head), str(container), "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())
    assert (found["split"], found["n_rows"]) == ("test", 6)

    results = tmp_path / "results"
    assert (
        predict.main([str(study), "--head", str(head), "--output-dir", str(results), "--quiet"])
        == 0
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()[-30:]]
    assert [line["status"] for line in lines] == ["ok"] * 30
    assert len(files_in(results)) == 30
    assert json.loads((results / "00.png.json").read_text()) == lines[0]


def test_same_seed_same_head_bytes(container: Path, tmp_path: Path) -> None:
    heads = [tmp_path / "a" / "h.safetensors", tmp_path / "b" / "h.safetensors"]
    for out in heads:
        out.parent.mkdir()
        assert train.main([str(container), "-o", str(out), "--cv", "3", "--quiet"]) == 0
    assert heads[0].read_bytes() == heads[1].read_bytes()


def test_training_never_loads_openvino(container: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from engine.train import main\n"
        "assert main([sys.argv[1], '-o', sys.argv[2], '--quiet']) == 0\n"
        "print([m for m in ('openvino', 'PIL', 'pydicom') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(container), str(tmp_path / "h.safetensors")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stdout.strip() == "[]"


def test_csv_table(head: Path, study: Path, tmp_path: Path, capsys: Any) -> None:
    images = [str(study / "00.png"), str(study / "labels.csv")]
    assert predict.main([*images, "--head", str(head), "--csv", "--quiet"]) == 1
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["status"] for row in rows] == ["ok", "error"]
    assert rows[0]["study:label"] in "abc"
    total = sum(float(rows[0][f"study:{name}"]) for name in "abc")
    assert total == pytest.approx(1.0)
    assert rows[1]["study:label"] == ""
    assert (
        predict.main(
            [*images, "--head", str(head), "--csv", "--output-dir", str(tmp_path), "--quiet"]
        )
        == 1
    )
    assert files_in(tmp_path) == ["00.png.json", "labels.csv.json", "predictions.csv"]
    text = (tmp_path / "predictions.csv").read_text()
    assert next(csv.DictReader(io.StringIO(text)))["status"] == "ok"


def test_a_class_called_label_has_a_column_of_its_own(
    head: Path, study: Path, tmp_path: Path, capsys: Any
) -> None:
    named = dataclasses.replace(engine.load_head(head), classes=("label", "b", "c"))
    named.save(tmp_path / "named.safetensors")
    arguments = [str(study / "00.png"), "--head", str(tmp_path / "named.safetensors"), "--quiet"]
    assert predict.main(arguments) == 0
    (answer,) = json.loads(capsys.readouterr().out)["heads"].values()
    assert predict.main([*arguments, "--csv"]) == 0
    header, row = csv.reader(io.StringIO(capsys.readouterr().out))
    at = header.index("study:label")
    assert row[at : at + 4] == [answer["label"], *map(str, answer["probabilities"].values())]


def test_equal_names_keep_their_own_results(
    head: Path, study: Path, tmp_path: Path, capsys: Any
) -> None:
    images = [tmp_path / "x" / "i.png", tmp_path / "y" / "i.png"]
    for image, name in zip(images, ("00.png", "01.png"), strict=True):
        image.parent.mkdir()
        shutil.copy(study / name, image)
    arguments = ["--head", str(head), "--output-dir", str(tmp_path / "out"), "--quiet"]
    for _ in range(2):  # the second run writes the same files again
        for image in images:
            assert predict.main([str(image), *arguments]) == 0
    texts = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*")
             if path.is_file()]  # fmt: skip
    assert sorted(text["input"] for text in texts) == sorted(map(str, images))


def test_a_program_may_wait_for_each_answer(head: Path, study: Path) -> None:
    """Paths are answered one by one: reading ahead would leave both sides waiting."""
    process = subprocess.Popen(
        [sys.executable, "-m", "engine.predict", "-", "--head", str(head), "--quiet"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    alarm = threading.Timer(60, process.kill)  # a missing answer would block this test for ever
    alarm.start()
    for name in ("00.png", "01.png", "02.png"):
        process.stdin.write(f"{study / name}\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["input"] == str(study / name)
    process.stdin.close()
    assert process.wait(60) == 0
    alarm.cancel()
    process.stdout.close()


def test_names_of_any_bytes_and_length(head: Path, study: Path, tmp_path: Path) -> None:
    names = [
        b"a" * 248 + b".png",
        b"b" * 248 + b".png",
        b"\xff\xfe.png",
        b"predictions.csv",
        b"n l.png",
    ]
    for name in names:
        shutil.copy(study / "00.png", os.path.join(os.fsencode(tmp_path), name))  # noqa: PTH118
    (tmp_path / "out" / "n l.png.json").mkdir(parents=True)
    command = [sys.executable, "-m", "engine.predict", "-", "--head", str(head), "--quiet",
               "--output-dir", str(tmp_path / "out"), "--csv"]  # fmt: skip
    paths = b"\n".join(os.path.join(os.fsencode(tmp_path), name) for name in names)  # noqa: PTH118
    result = subprocess.run(command, input=paths, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == len(names)
    written = [path for path in (tmp_path / "out").iterdir() if path.is_file()]
    assert len(written) == len(names) + 1  # and the table
    table = (tmp_path / "out" / "predictions.csv").read_text(encoding="utf-8")
    assert len(table.splitlines()) == len(names) + 1


def test_an_output_never_replaces_an_input(
    container: Path, head: Path, study: Path, tmp_path: Path, capsys: Any
) -> None:
    mine = tmp_path / "c.hilum"
    shutil.copy(container, mine)
    linked = tmp_path / "link.hilum"
    linked.hardlink_to(mine)
    manifest = tmp_path / "m.csv"
    shutil.copy(study / "labels.csv", manifest)
    image = tmp_path / "z.png"
    shutil.copy(study / "00.png", image)
    before = {path: path.read_bytes() for path in (mine, manifest, image)}
    other = str(tmp_path / "h.safetensors")
    commands: list[tuple[Main, list[str]]] = [
        (train.main, [str(mine), "-o", str(mine)]),
        (train.main, [str(mine), "-o", str(linked)]),
        (train.main, [str(mine), "-o", other, "--json", other]),
        (train.main, [str(mine), "-o", other, "--json", str(mine)]),
        (evaluate.main, [str(head), str(mine), "--json", str(mine)]),
        (extract.main, [str(study / "01.png"), str(image), "-o", str(image)]),
        (extract.main, ["--manifest", str(manifest), "-o", str(manifest)]),
    ]
    for main, arguments in commands:
        assert usage_error(main, *arguments, "--quiet") == 2
        assert "name another" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
    # A picture that is not named as an input is no container either.
    bystander = tmp_path / "y.png"
    shutil.copy(study / "02.png", bystander)
    assert extract.main([str(image), "-o", str(bystander), "--quiet"]) == 1
    assert bystander.read_bytes() == (study / "02.png").read_bytes()


def test_the_table_is_out_row_by_row(head: Path, study: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "engine.predict", "-", "--head", str(head), "--quiet", "--csv"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    alarm = threading.Timer(60, process.kill)
    alarm.start()
    process.stdin.write(f"{study / 'labels.csv'}\n")
    process.stdin.flush()
    header = process.stdout.readline()
    assert (
        header == "input,status,reason,study:label,study:a,study:b,study:c,backbone,milliseconds\n"
    )
    assert ",error," in process.stdout.readline()
    process.stdin.close()
    assert process.wait(60) == 1
    alarm.cancel()
    process.stdout.close()


def test_paths_from_standard_input(
    head: Path, study: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{study / '00.png'}\n\n{study / '01.png'}\r\n"))
    assert predict.main(["-", "--head", str(head), "--quiet"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert usage_error(predict.main, "-", str(study), "--head", str(head)) == 2


def test_dispatcher(container: Path, capsys: Any) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"hilum {engine.__version__}\n"
    assert cli.main(["verify", "--quiet", str(container)]) == 0
    assert cli.main(["inspect", str(container)]) == 0
    assert "15 patients" in capsys.readouterr().out
    assert cli.main(["--help"]) == 0
    assert "extract" in capsys.readouterr().out
    assert cli.main([]) == 2
    assert cli.main(["trian"]) == 2
    assert "no command 'trian'" in capsys.readouterr().err


def test_the_program_hilum_leaves_as_fast_as_the_module(study: Path) -> None:
    """It does not take the network apart: what is to be done at the end is not done."""
    code = (
        "import atexit, sys\nfrom engine import cli\n"
        "atexit.register(lambda: print('taken apart'))\nsys.exit(cli.main())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "predict", str(study / "none.png"), "--quiet"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert json.loads(result.stdout)["status"] == "error"


def test_an_evaluation_leaves_at_once(container: Path, head: Path) -> None:
    """Taking numba apart would be a sixth of it."""
    code = (
        "import atexit, runpy, sys\natexit.register(lambda: print('taken apart'))\n"
        "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
    )
    out = container.with_name("again.safetensors")
    for module, arguments in (
        ("engine.evaluate", [str(head), str(container)]),
        ("engine.train", [str(container), "-o", str(out)]),
    ):
        result = subprocess.run(
            [sys.executable, "-c", code, module, *arguments, "--quiet"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert "taken apart" not in result.stdout
    assert out.exists()


@pytest.mark.parametrize("command", ["extract", "train", "evaluate", "predict", "demo"])
def test_help_teaches(command: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", f"engine.{command}", "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "exit codes:" in result.stdout or command == "demo"
    assert f"python -m engine.{command}" in result.stdout
    assert "esearch use only" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100
    assert result.stderr == ""


# ---- Predicting with more than one head --------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with heads that need no training, and a chain of two of them."""
    folder = tmp_path_factory.mktemp("made")
    taps = "block4:mean3x3"
    with engine.load_backbone("efficientnet-lite0", streams=1, taps=["block4"]) as backbone:
        for seed, name in enumerate(("one", "two")):
            head = make_head(taps, backbone=backbone, name=name, seed=seed)
            head.save(folder / f"{name}.safetensors")
        # Looks at nothing but how far all features together are from their mean: refuses all.
        rows = np.random.default_rng(0).normal(0, 1e-3, (40, 360)).astype(np.float32)
        ood = fit_ood(rows, np.arange(40))
        strict = make_head(taps, backbone=backbone, name="strict", ood=ood)
        strict.save(folder / "strict.safetensors")
    (folder / "chain.toml").write_text(
        '[[step]]\nname = "first"\nhead = "one.safetensors"\n'
        '[[step]]\nname = "second"\nhead = "strict.safetensors"\n'
    )
    return folder


def answers_of(arguments: list[str], capsys: Any, code: int) -> list[dict[str, Any]]:
    assert predict.main([*arguments, "--quiet"]) == code
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_heads_refuse_one_by_one(made: Path, study: Path, capsys: Any) -> None:
    image, strict = str(study / "00.png"), ["--head", str(made / "strict.safetensors")]
    (found,) = answers_of([image, *strict], capsys, 1)
    assert (found["status"], found["reason"].partition(":")[0]) == (
        "refused",
        "out_of_distribution",
    )
    both = [image, *strict, "--head", str(made / "one.safetensors")]
    (found,) = answers_of(both, capsys, 0)
    assert "refused" in found["heads"]["strict"]
    assert "label" in found["heads"]["one"]
    (found,) = answers_of([*both, "--allow", "out_of_distribution"], capsys, 0)
    assert found["allowed"] == ["out_of_distribution"]
    assert "label" in found["heads"]["strict"]
    assert predict.main([*both, "--csv", "--quiet"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["strict refused"], row["strict:a"]) == ("out_of_distribution", "")
    assert float(row["strict ood"]) > 1
    assert row["one:label"] in "ab"
    assert "one refused" not in row
    assert usage_error(predict.main, image, "--allow", "no_pixels") == 2
    assert "out_of_distribution" in capsys.readouterr().err


def test_a_chain_from_the_command_line(made: Path, study: Path, capsys: Any) -> None:
    arguments = [
        str(study / "00.png"),
        str(study / "none.png"),
        "--chain",
        str(made / "chain.toml"),
    ]
    found, missing = answers_of([*arguments, "--views", "2"], capsys, 1)
    assert (found["status"], found["views"]) == ("ok", 2)
    assert [step["outcome"] for step in found["chain"]["steps"]] == ["answered", "refused"]
    assert found["chain"]["answer"]["complete"] is False
    assert (missing["status"], missing["chain"]) == ("error", None)
    assert predict.main([*arguments, "--csv", "--quiet"]) == 1
    row, missing = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["step first"], row["step second"]) == ("answered", "refused")
    assert (row["chain step"], row["chain complete"]) == ("first", "no")
    assert row["chain label"] == row["one:label"]
    assert row["chain probability"] == row[f"one:{row['one:label']}"]
    assert (missing["step first"], missing["chain step"]) == ("", "")


def test_a_chain_that_cannot_be_followed_writes_nothing(
    made: Path, study: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    image = str(study / "00.png")
    chain = tmp_path / "chain.toml"
    step = '[[step]]\nname = "a"\nhead = "none.safetensors"\n'
    for text in (step, step + 'when = { step = "a" }\n', "[chain", ""):
        chain.write_text(text)
        assert predict.main([image, "--chain", str(chain), "--output-dir", str(out)]) == 2
        assert f"error: {chain}: " in capsys.readouterr().err
    other = made / "one.safetensors"
    lite2 = dataclasses.replace(
        engine.load_head(other), name="lite2", backbone="efficientnet-lite2"
    )
    lite2.save(tmp_path / "lite2.safetensors")
    chain.write_text(
        f"[[step]]\nname = 'a'\nhead = '{other}'\n[[step]]\nname = 'b'\nhead = 'lite2.safetensors'"
    )
    assert predict.main([image, "--chain", str(chain), "--output-dir", str(out)]) == 2
    assert "'a' and 'b' do not share one backbone pass: backbone eff" in capsys.readouterr().err
    heads = ["--head", str(other), "--head", str(tmp_path / "lite2.safetensors")]
    assert predict.main([image, *heads, "--output-dir", str(out)]) == 1
    for wrong in (
        ["--chain", str(tmp_path / "none.toml")],
        ["--chain", str(made / "chain.toml"), "--head", str(other)],
    ):
        assert usage_error(predict.main, image, "--output-dir", str(out), *wrong) == 2
    assert not out.exists()


def test_heatmaps_lie_beside_their_results(
    made: Path, study: Path, tmp_path: Path, capsys: Any
) -> None:
    images = [tmp_path / "x" / "i.png", tmp_path / "y" / "i.png", tmp_path / "y" / "j.png"]
    for image in images[:2]:
        image.parent.mkdir()
        shutil.copy(study / "00.png", image)
    Image.new("L", (100, 100), 7).save(images[2])  # blank: refused
    out = tmp_path / "out"
    heads = ["--head", str(made / "one.safetensors"), "--head", str(made / "strict.safetensors")]
    arguments = [*map(str, images), *heads, "--heatmap", "--output-dir", str(out)]
    for stored in (False, True):
        found = answers_of(arguments, capsys, 1)
        assert [answer.pop("stored", False) for answer in found] == [stored] * 3
        assert [answer["status"] for answer in found] == ["ok", "ok", "refused"]
        assert found[0]["heatmap"] == "i.png.heatmap.png"
        assert found[1]["heatmap"] not in (None, found[0]["heatmap"])
        assert found[2]["heatmap"] is None
        for answer in found[:2]:
            with Image.open(out / answer["heatmap"]) as drawn:
                assert drawn.mode == "RGB"
                assert drawn.info == {}
            name = answer["heatmap"].removesuffix(".heatmap.png")
            assert json.loads((out / f"{name}.json").read_text()) == answer
        assert len(files_in(out)) == 5
    # The picture at one of the paths is another now, and refused: no old drawing is left beside it.
    shutil.copy(images[2], images[1])
    assert answers_of(arguments, capsys, 1)[1]["heatmap"] is None
    assert len(files_in(out)) == 4
    assert usage_error(predict.main, str(images[0]), *heads, "--heatmap") == 2
    assert "--output-dir" in capsys.readouterr().err
    # Our own drawings are no X-rays, should results lie where images are looked for.
    shutil.copy(study / "00.png", out)
    assert len(answers_of([str(out), *heads], capsys, 0)) == 1


def test_a_picture_that_comes_again(made: Path, study: Path, tmp_path: Path, capsys: Any) -> None:
    out = ["--output-dir", str(tmp_path / "out")]
    one = [*out, "--head", str(made / "one.safetensors")]
    image = tmp_path / "a.dcm"
    write_dicom(draw_phantom(1, "none", height=128, width=128), image)
    copy = shutil.copy(image, tmp_path / "b.dcm")
    (first,) = answers_of([str(image), *one], capsys, 0)
    assert "stored" not in first
    (again,) = answers_of([str(image), *one], capsys, 0)
    assert again == first | {"stored": True}
    (other,) = answers_of([str(copy), *one], capsys, 0)
    assert other == again | {"input": str(copy)}
    assert json.loads((tmp_path / "out" / "b.dcm.json").read_text()) == other
    (forced,) = answers_of([str(image), *one, "--force"], capsys, 0)
    assert forced["key"] == first["key"]
    assert "stored" not in forced
    (two,) = answers_of([str(image), *out, "--head", str(made / "two.safetensors")], capsys, 0)
    assert two["key"] != first["key"]
    assert set(two["heads"]) == {"two"}
    # Another picture under an old name, and errors, which are never stored.
    write_dicom(draw_phantom(2, "lobar", height=128, width=128), image)
    (new,) = answers_of([str(image), *one], capsys, 0)
    assert new["key"] not in (first["key"], two["key"])
    missing = str(tmp_path / "none.dcm")
    for _ in range(2):
        (error,) = answers_of([missing, *one], capsys, 1)
        assert not {"stored", "key"} & set(error)
    # Many at once, from a table too.
    found = answers_of([str(image), str(copy), *one], capsys, 0)
    assert [one.get("stored") for one in found] == [True, True]
    assert answers_of([str(image), str(copy), *one, "--csv"], capsys, 0) == found
    text = (tmp_path / "out" / "predictions.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["input"] for row in rows] == [str(image), str(copy)]


def test_options_that_need_a_folder_or_a_spool(study: Path, tmp_path: Path, capsys: Any) -> None:
    image = str(study / "00.png")
    for arguments, advice in (
        (["--sr"], "give --output-dir"),
        (["--force"], "give --output-dir"),
        (["--no-wait"], "is for --spool"),
        (["--spool", str(tmp_path / "s"), "--heatmap", "--output-dir", "o"], "engine.serve"),
        (["--spool", str(tmp_path / "s"), "--allow", "blank"], "engine.serve"),
        (["--engines", "-1"], "whole number"),
        (["--output-dir", "o", "--sr", "--store", "nowhere"], "AET@host:port"),
    ):
        assert usage_error(predict.main, image, *arguments) == 2
        assert advice in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_handing_over_loads_nothing(study: Path, tmp_path: Path) -> None:
    """Twenty hooks at once hand over and are gone."""
    (tmp_path / "spool").mkdir(mode=0o700)
    code = (
        "import sys; from engine.predict import main\n"
        "assert main([sys.argv[1], '--spool', sys.argv[2], '--no-wait']) == 0\n"
        "heavy = ('numpy', 'openvino', 'cffi', 'PIL', 'pydicom', 'tqdm', 'numba', 'hashlib')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(study / "00.png"), str(tmp_path / "spool")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    job, loaded = result.stdout.splitlines()
    assert json.loads(job)["job"]
    assert loaded == "[]"


def test_a_long_run_gives_way(
    made: Path, study: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Between two pictures, whoever waits gets the slot; nothing is left out or done twice."""
    asked, gave = iter([False, True, False, True] + [False] * 99), []
    monkeypatch.setattr("engine.slots.EngineSlot.wanted", lambda _slot: next(asked))
    monkeypatch.setattr("engine.slots.EngineSlot.give_way", lambda _slot: gave.append(1))
    images = sorted(str(path) for path in study.glob("0*.png"))
    found = answers_of([*images, "--head", str(made / "one.safetensors")], capsys, 0)
    assert [one["input"] for one in found] == images
    assert len(gave) == 3


@pytest.mark.parametrize("views", ["0", "33", "x"])
def test_a_number_of_views_that_makes_no_sense(study: Path, views: str, capsys: Any) -> None:
    assert usage_error(predict.main, str(study / "00.png"), "--views", views) == 2
    assert "from 1 to 32" in capsys.readouterr().err
    assert MOST_VIEWS == MAX_VIEWS


def test_views_of_a_head_that_never_saw_any(made: Path, study: Path, capsys: Any) -> None:
    head = ["--head", str(made / "one.safetensors")]
    assert predict.main([str(study / "00.png"), *head, "--views", "1"]) == 0
    assert "one: was trained without views" in capsys.readouterr().err
    assert predict.main([str(study / "00.png"), *head]) == 0
    assert "without views" not in capsys.readouterr().err


# ---- Bad input ---------------------------------------------------------------------------------


@pytest.fixture
def bad_files(study: Path, tmp_path: Path) -> Path:
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset

    folder = tmp_path / "bad"
    draw(folder / "good.png", 5)
    (folder / "letter.jpg").write_text("Dear colleague, thank you for the kind referral")
    (folder / "zero.png").touch()
    (folder / "cut.png").write_bytes((study / "00.png").read_bytes()[:150])
    shutil.copy(study / "01.png", folder / "renamed.dcm")  # readable: the content decides
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    report = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    report.SOPClassUID, report.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3"
    report.Modality = "CR"
    report.save_as(folder / "nopixels.dcm", enforce_file_format=True)
    return folder


def test_bad_images_are_named_and_the_others_done(
    bad_files: Path, head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o.hilum"
    assert extract.main([str(bad_files), "-o", str(out)]) == 1
    captured = capsys.readouterr()
    for name in ("letter.jpg", "zero.png", "cut.png", "nopixels.dcm"):
        assert f"left out: {bad_files / name}: " in captured.err
    assert "4 of 6 images were left out" in captured.err
    with formats.open_container(out) as container:
        assert container.n_rows == 2

    assert predict.main([str(bad_files), "--head", str(head), "--quiet"]) == 1
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    statuses = {Path(answer["input"]).name: answer["status"] for answer in answers}
    assert statuses == {
        "good.png": "ok",
        "renamed.dcm": "ok",
        "letter.jpg": "error",
        "zero.png": "error",
        "cut.png": "error",
        "nopixels.dcm": "refused",
    }


def test_words_that_name_nothing(container: Path, study: Path, tmp_path: Path, capsys: Any) -> None:
    image = str(study / "00.png")
    (tmp_path / "file").touch()
    for main, arguments in (
        (extract.main, [image, "-o", ""]),
        (extract.main, [image, "-o", "."]),
        (extract.main, [image, "-o", str(tmp_path)]),
        (extract.main, [image, "-o", str(tmp_path / "no" / "o.hilum")]),
        (extract.main, [image, "-o", str(tmp_path / "o.hilum"), "--seed", "-1"]),
        (extract.main, [image, "-o", str(tmp_path / "o.hilum"), "--threads", "1000000"]),
        (extract.main, [image, "-o", str(tmp_path / "o.hilum"), "--pooling", ""]),
        (extract.main, [image, "-o", str(tmp_path / "o.hilum"), "--taps", "block4:median"]),
        (train.main, [str(container), "-o", ""]),
        (train.main, [str(container), "-o", str(tmp_path)]),
        (train.main, [str(container), "-o", str(tmp_path / "h"), "--json", str(tmp_path)]),
        (train.main, [str(container / "x"), "-o", str(tmp_path / "h")]),
        (train.main, [str(container), "-o", str(tmp_path / "h"), "--seed", "x"]),
        (train.main, [str(container), "-o", str(tmp_path / "h"), "--hidden", "0"]),
        (train.main, [str(container), "-o", str(tmp_path / "h"), "--repeats", "2"]),
        (train.main, [str(container), "-o", str(tmp_path / "h"), "--refusal-rate", "0"]),
        (train.main, [str(container), "-o", str(tmp_path / "h"), "--name", "a\nb"]),
        (train.main, [str(container), "-o", str(tmp_path / "h"), "--name", "\u202ea"]),
        (train.main, [str(container), "-o", str(tmp_path / "h"), "--name", " "]),
        (evaluate.main, ["\0", str(container)]),
        (predict.main, [image, "--output-dir", str(tmp_path / "file")]),
    ):
        assert usage_error(main, *arguments) == 2, arguments
        assert "error: " in capsys.readouterr().err
    assert files_in(tmp_path) == ["file"]


def test_links_and_names_that_lead_nowhere(
    head: Path, study: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(study / "00.png", tmp_path / "in")
    (tmp_path / "in" / "loop.png").symlink_to("loop.png")
    (tmp_path / "in" / "gone.png").symlink_to("nowhere.png")
    arguments = [str(tmp_path / "in"), "x" * 300, "--head", str(head), "--quiet"]
    assert predict.main(arguments) == 1
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["status"] for answer in answers] == ["ok", "error"]


@pytest.mark.parametrize(
    "table",
    [
        "file,label,patient,split\n00.png,a,p,train\n01.png,b,p,test\n",
        "file,label\n00.png,2020-01-02\n01.png,b\n",
    ],
)
def test_a_table_that_contradicts_itself_is_usage(
    study: Path, tmp_path: Path, capsys: Any, table: str
) -> None:
    for name in ("00.png", "01.png"):
        shutil.copy(study / name, tmp_path)
    manifest = tmp_path / "m.csv"
    manifest.write_text(table)
    out = tmp_path / "o.hilum"
    assert extract.main(["--manifest", str(manifest), "-o", str(out)]) == 2
    assert str(manifest) in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("main", [extract.main, predict.main])
def test_a_folder_with_nothing_in_it(main: Main, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "empty").mkdir()
    arguments = ["-o", str(tmp_path / "o.hilum")] if main is extract.main else []
    assert usage_error(main, str(tmp_path / "empty"), *arguments) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "empty") in error
    assert "DICOM" in error
    assert files_in(tmp_path) == []


def test_manifest_with_missing_files_and_misspelt_columns(
    study: Path, tmp_path: Path, capsys: Any
) -> None:
    draw(tmp_path / "a.png", 1)
    manifest = tmp_path / "m.csv"
    out = tmp_path / "o.hilum"
    manifest.write_text("file,label\na.png,x\nmissing.png,y\n")
    assert extract.main(["--manifest", str(manifest), "-o", str(out)]) == 1
    assert "missing.png: no such file" in capsys.readouterr().err
    assert out.exists()
    out.unlink()
    manifest.write_text("file,lable\na.png,x\n")
    assert extract.main(["--manifest", str(manifest), "-o", str(out)]) == 2
    assert "did you mean 'label'?" in capsys.readouterr().err
    assert usage_error(extract.main, "-o", str(out)) == 2
    assert usage_error(extract.main, str(study), "-o", str(out), "--backbone", "resnet") == 2
    assert "efficientnet-lite0" in capsys.readouterr().err
    assert files_in(tmp_path) == ["a.png", "m.csv"]


def test_a_class_with_one_patient(tmp_path: Path, capsys: Any) -> None:
    lines = ["file,label,patient"]
    for i in range(9):
        draw(tmp_path / f"{i}.png", i)
        lines.append(f"{i}.png,{'rare' if i == 0 else 'common'},{i}")
    (tmp_path / "m.csv").write_text("\n".join(lines))
    out = tmp_path / "o.hilum"
    arguments = ["--manifest", str(tmp_path / "m.csv"), "-o", str(out), "--quiet"]
    assert extract.main(arguments) == 0
    head = tmp_path / "h.safetensors"
    assert train.main([str(out), "-o", str(head), "--cv", "5"]) == 1
    error = capsys.readouterr().err
    assert "rare" in error
    assert "o.hilum" in error
    assert not head.exists()


def test_a_container_cut_anywhere(container: Path, tmp_path: Path, capsys: Any) -> None:
    data = container.read_bytes()
    cut = tmp_path / "cut.hilum"
    head = tmp_path / "h.safetensors"
    for size in (0, 7, 4095, 4096, len(data) // 2, len(data) - 1):
        cut.write_bytes(data[:size])
        assert train.main([str(cut), "-o", str(head)]) == 1
        assert str(cut) in capsys.readouterr().err
    assert files_in(tmp_path) == ["cut.hilum"]


def test_a_head_for_another_backbone(
    container: Path, head: Path, study: Path, tmp_path: Path, capsys: Any
) -> None:
    other = tmp_path / "other.hilum"
    manifest = str(study / "labels.csv")
    arguments = ["--manifest", manifest, "-o", str(other), "--quiet"]
    assert extract.main([*arguments, "--backbone", "efficientnet-lite2"]) == 0
    assert evaluate.main([str(head), str(other)]) == 1
    assert "differ in backbone" in capsys.readouterr().err
    out = tmp_path / "h2.safetensors"
    assert train.main([str(container), str(other), "-o", str(out)]) == 1
    assert "differ in backbone" in capsys.readouterr().err
    assert not out.exists()
    assert train.main([str(other), "-o", str(out), "--quiet"]) == 0
    both = [str(study / "00.png"), "--head", str(head), "--head", str(out)]
    assert predict.main([*both, "--quiet"]) == 1
    captured = capsys.readouterr()
    assert "do not share one backbone pass" in captured.err
    assert captured.out == ""


def test_files_of_the_wrong_kind(container: Path, head: Path, tmp_path: Path, capsys: Any) -> None:
    out = str(tmp_path / "h.safetensors")
    assert train.main([str(head), "-o", out]) == 1
    assert str(head) in capsys.readouterr().err
    assert evaluate.main([str(container), str(container)]) == 1
    assert str(container) in capsys.readouterr().err
    for arguments in ([str(tmp_path / "none.hilum"), "-o", out], [str(container), "-o", "/no/h"]):
        assert usage_error(train.main, *arguments) == 2
    assert usage_error(train.main, str(container), "-o", out, "--cv", "1") == 2
    assert usage_error(predict.main, "x.png", "--head", str(tmp_path / "none")) == 2
    assert files_in(tmp_path) == []


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a small tmpfs with the options given; skips where that is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = []

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if (
            shutil.which("mount") is None
            or subprocess.run(command, capture_output=True, check=False).returncode != 0
        ):
            pytest.skip("needs the right to mount a small tmpfs")
        done.append(folder)
        return folder

    yield mount
    for made in done:
        subprocess.run(["umount", str(made)], check=True)


def test_a_read_only_output_folder(
    container: Path, head: Path, study: Path, mounted: Callable[[str], Path], capsys: Any
) -> None:
    folder = mounted("ro,size=32k")
    out = [str(folder / "o.hilum"), str(folder / "h.safetensors"), str(folder / "results")]
    commands: list[tuple[Main, list[str]]] = [
        (extract.main, [str(study), "-o", out[0]]),
        (train.main, [str(container), "-o", out[1]]),
        (predict.main, [str(study / "00.png"), "--head", str(head), "--output-dir", out[2]]),
        (predict.main, [str(study / "00.png"), "--head", str(head), "--output-dir", str(folder)]),
    ]
    for main, arguments in commands:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert str(folder) in error
        assert "read-only" in error.lower()
    assert files_in(folder) == []


def test_a_full_disk(
    container: Path, head: Path, study: Path, mounted: Callable[[str], Path], capsys: Any
) -> None:
    small_disk = mounted("size=32k")
    (small_disk / "ballast").write_bytes(bytes(24 << 10))
    out = [str(small_disk / "o.hilum"), str(small_disk / "h.safetensors")]
    assert extract.main([str(study), "-o", out[0]]) == 3
    assert "disk is full" in capsys.readouterr().err
    assert train.main([str(container), "-o", out[1]]) == 3
    assert "disk is full" in capsys.readouterr().err
    command = [str(study), "--head", str(head), "--output-dir", str(small_disk)]
    assert predict.main([*command, "--quiet"]) == 3
    assert "disk is full" in capsys.readouterr().err
    for path in small_disk.glob("*.json"):
        assert json.loads(path.read_text())["status"] == "ok"  # whole, or not there
    assert not [name for name in files_in(small_disk) if not name.endswith(("ballast", ".json"))]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_extraction_keeps_its_rows_or_leaves_nothing(
    study: Path, tmp_path: Path, stop: int
) -> None:
    """The list of images is long enough for the signal to meet the work itself."""
    lines = ["file"]
    for i in range(1500):
        image = tmp_path / "in" / f"{i}.png"
        image.parent.mkdir(exist_ok=True)
        shutil.copy(study / f"{i % 30:02}.png", image)
        lines.append(f"in/{i}.png")
    (tmp_path / "m.csv").write_text("\n".join(lines))
    out = tmp_path / "out" / "o.hilum"
    out.parent.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "engine.extract", "--manifest", str(tmp_path / "m.csv"),
         "-o", str(out)], stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    part = out.with_name("o.hilum.part")
    deadline = time.monotonic() + 60
    while not part.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert part.exists()
    process.send_signal(stop)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    left = files_in(out.parent)
    if left == ["o.hilum.part"]:
        # it was opened, and not yet known to be open: there is nothing in it
        assert part.stat().st_size == 0
    elif left:
        assert left == ["o.hilum.part", "o.hilum.part.journal"]
        assert "are kept in" in errors
        assert "--resume" in errors
    else:
        assert "nothing half-written was left behind" in errors


def test_a_reader_that_goes_away(head: Path, study: Path) -> None:
    result = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m engine.predict {study} --head {head} --quiet"
         " | head -n 1"], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert len(result.stdout.splitlines()) == 1
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr


def test_extract_keeps_the_rows_of_a_run_that_was_stopped(study: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.hilum", tmp_path / "o.hilum"
    assert extract.main([str(study), "-o", str(whole), "--seed", "2", "--quiet"]) == 0
    command = [sys.executable, "-m", "engine.extract", str(study), "-o", str(out)]
    command += ["--seed", "2"]
    code = (
        "import os, signal, sys\n"
        "from engine import extract, features\n"
        "work = features._append\n"
        "def append(writer, *rest):\n"
        "    result = work(writer, *rest)\n"
        "    if writer.n_items >= 16: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return result\n"
        "features._append = append\n"
        "sys.exit(extract.main(sys.argv[1:]))\n"
    )
    stopped = subprocess.run(
        [sys.executable, "-c", code, *command[3:]], capture_output=True, text=True, check=False
    )
    assert stopped.returncode == 130, stopped.stderr
    assert "16 rows of 16 of 30 images are kept in" in stopped.stderr
    assert "--resume" in stopped.stderr

    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "holds 16 rows of a run that was not finished" in refused.stderr
    other = subprocess.run(
        [*command[:-1], "3", "--resume"], capture_output=True, text=True, check=False
    )
    assert other.returncode == 2
    assert "another seed" in other.stderr
    resumed = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed behind 16 images" in resumed.stdout
    assert out.read_bytes() == whole.read_bytes()
    assert not out.with_name("o.hilum.part").exists()


def test_a_secret_that_is_too_short_is_refused(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("short\n")
    with pytest.raises(SystemExit, match="2"):
        extract.main([str(study), "-o", str(tmp_path / "o"), "--sample-keys", str(secret)])
    assert "holds 5 bytes, expected 16 or more" in capsys.readouterr().err


def test_figures_replace_nothing_but_json(
    container: Path, head: Path, tmp_path: Path, capsys: Any
) -> None:
    out = str(tmp_path / "h.safetensors")
    for kept in (b"-----BEGIN PRIVATE KEY-----", container.read_bytes()):
        victim = tmp_path / "figures"
        victim.write_bytes(kept)
        for main, arguments in (
            (train.main, [str(container), "-o", out]),
            (evaluate.main, [str(head), str(container)]),
        ):
            assert usage_error(main, *arguments, "--json", str(victim)) == 2
            assert "is no JSON" in capsys.readouterr().err
            assert victim.read_bytes() == kept
    victim.write_text(' {"old": 1}')
    assert evaluate.main([str(head), str(container), "--json", str(victim), "--split", "test"]) == 0
    assert "accuracy" in json.loads(victim.read_text())


@pytest.mark.skipif(os.name == "nt", reason="pipes with names")
def test_nothing_waits_for_a_pipe(container: Path, study: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.hilum"
    os.mkfifo(pipe)
    signed = tmp_path / "signed.hilum"
    shutil.copy(container, signed)
    os.mkfifo(tmp_path / "signed.hilum.sig")
    os.mkfifo(tmp_path / "key.pem")
    public = tmp_path / "site.pub.pem"
    formats.make_key_pair(tmp_path / "site.pem")
    for command in (
        ["formats", "inspect", str(pipe)],
        ["formats", "verify", str(pipe)],
        ["formats", "verify", str(signed), "--key", str(public)],
        ["formats", "sign", str(signed), "--key", str(tmp_path / "key.pem")],
        ["engine.train", str(pipe), "-o", str(tmp_path / "h")],
        ["engine.evaluate", str(pipe), str(container)],
        ["engine.extract", str(study), "-o", str(tmp_path / "o"), "--sample-keys", str(pipe)],
        ["engine.extract", str(study), "-o", str(tmp_path / "o"), "--about", str(pipe)],
        ["engine.extract", "--manifest", str(pipe), "-o", str(tmp_path / "o")],
        ["engine.predict", str(study), "--chain", str(pipe)],
        ["engine.train", str(container), "-o", str(pipe)],
    ):
        result = subprocess.run(
            [sys.executable, "-m", *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert result.returncode in (1, 2), command
        assert "regular file" in result.stderr, (command, result.stderr)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_swallowed_stop_ends_a_prediction(
    head: Path, study: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def swallow(_predictor: Any, path: str) -> Prediction:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):  # the handler runs between two of these
                pass
        return Prediction(path, "ok")

    monkeypatch.setattr("engine.prediction.Predictor.predict", swallow)
    assert predict.main([str(study / "00.png"), "--head", str(head), "--quiet"]) == 130
    assert capsys.readouterr().out == ""


def test_what_fails_while_a_page_is_made_leaves_no_file(
    container: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_study: Any) -> str:
        raise engine.MismatchError("the page")

    monkeypatch.setattr("engine.report.render_report", broken)
    out = [str(tmp_path / name) for name in ("h.safetensors", "h.json", "h.html")]
    arguments = [str(container), "-o", out[0], "--json", out[1], "--report", out[2], "--quiet"]
    assert train.main(arguments) == 1
    assert files_in(tmp_path) == []


def test_no_name_steers_the_terminal(capsys: Any) -> None:
    cli.report("warning: \x1b[2J\u202e\rgrün\nשלום")
    assert capsys.readouterr().err == "warning: \\x1b[2J\\u202e\\rgrün\nשלום\n"


def test_a_stop_that_comes_when_the_work_is_done_is_a_stop_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Giving the network back takes so long that one in ten signals was noticed only then."""
    install = signal.signal

    def interrupted(number: signal.Signals, handler: object) -> object:
        before = install(number, handler)  # type: ignore[arg-type]
        if handler is not cli._stop:
            monkeypatch.undo()
            raise KeyboardInterrupt
        return before

    previous = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(signal, "signal", interrupted)
    try:
        assert cli.run(lambda: 0) == 130
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), previous, strict=True):
            signal.signal(number, handler)


def test_a_stop_that_a_library_swallows_is_not_forgotten() -> None:
    code = (
        "import os, signal, sys\n"
        "from engine import cli\n"
        "def work():\n"
        "    try:\n"
        "        os.kill(os.getpid(), int(sys.argv[1]))\n"
        "        for _ in range(1000): pass\n"  # the handler runs between two of these
        "    except KeyboardInterrupt: print('swallowed')\n"
        "    cli.check_stop()\n"
        "    return 0\n"
        "print(cli.run(work), cli.run(lambda: 0))\n"
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        result = subprocess.run(
            [sys.executable, "-c", code, str(int(number))],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.stdout == "swallowed\n130 0\n", result.stderr
