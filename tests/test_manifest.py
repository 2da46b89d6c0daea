"""Folders and manifests: what is read from them, and what is said about each mistake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.errors import ManifestError
from engine.manifest import Sample, collect_samples, read_manifest


def make_image(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (np.arange(96 * 96).reshape(96, 96) + value) % 251
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def write_csv(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "labels.csv"
    path.write_text(text, encoding=encoding)
    return path


def test_sub_folders_are_labels(tmp_path: Path) -> None:
    make_image(tmp_path / "normal" / "a.png")
    make_image(tmp_path / "pneumonia" / "deep" / "b.png")
    samples = collect_samples([tmp_path])
    assert [(s.path.name, s.labels) for s in samples] == [
        ("a.png", ("normal",)),
        ("b.png", ("pneumonia",)),
    ]


def test_files_and_flat_folders_have_no_label(tmp_path: Path) -> None:
    one = make_image(tmp_path / "one.png")
    assert collect_samples([one, one, tmp_path]) == [Sample(one)]


def test_labelled_and_unlabelled_mixed_is_refused(tmp_path: Path) -> None:
    make_image(tmp_path / "normal" / "a.png")
    make_image(tmp_path / "stray.png")
    with pytest.raises(ManifestError, match=r"stray\.png: 1 images lie outside the class folders"):
        collect_samples([tmp_path])


@pytest.mark.parametrize("empty", [True, False])
def test_nothing_to_do_is_said(tmp_path: Path, empty: bool) -> None:
    if not empty:
        (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ManifestError, match="no image found"):
        collect_samples([tmp_path])
    with pytest.raises(ManifestError, match="no such file or folder"):
        collect_samples([tmp_path / "missing"])


def test_every_column(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path,
        "file,label,patient,split,source,sex,age,view\n"
        "a.png,normal,p1,train,north,F,54,PA\n"
        "b.png,pneumonia,p2,test,south,m,101,AP Supine\n"
        "c.png,pneumonia,,,,,,oblique\n",
    )
    first, second, third = read_manifest(path)
    assert first == Sample(tmp_path / "a.png", ("normal",), "p1", "train", "north", 1, 54, 1, 2)
    assert (second.sex, second.age, second.projection) == (2, 90, 3)
    assert (third.patient, third.split, third.source, third.age) == (None, "", None, 255)
    assert third.projection == 5


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_tables_as_spreadsheets_write_them(
    tmp_path: Path, encoding: str, delimiter: str, newline: str
) -> None:
    text = newline.join(["file,label", "a.png,grün", "b.png,normal", ""]).replace(",", delimiter)
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode(encoding))
    assert [s.labels for s in read_manifest(path)] == [("grün",), ("normal",)]


def test_multilabel_rows(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "file,label\na.png,A|B\nb.png,\nc.png,B?\n")
    assert [s.labels for s in read_manifest(path)] == [("A", "B"), (), ("B?",)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; expected a header"),
        ("file,label\n", "has a header but no line"),
        ("file,lable\na.png,x\n", r"unknown column 'lable', did you mean 'label'\?"),
        ("file,hospital_number\na.png,x\n", "unknown column 'hospital_number'; Columns are file"),
        ("label,patient\nx,1\n", "no column 'file'; found label, patient"),
        ("file,file\na.png,b.png\n", "column 'file' appears twice"),
        ("file,split\na.png,training\n", "line 2: split 'training'; expected train, valid, test"),
        ("file,sex\na.png,1\n", "line 2: sex '1'"),
        ("file,age\na.png,1950-01-01\n", "line 2: age '1950-01-01'"),
        ("file,age\na.png,-3\n", "line 2: age '-3'"),
        ("file,label\na.png,x\nb.png,\n", "line 3: no label"),
        ("file,label\na.png,x,y\n", "line 2: as many fields as the header"),
        ("file,label\na.png\n", "line 2: as many fields as the header"),
        ("file,label\n,x\n", "line 2: no file name"),
        ("file,label\na.png,x\na.png,y\n", r"line 3: a\.png was named in line 2 already"),
    ],
)
def test_mistakes_name_the_line_and_the_cure(tmp_path: Path, text: str, message: str) -> None:
    path = write_csv(tmp_path, text)
    with pytest.raises(ManifestError, match=message) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)


def test_other_encodings_and_missing_tables(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "file,label\na.png,grün\n", encoding="latin-1")
    with pytest.raises(ManifestError, match="is not UTF-8; save the table as CSV in UTF-8"):
        read_manifest(path)
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(tmp_path / "missing.csv")
    with pytest.raises(ManifestError, match="line 2: holds a NUL character"):
        read_manifest(write_csv(tmp_path, "file\na\0.png\n"))


def test_sources_limit_and_locate_a_manifest(tmp_path: Path) -> None:
    make_image(tmp_path / "here" / "a.png")
    make_image(tmp_path / "there" / "b.png")
    path = write_csv(tmp_path, "file\nhere/a.png\nthere/b.png\n")
    assert [s.path.name for s in collect_samples([tmp_path / "here"], path)] == ["a.png"]
    elsewhere = write_csv(tmp_path / "here", "file\nb.png\n")
    assert collect_samples([tmp_path / "there"], elsewhere)[0].path == tmp_path / "there" / "b.png"
    with pytest.raises(ManifestError, match="none of its files lies in"):
        collect_samples([tmp_path / "there"], write_csv(tmp_path, "file\nhere/a.png\n"))


PATIENTS = r"these look like patients or studies, not classes; describe the images with --manifest"


@pytest.mark.parametrize(("n_folders", "n_images"), [(6, 2), (21, 3)])
def test_a_folder_for_each_patient_is_refused(
    tmp_path: Path, n_folders: int, n_images: int
) -> None:
    for folder in range(n_folders):
        for image in range(n_images):
            make_image(tmp_path / f"Nowak {folder}" / f"{image}.png")
    with pytest.raises(ManifestError, match=f"{n_folders} sub-folders hold .*{PATIENTS}"):
        collect_samples([tmp_path])
    lines = [f"Nowak {folder}/0.png,c{folder}" for folder in range(n_folders)]
    table = write_csv(tmp_path, "\n".join(["file,label", *lines]))
    assert len(collect_samples([tmp_path], table)) == n_folders  # said on purpose


@pytest.mark.parametrize(("n_folders", "n_images"), [(5, 1), (6, 3), (20, 3)])
def test_folders_of_classes_are_taken(tmp_path: Path, n_folders: int, n_images: int) -> None:
    for folder in range(n_folders):
        for image in range(n_images):
            make_image(tmp_path / f"c{folder}" / f"{image}.png")
    assert len(collect_samples([tmp_path])) == n_folders * n_images


def test_an_unknown_source_is_a_missing_one(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "file,source\na,unknown\nb,\nc,Unknown\nd,north\n")
    assert [s.source for s in read_manifest(path)] == [None, None, None, "north"]


def test_an_uncertain_label_makes_a_multilabel_set(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "file,label\n1.png,a ?\n2.png,\n3.png,a\n")
    assert [s.labels for s in read_manifest(path)] == [("a?",), (), ("a",)]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("a|a?", r"line 3: 'a' is called present and uncertain \('a\?'\) at once"),
        ("b|a ?|a", "line 3: 'a' is called present and uncertain"),
        ("?", r"line 3: label '\?' has no name"),
    ],
)
def test_labels_that_contradict_themselves(tmp_path: Path, cell: str, message: str) -> None:
    path = write_csv(tmp_path, f"file,label\n1.png,a\n2.png,{cell}\n")
    with pytest.raises(ManifestError, match=message):
        read_manifest(path)


def test_one_file_by_two_names_is_refused(tmp_path: Path) -> None:
    make_image(tmp_path / "0.png")
    (tmp_path / "a").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "0.png")
    for other in ("a/../0.png", "link.png", "./0.png"):
        path = write_csv(tmp_path, f"file\n0.png\n{other}\n")
        with pytest.raises(ManifestError, match=r"line 3: .* was named in line 2 already"):
            read_manifest(path)
    missing = write_csv(tmp_path, "file\ngone.png\nb/../gone.png\n")
    with pytest.raises(ManifestError, match=r"line 3: gone\.png was named in line 2 already"):
        read_manifest(missing)


def test_a_name_no_file_can_have_is_a_file_that_is_not_there(tmp_path: Path) -> None:
    long = "x" * 5000
    path = write_csv(tmp_path, f"file,label\n{long},a\n1.png,b\n")
    first, second = read_manifest(path, [tmp_path])
    assert (first.path, second.path) == (tmp_path / long, tmp_path / "1.png")
