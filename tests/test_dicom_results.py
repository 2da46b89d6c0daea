"""Reports and pictures for a PACS: what they say, whose they are, and that others can read them."""

from __future__ import annotations

import io
import logging
import math
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_helpers import SECRETS, dicom, ramp, save
from head_helpers import make_head
from PIL import Image
from pydicom.dataset import Dataset

import engine
from engine.answers import Prediction
from engine.dicom_kind import OWN_MANUFACTURER, OWN_SERIES
from engine.dicom_results import (
    BANNER,
    CODING_SCHEME,
    read_own,
    secondary_capture,
    structured_report,
)
from engine.errors import ImageError, MissingPart, Refused
from engine.heads import Head
from engine.heatmap import PAPER, WARNING

NOTICE = "learned from 10 images of 5 patients aged 1 to 5 years; research terms"
SERIES, INSTANCE = "1.2.826.0.1.3680043.9.7777.2", "1.2.3.4.5"


@pytest.fixture
def highdicom() -> Any:
    return pytest.importorskip("highdicom", reason="highdicom is not installed: hilum[pacs]")


def source(folder: Path, name: str = "source.dcm", **tags: Any) -> Path:
    given = {key: value for key, value in tags.items() if key != "SeriesInstanceUID"}
    if tags.get("SeriesInstanceUID", SERIES) is not None:
        given["SeriesInstanceUID"] = tags.get("SeriesInstanceUID", SERIES)
    return save(dicom(ramp(), **given), folder / name)


def head(name: str = "chest", **options: Any) -> Head:
    return make_head("deep:mean", {"deep": 3}, name=name, **options)


def answer(
    label: Any = "b", *, ood: float | None = 0.5, threshold: Any = 0.4, **probabilities: float
) -> dict[str, Any]:
    return {
        "label": label,
        "probabilities": probabilities or {"a": 0.25, "b": 0.75},
        "threshold": threshold,
        "ood": {"score": ood, "threshold": 1.5},
        "notice": NOTICE,
    }


def prediction(heads: dict[str, Any] | None = None, **facts: Any) -> Prediction:
    values: dict[str, Any] = {"input": "x", "status": "ok", "backbone": "net", "key": "k" * 64}
    return Prediction(heads={"chest": answer()} if heads is None else heads, **values | facts)


SHEET = np.random.default_rng(0).integers(17, 230, (300, 400, 3)).astype(np.uint8)


def make_report(path: Path, given: Prediction) -> bytes:
    return structured_report(path, given, [head(name) for name in given.heads])


def make_capture(path: Path, given: Prediction) -> bytes:
    return secondary_capture(path, given, SHEET)


BOTH = pytest.mark.parametrize("make", [make_report, make_capture])


def read(data: bytes) -> Dataset:
    dataset = pydicom.dcmread(io.BytesIO(data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is wrong on purpose is passed on
        for element in dataset:
            assert element.tag
    return dataset


def items(dataset: Dataset, depth: int = 0) -> list[Dataset]:
    found = []
    for item in dataset.get("ContentSequence", ()):
        found += [item, *items(item, depth + 1)]
    return found


def named(dataset: Dataset, meaning: str) -> list[Dataset]:
    return [
        item for item in items(dataset) if item.ConceptNameCodeSequence[0].CodeMeaning == meaning
    ]


def numbers(dataset: Dataset) -> dict[str, float]:
    return {
        item.ConceptNameCodeSequence[0].CodeMeaning: item.MeasuredValueSequence[0].NumericValue
        for item in items(dataset)
        if item.ValueType == "NUM"
    }


# ---- The report ----------------------------------------------------------------------------------


def test_a_report_says_who_found_what(tmp_path: Path, highdicom: Any) -> None:
    path, given = source(tmp_path), prediction(n_views=3, allowed=("lateral",))
    one = head()
    dataset = read(structured_report(path, given, [one]))
    assert dataset.SOPClassUID.name == "Comprehensive 3D SR Storage"
    root = dataset.ContentTemplateSequence[0]
    assert (root.MappingResource, root.TemplateIdentifier) == ("DCMR", "1500")
    assert dataset.ConceptNameCodeSequence[0].CodeMeaning == "Imaging Measurement Report"
    assert (dataset.CompletionFlag, dataset.PreliminaryFlag) == ("COMPLETE", "PRELIMINARY")
    assert dataset.VerificationFlag == "UNVERIFIED"

    def texts(meaning: str) -> list[str]:
        return [item.TextValue for item in named(dataset, meaning)]

    assert texts("Algorithm Name") == ["chest"]
    assert texts("Algorithm Version") == [engine.__version__]
    parameters = "\n".join(texts("Algorithm Parameters"))
    for digest in (one.digest, one.backbone_digest, one.preprocessing_digest):
        assert digest in parameters
    assert "views averaged 3" in parameters
    assert texts("Device Observer Name") == ["Hilum"]
    assert texts("Intended use") == [BANNER] == ["research use – not for diagnosis"]
    assert texts("Checks set aside by the caller") == ["lateral"]
    decided = named(dataset, "Decided label")[0].ConceptCodeSequence[0]
    assert (decided.CodeMeaning, decided.CodingSchemeDesignator) == ("b", CODING_SCHEME)
    assert numbers(dataset) == {
        "Probability: a": 0.25,
        "Probability: b": 0.75,
        "Threshold: b": 0.4,
        "Unlikeness to the training images": 0.5,
        "Unlikeness that is refused": 1.5,
    }
    unit = named(dataset, "Probability: a")[0].MeasuredValueSequence[0]
    assert unit.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    study = dataset.CurrentRequestedProcedureEvidenceSequence[0]
    assert study.StudyInstanceUID == SECRETS["StudyInstanceUID"]
    assert study.ReferencedSeriesSequence[0].SeriesInstanceUID == SERIES
    referenced = study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert referenced.ReferencedSOPInstanceUID == INSTANCE
    assert [
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in items(dataset)
        if item.ValueType == "IMAGE"
    ] == [INSTANCE]


def test_no_number_stands_before_its_heads_limits(tmp_path: Path, highdicom: Any) -> None:
    heads = {"one": answer(), "two": answer(), "old": answer() | {"notice": ""}}
    del heads["old"]["ood"]
    dataset = read(make_report(source(tmp_path), prediction(heads)))
    groups = named(dataset, "Measurement Group")
    assert len(groups) == 3
    for group, limits in zip(groups, (NOTICE, NOTICE, "not known"), strict=True):
        kinds = [item.ValueType for item in group.ContentSequence]
        texts = [
            number
            for number, item in enumerate(group.ContentSequence)
            if item.ValueType == "TEXT" and limits in item.TextValue
        ]
        assert texts[0] < kinds.index("NUM")
        assert BANNER in group.ContentSequence[0].TextValue  # what many viewers show as its title


def test_highdicom_reads_it_back(tmp_path: Path, highdicom: Any) -> None:
    path = tmp_path / "sr.dcm"
    path.write_bytes(make_report(source(tmp_path), prediction()))
    report = highdicom.sr.srread(path)
    groups = report.content.get_image_measurement_groups()
    assert len(groups) == 1
    found = {measurement.name.meaning: measurement.value for measurement in
             groups[0].get_measurements()}  # fmt: skip
    assert found["Probability: b"] == 0.75
    assert [evaluation.value.meaning for evaluation in groups[0].get_qualitative_evaluations()] == [
        "b"
    ]


@pytest.mark.parametrize("tool", ["dsrdump", "dsr2xml"])
def test_dcmtk_finds_no_fault_in_it(tmp_path: Path, highdicom: Any, tool: str) -> None:
    program = shutil.which(tool)
    if program is None:
        pytest.skip(f"{tool} of dcmtk is not installed")
    names = {"Очаг": 0.2, "肺炎": 0.3, "n" * 100: 0.5}
    heads = {
        "chest": answer("Очаг", threshold=None, **names),
        "many": answer(["a"], threshold={"a": 0.2, "b": 0.9}),
        "no": {"refused": "out_of_distribution: so", "ood": {"score": 2.0, "threshold": 1.0}},
    }
    path = tmp_path / "sr.dcm"
    path.write_bytes(make_report(source(tmp_path), prediction(heads, allowed=("lateral",))))
    done = subprocess.run([program, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # dcmtk 3.6.7 cannot check the lengths of UTF-8 texts, and says so.
    remarks = [
        line for line in done.stderr.splitlines() if "VR checker does not support" not in line
    ]
    assert remarks == []
    assert "Очаг" in done.stdout


def test_names_of_any_kind_become_codes(tmp_path: Path, highdicom: Any) -> None:
    same = "x" * 80
    names = [same + "1", same + "2", "", "a\\b", "two\nlines", "  space  ", "肺炎" * 40, "\ud800"]
    values = {name: (number + 1) / 64 for number, name in enumerate(names)}
    given = prediction({"chest\x07\\" + "h" * 300: answer(names[0], threshold=None, **values)})
    dataset = read(make_report(source(tmp_path), given))
    codes = [item.ConceptNameCodeSequence[0] for item in items(dataset) if item.ValueType == "NUM"][
        : len(names)
    ]
    assert len({code.CodeValue for code in codes}) == len(names)
    for item in items(dataset):
        for code in (*item.ConceptNameCodeSequence, *item.get("ConceptCodeSequence", ())):
            assert 1 <= len(code.CodeValue) <= 16
            assert isinstance(code.CodeMeaning, str)  # one value: no backslash
            assert 1 <= len(code.CodeMeaning) <= 64
            assert code.CodeMeaning.isprintable()
    whole = [item.TextValue for item in named(dataset, "Name of a class in full")]
    assert same + "1" in whole
    assert same + "2" in whole
    again = read(make_report(source(tmp_path), given))
    assert [item.get("ConceptNameCodeSequence")[0].CodeValue for item in items(again)] == [
        item.ConceptNameCodeSequence[0].CodeValue for item in items(dataset)
    ]


def test_labels_of_a_multilabel_head(tmp_path: Path, highdicom: Any) -> None:
    limits = {"a": 0.2, "b": 0.9}
    both = answer(["a", "b"], threshold=limits)
    none = answer([], threshold=limits)
    dataset = read(make_report(source(tmp_path), prediction({"both": both, "none": none})))
    said = [item.ConceptCodeSequence[0].CodeMeaning for item in named(dataset, "Decided label")]
    assert said == ["a", "b", "None of the head's labels"]
    assert [n.MeasuredValueSequence[0].NumericValue for n in named(dataset, "Threshold: b")] == [
        0.9,
        0.9,
    ]
    assert named(dataset, "Finding") == []


def test_a_head_that_refused_has_a_reason_and_no_probability(
    tmp_path: Path, highdicom: Any
) -> None:
    refused = {
        "refused": "out_of_distribution: unlike",
        "ood": {"score": None, "threshold": 1.0},
        "notice": NOTICE,
    }
    chain = {"name": "c", "steps": [{"name": "no", "outcome": "refused"}], "answer": None}
    given = prediction({"chest": answer(), "no": refused}, chain=chain)
    dataset = read(make_report(source(tmp_path), given))
    group = named(dataset, "Measurement Group")[1]
    assert numbers(group) == {"Unlikeness that is refused": 1.0}
    assert named(group, "Reason of refusal")[0].TextValue == refused["refused"]
    assert named(group, "Has no finite value")
    assert named(dataset, "Chain of heads")[0].TextValue == "c; no: refused"


def test_a_probability_that_is_no_number_is_said_and_not_written(
    tmp_path: Path, highdicom: Any
) -> None:
    given = prediction({"chest": answer(a=math.nan, b=0.5)})
    dataset = read(make_report(source(tmp_path), given))
    assert "Probability: a" not in numbers(dataset)
    assert named(dataset, "Has no finite value")[0].TextValue == "Probability: a"
    assert "?" in read(make_capture(source(tmp_path), given)).ImageComments


# ---- Both ----------------------------------------------------------------------------------------


@BOTH
def test_it_is_the_sources_patient_and_study_and_our_own_series(
    tmp_path: Path, highdicom: Any, make: Callable[..., bytes]
) -> None:
    tags = {
        "PatientSex": "F",
        "StudyID": "S1",
        "StudyTime": "101112.5",
        "ReferringPhysicianName": "LEKARZ^JAN",
        "IssuerOfPatientID": "HOSPITAL",
    }
    dataset = read(make(source(tmp_path, **tags), prediction()))
    for keyword in (*SECRETS.keys() - {"InstitutionName"}, *tags):
        expected = tags.get(keyword) or SECRETS[keyword]
        assert str(dataset[keyword].value) == expected, keyword
    assert "InstitutionName" not in dataset
    assert dataset.SeriesInstanceUID not in ("", SERIES)
    assert dataset.SOPInstanceUID not in ("", INSTANCE)
    assert dataset.Manufacturer == OWN_MANUFACTURER
    assert dataset.SeriesDescription.startswith(OWN_SERIES)
    assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
    assert dataset.SeriesNumber > 0
    assert dataset.InstanceNumber == 1
    assert len(dataset.ContentDate) == 8


@BOTH
def test_the_same_result_is_the_same_instance(
    tmp_path: Path, highdicom: Any, make: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = source(tmp_path)

    def uids(given: Prediction) -> list[str]:
        dataset = read(make(path, given))
        groups = [item.UID for item in items(dataset) if item.ValueType == "UIDREF"][1:]
        return [dataset.SOPInstanceUID, dataset.SeriesInstanceUID, *groups]

    first = uids(prediction())
    assert uids(prediction(milliseconds=5.0)) == first
    assert set(uids(prediction(key="l" * 64))).isdisjoint(first)
    assert all(uid.startswith("2.25.") and uid.is_valid for uid in map(pydicom.uid.UID, first))
    assert len(set(first)) == len(first)
    # What another release says is not the same object: two objects of one UID are forbidden.
    monkeypatch.setattr(engine, "__version__", "9.9.9")
    assert set(uids(prediction())).isdisjoint(first)


def test_report_and_capture_are_two_instances_in_two_series(tmp_path: Path, highdicom: Any) -> None:
    report, capture = (
        read(make(source(tmp_path), prediction())) for make in (make_report, make_capture)
    )
    assert report.SOPInstanceUID != capture.SOPInstanceUID
    assert report.SeriesInstanceUID != capture.SeriesInstanceUID
    assert report.SeriesNumber != capture.SeriesNumber


@BOTH
@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 144", "Люксембург^Иван"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("ISO_IR 100", "Buc^Jérôme"),
        ("ISO_IR 192", "Wang^XiaoDong=王^小東"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
        ("ISO 2022 IR 149", "Hong^Gildong=洪^吉洞=홍^길동"),
    ],
)
def test_names_in_any_script_stay_what_they_are(
    tmp_path: Path, highdicom: Any, make: Callable[..., bytes], charset: Any, name: str
) -> None:
    path = source(tmp_path, SpecificCharacterSet=charset, PatientName=name)
    assert str(pydicom.dcmread(path).PatientName) == name
    dataset = read(make(path, prediction({"chest": answer("боль", боль=0.75, b=0.25)})))
    assert dataset.SpecificCharacterSet == "ISO_IR 192"
    assert str(dataset.PatientName) == name


@BOTH
@pytest.mark.parametrize("undeclared", [True, False])
def test_names_that_no_character_set_explains_do_no_harm(
    tmp_path: Path, highdicom: Any, make: Callable[..., bytes], undeclared: bool
) -> None:
    path = source(tmp_path, PatientName="X" * 8, SpecificCharacterSet="ISO_IR 192")
    data = path.read_bytes().replace(b"X" * 8, bytes(range(0xF0, 0xF8)))
    if undeclared:
        data = data.replace(b"ISO_IR 192", b"NO_SUCH 19")
    path.write_bytes(data)
    assert read(make(path, prediction())).PatientName


TYPE_2 = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID"),
    *("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
BROKEN = [
    {"PatientID": None},
    {"PatientID": "9" * 90},
    {"PatientID": "a\\b"},
    {"PatientName": None},
    {"PatientName": "A" * 200},
    {"PatientName": "one^two^three^four^five^six^seven=a=b=c=d"},
    {"PatientBirthDate": "1944-05-14"},
    {"PatientBirthDate": "19440599"},
    {"PatientBirthDate": ""},
    {"StudyDate": "2024.02.29"},
    {"StudyDate": None},
    {"StudyTime": "25:99"},
    {"PatientSex": "weiblich, sehr"},
    {"StudyID": ""},
    {"StudyID": "S" * 40},
    {"AccessionNumber": "ACC" * 20},
    {"AccessionNumber": None},
    {"StudyInstanceUID": "1.2.040.05"},
    {"SpecificCharacterSet": "KLINGON"},
]


@BOTH
@pytest.mark.parametrize("tags", BROKEN, ids=lambda tags: "-".join(map(str, *tags.items()))[:30])
def test_a_source_with_broken_values_is_answered(
    tmp_path: Path, highdicom: Any, make: Callable[..., bytes], tags: dict[str, Any]
) -> None:
    dataset = read(make(source(tmp_path, **tags), prediction()))
    for keyword in TYPE_2:
        assert keyword in dataset
    for keyword in ("PatientBirthDate", "StudyDate"):
        if keyword in tags:
            assert dataset[keyword].value in ("", None)
    if tags.get("PatientSex"):
        assert dataset.PatientSex in ("", None)
    # A number that is too long is still the one this patient is known by.
    for keyword in ("PatientID", "StudyInstanceUID", "AccessionNumber", "StudyID"):
        if tags.get(keyword):
            given = tags[keyword]
            found = dataset[keyword].value
            assert given == (found if isinstance(found, str) else "\\".join(found))


@pytest.mark.parametrize(
    ("make", "tag"),
    [
        (make_report, "StudyInstanceUID"),
        (make_report, "SeriesInstanceUID"),
        (make_report, "SOPInstanceUID"),
        (make_capture, "StudyInstanceUID"),
    ],
)
@pytest.mark.parametrize("value", [None, "", "1.2.x.4", "1." * 40 + "1"])
def test_without_a_study_there_is_no_result_and_a_reason(
    tmp_path: Path, highdicom: Any, make: Callable[..., bytes], tag: str, value: str | None
) -> None:
    with pytest.raises(ImageError, match=rf"source.dcm: lacks a valid {tag} \(00"):
        make(source(tmp_path, **{tag: value}), prediction())


def test_a_capture_needs_no_reference_to_its_source(tmp_path: Path) -> None:
    path = source(tmp_path, SOPInstanceUID=None)
    assert "SourceImageSequence" not in read(make_capture(path, prediction()))


@BOTH
def test_what_has_no_study_or_no_answer_is_an_error(
    tmp_path: Path, highdicom: Any, make: Callable[..., bytes]
) -> None:
    picture = tmp_path / "x.png"
    Image.fromarray(ramp(8).astype(np.uint8)).save(picture)
    with pytest.raises(ImageError, match=r"x\.png: is no DICOM file.*leave --sr and --sc out"):
        make(picture, prediction())
    with pytest.raises(ImageError, match="cannot be read"):
        make(tmp_path / "missing.dcm", prediction())
    path = source(tmp_path)
    for heads in ({}, {"chest": {"refused": "out_of_distribution: so", "notice": ""}}):
        with pytest.raises(ImageError, match="no head answered"):
            make(path, prediction(heads))
    with pytest.raises(ValueError, match="key is empty"):
        make(path, prediction(key=None))


@BOTH
def test_a_truncated_source_gives_a_result_or_a_reason(
    tmp_path: Path, highdicom: Any, make: Callable[..., bytes]
) -> None:
    whole = source(tmp_path).read_bytes()
    path, outcomes = tmp_path / "cut.dcm", set()
    study = whole.index(SECRETS["StudyInstanceUID"].encode())
    for length in (*range(0, 1000, 23), study + len("1.2.826"), study + len("1.2.826.0.1")):
        path.write_bytes(whole[:length])
        try:
            data = make(path, prediction())
            outcomes.add(bytes)
            # Half a UID is another study's.
            assert read(data).StudyInstanceUID == SECRETS["StudyInstanceUID"]
        except ImageError as error:
            outcomes.add(ImageError)
            assert not any(secret in str(error) for secret in SECRETS.values())
    assert outcomes == {bytes, ImageError}


@BOTH
def test_our_own_results_are_never_read_as_pictures(
    tmp_path: Path, highdicom: Any, make: Callable[..., bytes]
) -> None:
    path = tmp_path / "own.dcm"
    path.write_bytes(make(source(tmp_path), prediction()))
    with pytest.raises(Refused) as caught:
        engine.read_picture(path)
    assert caught.value.reason == "own_result"
    own = read_own(path)
    assert own is not None
    dataset = pydicom.dcmread(path)
    assert own.sop_class == dataset.SOPClassUID
    assert own.sop_instance == dataset.SOPInstanceUID
    assert own.syntax == dataset.file_meta.TransferSyntaxUID
    # One of the two marks is enough, and neither is none.
    del dataset.Manufacturer
    save(dataset, path)
    assert read_own(path) is not None
    dataset.SeriesDescription = "Chest"
    save(dataset, path)
    assert read_own(path) is None


def test_other_files_are_not_ours(tmp_path: Path) -> None:
    text = tmp_path / "x.txt"
    text.write_text("Manufacturer Hilum")
    for path in (text, source(tmp_path)):
        assert read_own(path) is None
    with pytest.raises(OSError, match="missing"):
        read_own(tmp_path / "missing.dcm")


@BOTH
def test_nothing_of_the_patient_is_logged_or_warned_of(
    tmp_path: Path,
    highdicom: Any,
    make: Callable[..., bytes],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = source(tmp_path, PatientBirthDate="nonsense", PatientName="ONE")
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    make(path, prediction())
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")


# ---- The picture ---------------------------------------------------------------------------------


def strip_of(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    pixels = dataset.pixel_array
    height = pixels.shape[0] - SHEET.shape[0]
    return pixels[:height], pixels[height:]


def test_a_capture_is_the_sheet_under_a_banner(tmp_path: Path) -> None:
    dataset = read(make_capture(source(tmp_path), prediction()))
    assert dataset.SOPClassUID.name == "Secondary Capture Image Storage"
    assert dataset.PhotometricInterpretation == "RGB"
    strip, rest = strip_of(dataset)
    np.testing.assert_array_equal(rest, SHEET)
    # The banner is the first and largest of the strip, in the colour of warnings.
    yellow = (strip == WARNING).all(axis=2)
    rows = np.flatnonzero(yellow.any(axis=1))
    assert rows[0] < 20
    assert np.count_nonzero(yellow) > 200
    assert (strip[:, 0] == PAPER).all()
    assert (strip[:, -1] == PAPER).all()
    assert dataset.ImageComments.splitlines() == [
        BANNER,
        "chest: b 0.750 (a 0.250), threshold of b 0.400",
        f"Limits: {NOTICE}",
    ]
    assert dataset.ImageType == ["DERIVED", "SECONDARY", "OTHER"]
    assert "resized" in dataset.DerivationDescription
    assert BANNER in dataset.DerivationDescription
    item = dataset.SourceImageSequence[0]
    assert item.ReferencedSOPInstanceUID == INSTANCE


def test_the_banner_is_drawn_word_for_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import ImageDraw

    written: list[str] = []
    real = ImageDraw.ImageDraw.text

    def text(self: Any, at: Any, words: str, **options: Any) -> None:
        assert at[0] >= 0
        assert at[0] + options["font"].getlength(words) <= self.im.size[0]
        written.append(words)
        real(self, at, words, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    for width in (192, 900, 4096):
        written.clear()
        sheet = np.zeros((100, width, 3), np.uint8)
        given = prediction({"chest": answer(), "two": answer(["b"], threshold={"a": 0.1})})
        secondary_capture(source(tmp_path), given, sheet)
        assert "–".join(written[:2]) == BANNER
        shown = " ".join(written[2:])
        assert "chest: b 0.750" in shown
        assert "two: b; probability / threshold: a 0.250 / 0.100, b 0.750 / ?" in shown
        assert shown.count(NOTICE) == 2


def test_many_heads_and_long_names_leave_no_answer_without_its_limits(tmp_path: Path) -> None:
    long = {f"class {number}": 0.5 for number in range(300)}
    heads = {f"head {number}": answer("class 1", **long) for number in range(30)}
    dataset = read(make_capture(source(tmp_path), prediction(heads)))
    said = dataset.ImageComments.splitlines()
    assert len(dataset.ImageComments) <= 10_240
    assert len(said) % 2 == 1
    assert all(line.startswith("Limits: ") for line in said[2::2])
    assert said[-2].endswith("more heads answered")
    assert dataset.Rows < 8192


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 201, 3), (7, 333, 3)])
def test_a_sheet_of_any_size_makes_a_whole_file(tmp_path: Path, shape: tuple[int, ...]) -> None:
    data = secondary_capture(source(tmp_path), prediction(), np.zeros(shape, np.uint8))
    assert len(data) % 2 == 0
    assert read(data).pixel_array.shape[1:] == shape[1:]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, {"BurnedInAnnotation": None, "LossyImageCompression": None}),
        ({"BurnedInAnnotation": "NO"}, {"BurnedInAnnotation": "NO"}),
        ({"BurnedInAnnotation": "YES"}, {"BurnedInAnnotation": "YES"}),
        ({"BurnedInAnnotation": "perhaps"}, {"BurnedInAnnotation": None}),
        ({"LossyImageCompression": "00"}, {"LossyImageCompression": "00"}),
        (
            {
                "LossyImageCompression": "01",
                "LossyImageCompressionRatio": "12.5",
                "LossyImageCompressionMethod": "ISO_10918_1",
            },
            {
                "LossyImageCompression": "01",
                "LossyImageCompressionRatio": 12.5,
                "LossyImageCompressionMethod": "ISO_10918_1",
            },
        ),
        (
            {"LossyImageCompression": "01", "LossyImageCompressionRatio": "-1.5"},
            {"LossyImageCompression": "01", "LossyImageCompressionRatio": None},
        ),
    ],
)
def test_what_holds_of_the_xray_holds_of_its_drawing(
    tmp_path: Path, tags: dict[str, Any], expected: dict[str, Any]
) -> None:
    dataset = read(make_capture(source(tmp_path, **tags), prediction()))
    for keyword, value in expected.items():
        assert dataset.get(keyword) == value, keyword


def test_a_lossy_transfer_syntax_is_passed_on(tmp_path: Path) -> None:
    from dicom_helpers import jpeg, smooth, with_frames
    from pydicom.uid import JPEGBaseline8Bit

    dataset = dicom(smooth(), bits=8, allocated=8, SeriesInstanceUID=SERIES)
    path = save(with_frames(dataset, JPEGBaseline8Bit, [jpeg(smooth())]), tmp_path / "j.dcm")
    found = read(make_capture(path, prediction()))
    assert found.LossyImageCompression == "01"
    assert found.LossyImageCompressionMethod == "ISO_10918_1"


def test_dcmtk_reads_a_capture(tmp_path: Path) -> None:
    program = shutil.which("dcm2pnm")
    if program is None:
        pytest.skip("dcm2pnm of dcmtk is not installed")
    path, picture = tmp_path / "sc.dcm", tmp_path / "sc.ppm"
    path.write_bytes(make_capture(source(tmp_path), prediction()))
    done = subprocess.run([program, path, picture], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    with Image.open(picture) as shown:
        np.testing.assert_array_equal(np.asarray(shown), pydicom.dcmread(path).pixel_array)


# ---- The optional package ------------------------------------------------------------------------


def test_without_highdicom_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "highdicom"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(MissingPart, match=r'pip install "hilum\[pacs\]"'):
        make_report(source(tmp_path), prediction())
    assert make_capture(source(tmp_path), prediction())


def test_highdicom_is_loaded_for_reports_only(tmp_path: Path) -> None:
    path = source(tmp_path)
    code = (
        "import sys, numpy as np, engine.delivery\n"
        "from engine.answers import Prediction\n"
        "from engine.dicom_results import secondary_capture\n"
        f"a = {answer()!r}\n"
        "p = Prediction(input='x', status='ok', heads={'h': a}, key='k')\n"
        f"secondary_capture({str(path)!r}, p, np.zeros((9, 300, 3), np.uint8))\n"
        "print([m for m in ('highdicom', 'pynetdicom', 'numba') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@BOTH
def test_dciodvfy_finds_no_error(
    make: Callable[[Path, Prediction], bytes], tmp_path: Path, highdicom: Any
) -> None:
    tool = shutil.which("dciodvfy")
    if tool is None:
        pytest.skip("dciodvfy is not installed: apt-get install dicom3tools")
    several = {
        "chest": answer(),
        "many": answer(["x", "y"], threshold={"x": 0.1, "y": 0.2}, x=0.3, y=0.4),
        "no": {"refused": "lateral: it is one", "ood": None, "notice": NOTICE},
    }
    chain = {"name": "c", "steps": [{"name": "chest", "outcome": "a"}]}
    for number, given in enumerate([prediction(), prediction(several, chain=chain)]):
        made = tmp_path / f"{number}.dcm"
        made.write_bytes(make(source(tmp_path), given))
        done = subprocess.run([tool, "-new", made], capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        assert [line for line in said.splitlines() if line.startswith("Error")] == []
        assert "Comprehensive3DSR" in said or "SCImage" in said


def test_a_capture_says_nothing_of_sides(tmp_path: Path) -> None:
    dataset = read(make_capture(source(tmp_path), prediction()))
    assert "Laterality" in dataset
    assert dataset.Laterality is None or dataset.Laterality == ""
