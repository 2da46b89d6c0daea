"""A DICOM file full of identifiers: none of them is in a log, and in results only where it must be.

Reports and captures belong into the patient's study and carry what a PACS needs for that; they are
held to exactly these fields. Everything else that is written or printed carries none.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pydicom
import pytest
from PIL import Image
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import generate_uid

from engine.dicom import read_dicom
from engine.errors import ImageError
from engine.phantoms import draw_phantom, write_dicom

# What a PACS needs to put a result beside its picture.
KEPT = {
    "PatientName": "WISNIEWSKA^HALINKA^TERESITA",
    "PatientID": "PID730415X",
    "IssuerOfPatientID": "ISSUERRADOM",
    "PatientBirthDate": "19480523",
    "PatientSex": "F",
    "AccessionNumber": "ACC902817",
    "StudyID": "STUDY66120",
    "StudyDate": "20231117",
    "StudyTime": "143205.918273",
    "StudyDescription": "THORAXVERDACHT",
    "ReferringPhysicianName": "ZUWEISER^OTTOKAR",
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.5550001",
    "SeriesInstanceUID": "1.2.826.0.1.3680043.8.498.5550002",
    "SOPInstanceUID": "1.2.826.0.1.3680043.8.498.5550003",
}
# What it does not need.
DROPPED = {
    "OtherPatientIDs": "OTHERID5512",
    "OtherPatientNames": "MAIDENNAME^GRAZYNA",
    "PatientAddress": "POLNASTREET 17",
    "PatientTelephoneNumbers": "+48485557713",
    "PatientMotherBirthName": "MOTHERSNAME",
    "PatientAge": "075Y",
    "PatientComments": "PATIENTCOMMENT",
    "AdditionalPatientHistory": "HISTORYTEXT",
    "Occupation": "BEEKEEPERESS",
    "InstitutionName": "SZPITALMIEJSKI",
    "InstitutionAddress": "SZPITALNAROAD 3",
    "InstitutionalDepartmentName": "RADIOLOGYWARD7",
    "PerformingPhysicianName": "AUSFUEHRENDER^EMILIAN",
    "OperatorsName": "OPERATORIN^IDALIND",
    "RequestingPhysician": "ANFORDERNDER^UDOMAR",
    "StationName": "STATIONROOM4",
    "DeviceSerialNumber": "SERIAL8812734",
    "Manufacturer": "MAKEROFDEVICE",
    "ManufacturerModelName": "MODELOFDEVICE",
    "SoftwareVersions": "SOFTWARE9X",
    "SeriesDescription": "SERIESTEXT",
    "ProtocolName": "PROTOCOLTEXT",
    "RequestedProcedureDescription": "PROCEDURETEXT",
    "ImageComments": "IMAGECOMMENT",
    "DerivationDescription": "DERIVATIONTEXT",
    "SeriesDate": "20231118",
    "AcquisitionDateTime": "20231119143207.424242",
    "ContentTime": "143208.535353",
    "FrameOfReferenceUID": "1.2.826.0.1.3680043.8.498.5550004",
    "MediaStorageSOPInstanceUID": "1.2.826.0.1.3680043.8.498.5550005",
}
PRIVATE, OVERLAY, NESTED, PREAMBLE = "PRIVATEVALUE", "OVERLAYTEXT", "NESTEDNUMBER", b"PREAMBLENAME"
ELSEWHERE = (PRIVATE, OVERLAY, NESTED, PREAMBLE.decode())
# Shorter ones are found in any picture by chance.
LEAST_CHARS = 6


def words(*texts: str) -> list[str]:
    """Return what to look for: each part of a value that says something alone."""
    found = []
    for text in texts:
        parts = text.replace("^", " ").split()
        found += [part for part in parts if len(part) >= LEAST_CHARS]
        if text.isdigit() and len(text) == 8:
            year, month, day = text[:4], text[4:6], text[6:]
            found += [f"{year}-{month}-{day}", f"{day}.{month}.{year}"]
    return found


MARKS = words(*KEPT.values(), *DROPPED.values(), *ELSEWHERE)


def forms(mark: str) -> Iterator[bytes]:
    for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
        yield mark.lower().encode(encoding)
    yield base64.b64encode(mark.encode()).rstrip(b"=")[:-1].lower()
    yield mark.encode().hex().encode()


def found_in(data: bytes | str, marks: Sequence[str] = MARKS) -> list[str]:
    lower = (data if isinstance(data, bytes) else data.encode()).lower()
    return [mark for mark in marks if any(form in lower for form in forms(mark))]


def test_there_are_enough_and_the_search_finds_them(seeded: Path) -> None:
    assert len(KEPT) + len(DROPPED) + len(ELSEWHERE) >= 15
    assert len(set(MARKS)) == len(MARKS)
    # But for dates as nobody writes them into a file.
    spelled = [
        mark for mark in MARKS if mark[4] == "-" or mark[2::3] == ".." or mark[2] == mark[5] == "."
    ]
    there = [mark for mark in MARKS if mark not in spelled]
    assert found_in(seeded.read_bytes()) == there
    assert len(there) > 40
    for mark in MARKS:
        for encoding in ("utf-8", "utf-16-le"):
            assert found_in(b"\0" + f"so {mark.upper()}.".encode(encoding), [mark]) == [mark]


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("in")
    path = write_dicom(draw_phantom(5, "lobar", height=256, width=320), folder / "picture.dcm")
    return seed(path)


def seed(path: Path) -> Path:
    ds = pydicom.dcmread(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keyword, value in (KEPT | DROPPED).items():
            if keyword == "MediaStorageSOPInstanceUID":
                ds.file_meta.MediaStorageSOPInstanceUID = value
            else:
                setattr(ds, keyword, value)
    block = ds.private_block(0x0019, "HILUMTEST", create=True)
    block.add_new(0x10, "LO", PRIVATE)
    ds.add_new(Tag(0x6000, 0x4000), "LT", OVERLAY)
    ds.add_new(Tag(0x6000, 0x0022), "LO", OVERLAY)
    item = Dataset()
    item.RequestedProcedureID = item.ScheduledProcedureStepID = NESTED
    ds.RequestAttributesSequence = [item]
    ds.preamble = PREAMBLE.ljust(128, b"\0")
    ds.save_as(path)
    return path


def run(*command: str, cwd: Path, repository: Path, check: tuple[int, ...] = (0, 1)) -> Any:
    result = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert result.returncode in check, result.stderr
    assert b"Traceback" not in result.stderr
    return result


def nothing_found(*outputs: bytes | Path) -> None:
    """Look through texts, files and folders, names of files included."""
    for output in outputs:
        if isinstance(output, Path):
            for path in (output, *(output.rglob("*") if output.is_dir() else ())):
                assert found_in(path.name) == [], path
                if path.is_file() and not path.name.endswith((".sr.dcm", ".sc.dcm")):
                    assert found_in(path.read_bytes()) == [], path
        else:
            assert found_in(output) == [], output


ANSWERED = ("--allow", "out_of_distribution", "--engines", "0")
HAS_HIGHDICOM = importlib.util.find_spec("highdicom") is not None
needs_highdicom = pytest.mark.skipif(not HAS_HIGHDICOM, reason="needs the extra [pacs]")


# ---- A file that is as it should be --------------------------------------------------------------


@needs_highdicom
def test_predict_repeats_nothing(seeded: Path, tmp_path: Path, repository: Path) -> None:
    out = tmp_path / "out"
    asked = ["engine.predict", str(seeded), "--output-dir", str(out), "--heatmap", "--sr", "--sc"]
    result = run(*asked, *ANSWERED, cwd=tmp_path, repository=repository, check=(0,))
    answer = json.loads(result.stdout)
    assert answer["status"] == "ok"
    nothing_found(result.stdout, result.stderr, out)
    with Image.open(out / answer["heatmap"]) as picture:
        assert not {key for key in picture.info if key not in ("dpi", "gamma")}
    # From memory this time, and as a table.
    again = run(*asked, "--csv", *ANSWERED, cwd=tmp_path, repository=repository, check=(0,))
    assert b'"stored": true' in again.stdout
    nothing_found(again.stdout, again.stderr, out)
    table = run(
        "engine.predict", str(seeded), "--csv", *ANSWERED, cwd=tmp_path, repository=repository
    )
    nothing_found(table.stdout, table.stderr)
    reports_have_what_they_need(out / answer["sr"], out / answer["sc"])


# Of the patient and the study, those that a result has; of its picture, in references.
_COPIED = [key for key in KEPT if key not in ("SOPInstanceUID", "SeriesInstanceUID")]
_REFERENCES = ("ReferencedSOPInstanceUID", "SeriesInstanceUID")


def reports_have_what_they_need(*paths: Path) -> None:
    unwanted = words(*DROPPED.values(), *ELSEWHERE)
    for path in paths:
        data = path.read_bytes()
        assert found_in(data, unwanted) == []
        ds = pydicom.dcmread(path)
        for keyword in _COPIED:
            assert str(ds.get(keyword)) == KEPT[keyword], keyword
        assert {element.keyword for element in ds.group_dataset(0x0010)} <= set(_COPIED)
        assert not any(element.tag.is_private for element in ds.iterall())
        assert not any(0x6000 <= element.tag.group <= 0x60FF for element in ds)
        assert "RequestAttributesSequence" not in ds
        assert PREAMBLE not in data[:128]
        assert str(ds.SOPInstanceUID).startswith("2.25.")
        # Where its picture is named, and nowhere else.
        named = {str(element.value) for element in ds.iterall() if element.VR == "UI"}
        assert KEPT["SOPInstanceUID"] in named
        for element in ds.iterall():
            if element.VR not in ("SQ", "OB", "OW") and found_in(
                str(element.value), words(*KEPT.values())
            ):
                assert element.keyword in (*_COPIED, *_REFERENCES), element.keyword


@needs_highdicom
def test_the_worker_and_what_it_leaves_behind_repeat_nothing(
    seeded: Path, tmp_path: Path, repository: Path
) -> None:
    spool, out = tmp_path / "spool", tmp_path / "out"
    command = [sys.executable, "-m", "engine.serve", str(spool), "--output-dir", str(out), "--once"]
    # Nobody listens there: dead letters.
    command += ["--sr", "--sc", "--orthanc", "http://u:geheim@127.0.0.1:9", *ANSWERED]
    for number, data in enumerate([seeded.read_bytes(), seeded.read_bytes()[:40_000]]):
        part = spool / "incoming" / f"{number}.dcm"
        part.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        spool.chmod(0o700)
        part.write_bytes(data)
    worker = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(repository)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        said, log = worker.communicate(timeout=90)
    finally:
        worker.kill()
        worker.wait()
    assert worker.returncode == 0, log
    answers = [json.loads(path.read_bytes()) for path in (spool / "answers").glob("*.json")]
    assert sorted(answer["status"] for answer in answers) == ["error", "ok"]
    letters = out / "dead_letters"
    notes = list(letters.glob("*.json"))
    assert len(notes) == 2
    # The half picture itself is kept for people to look at, and the reports in their letters.
    pictures = [path for path in spool.rglob("*.dcm") if path.is_file()]
    assert len(pictures) == 1
    pictures[0].unlink()
    for path in letters.glob("*.dcm"):
        assert found_in(path.name) == []
        reports_have_what_they_need(path)
        path.unlink()
    nothing_found(said, log, spool, out)
    for text in (log, *(path.read_bytes() for path in (*notes, *spool.glob("answers/*")))):
        assert b"geheim" not in text
    assert b"dcm" not in log
    assert str(tmp_path).encode() not in log


def test_the_doctor_repeats_nothing(seeded: Path, tmp_path: Path, repository: Path) -> None:
    (tmp_path / "picture.dcm").write_bytes(seeded.read_bytes())
    report = tmp_path / "report.json"
    result = run(
        *("engine.doctor", "--prepare-only", "--json", str(report)),
        cwd=tmp_path,
        repository=repository,
        check=(0, 1, 3),
    )
    nothing_found(result.stdout, result.stderr, report)
    assert str(tmp_path).encode() not in result.stdout + result.stderr


# ---- Files that are not --------------------------------------------------------------------------

# Numbers and codes, with a name in them.
NUMBERS = {
    "Rows": "US", "Columns": "US", "BitsAllocated": "US", "BitsStored": "US", "HighBit": "US",
    "PixelRepresentation": "US", "SamplesPerPixel": "US", "PlanarConfiguration": "US",
    "NumberOfFrames": "IS", "WindowCenter": "DS", "WindowWidth": "DS", "RescaleSlope": "DS",
    "RescaleIntercept": "DS", "PixelSpacing": "DS", "SmallestImagePixelValue": "US",
    "PixelPaddingValue": "US",
}  # fmt: skip
CODES = (
    *("SOPClassUID", "Modality", "BodyPartExamined", "ViewPosition", "PhotometricInterpretation"),
    *("PresentationLUTShape", "VOILUTFunction", "PresentationIntentType", "SpecificCharacterSet"),
    *("ImageType", "Laterality", "ImageLaterality", "BurnedInAnnotation", "LossyImageCompression"),
    *("PixelIntensityRelationship", "RescaleType", "PatientSex", "ConversionType"),
)
SEQUENCES = (
    *("VOILUTSequence", "ModalityLUTSequence", "AnatomicRegionSequence", "ViewCodeSequence"),
    *("PatientOrientation", "IconImageSequence", "ReferencedImageSequence"),
)
NAME = b"WISNIEWSKA^HALINKA^TERESITA"


def raw(ds: Dataset, keyword: str, vr: str, value: bytes) -> None:
    """Put bytes where they do not belong."""
    tag = Tag(keyword)
    ds[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True, True)  # type: ignore[assignment]


def damaged(seeded: Path, folder: Path) -> list[Path]:
    whole = seeded.read_bytes()
    folder.mkdir()
    found: list[Path] = []

    def keep(data: bytes) -> None:
        found.append(folder / f"v{len(found):03d}.dcm")
        found[-1].write_bytes(data)

    def save(change: Callable[[Any], None]) -> None:
        ds = pydicom.dcmread(seeded)
        change(ds)
        path = folder / "part"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ds.save_as(path)
        keep(path.read_bytes())
        path.unlink()

    for end in (100, 140, 200, 400, 700, 1000, 1500, 2000, 3000, 40_000, len(whole) - 1):
        keep(whole[:end])
    for vr in ("LO", "UN", ""):
        for keyword, usual in NUMBERS.items():
            save(lambda ds, k=keyword, v=vr or usual: raw(ds, k, v, NAME))  # type: ignore[misc]
    for keyword in CODES:
        for value in (b"WISNIEWSKA", NAME, b"\xff\xfe" + NAME, NAME * 40):
            vr = "UI" if keyword.endswith("UID") else "CS"
            save(lambda ds, k=keyword, v=vr, b=value: raw(ds, k, v, b))  # type: ignore[misc]
    for keyword in SEQUENCES:
        for vr in ("LO", "UN"):
            save(lambda ds, k=keyword, v=vr: raw(ds, k, v, NAME))  # type: ignore[misc]

        def one_item(ds: Any, keyword: str = keyword) -> None:
            item = Dataset()
            item.CodeValue = "WISNIEWSKA"
            item.CodeMeaning = item.LUTExplanation = NAME.decode()
            raw(item, "LUTDescriptor", "LO", NAME)
            raw(item, "LUTData", "LO", NAME)
            ds.add_new(Tag(keyword), "SQ", [item])

        if keyword != "PatientOrientation":
            save(one_item)
    # Every identifying tag with another one's kind of value.
    for keyword in (*KEPT, *DROPPED):
        if keyword != "MediaStorageSOPInstanceUID":
            save(
                lambda ds, k=keyword: raw(
                    ds, k, pydicom.datadict.dictionary_VR(k), NAME + b"\xff\\1"
                )
            )  # type: ignore[misc]
    save(lambda ds: setattr(ds.file_meta, "TransferSyntaxUID", KEPT["StudyInstanceUID"]))
    save(lambda ds: raw(ds.file_meta, "TransferSyntaxUID", "UI", NAME))
    save(lambda ds: raw(ds.file_meta, "MediaStorageSOPClassUID", "UI", NAME))
    save(lambda ds: delattr(ds, "PixelData"))
    save(lambda ds: raw(ds, "PixelData", "OW", NAME))
    keep(whole.replace(b"US\x02\x00", b"ZZ\x02\x00", 3))
    keep(NAME + whole)
    keep(whole[128:])
    return found


@pytest.mark.parametrize("reports", [False, pytest.param(True, marks=needs_highdicom)])
def test_damaged_files_are_answered_without_repeating_them(
    reports: bool, seeded: Path, tmp_path: Path, repository: Path
) -> None:
    variants = damaged(seeded, tmp_path / "in")
    assert len(variants) > 150
    out = tmp_path / "out"
    more = ["--sr"] if reports else []
    given = [f"in/{path.name}" for path in variants]
    result = run(
        *("engine.predict", *given, "--output-dir", str(out), "--force", *more, *ANSWERED),
        cwd=tmp_path,
        repository=repository,
    )
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["input"] for answer in answers] == given
    # All are one instance: each is to be read all the same.
    assert not any(answer.get("stored") for answer in answers)
    statuses = {answer["status"] for answer in answers}
    assert statuses == {"ok", "refused", "error"}
    nothing_found(result.stdout, result.stderr, out)
    for path in out.glob("*.sr.dcm"):
        assert found_in(path.read_bytes(), words(*DROPPED.values(), *ELSEWHERE)) == []


def test_what_a_decoder_says_is_not_repeated(seeded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Texts of pydicom and of decoders quote values; for which files is theirs to change.
    for error in (ValueError, OSError, KeyError):

        def fail(*_: Any, error: type[Exception] = error, **__: Any) -> None:
            raise error(f"cannot read {KEPT['PatientName']!r} of {seeded}")

        monkeypatch.setattr("engine.dicom._read", fail)
        with pytest.raises(ImageError) as caught:
            read_dicom(seeded)
        assert found_in(str(caught.value)) == []
        assert caught.value.__cause__ is None or found_in(str(caught.value.__cause__)) == []


FAULT = """
import sys
import engine.prediction, engine.serve
def fault(*_, **__):
    raise RuntimeError("could not parse 'WISNIEWSKA^HALINKA'")
assert hasattr(engine.prediction.Predictor, "_judge")
engine.prediction.Predictor._judge = fault
sys.exit(engine.serve.main(sys.argv[1:]))
"""


def test_a_fault_of_the_program_itself_is_logged_without_what_it_says(
    seeded: Path, tmp_path: Path, repository: Path
) -> None:
    spool, out = tmp_path / "spool", tmp_path / "out"
    (spool / "incoming").mkdir(parents=True)
    spool.chmod(0o700)
    picture = spool / "incoming" / "1.dcm"
    picture.write_bytes(seeded.read_bytes())
    command = [sys.executable, "-c", FAULT, str(spool), "--output-dir", str(out), "--once"]
    result = subprocess.run(
        [*command, "--engines", "0"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert b"internal error" in result.stderr
    for kept in (spool / "failed").rglob("1.dcm"):
        kept.unlink()
    nothing_found(result.stdout, result.stderr, spool, out)


# ---- Names and UIDs that want to get out ---------------------------------------------------------

STRANGE = ["$(touch x).dcm", "`touch x`.dcm", "a;touch x;.dcm", "a'b\"c.dcm", "-rf", "a\nb.dcm",
           "--output-dir=x", "..dcm", "a b.dcm", "%s%n.dcm", "é.dcm",
           "&& touch x", "|touch x"]  # fmt: skip


def test_names_of_inputs_reach_no_shell_and_lead_nowhere(tmp_path: Path, repository: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "deep" / "out"
    work.mkdir()
    base = write_dicom(draw_phantom(6, height=128, width=160), tmp_path / "base.dcm")
    for number, name in enumerate(STRANGE):
        ds = pydicom.dcmread(base)
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        if number % 3 == 0:
            for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
                raw(ds, keyword, "UI", b"../../../escaped")
        if number % 3 == 1:
            raw(ds, "SOPInstanceUID", "UI", str(tmp_path / "absolute").encode())
        ds.save_as(work / name)
    before = sorted(path.name for path in work.iterdir())
    options = ["--output-dir", str(out), "--heatmap", *ANSWERED]
    if HAS_HIGHDICOM:
        options += ["--sr", "--sc"]
    result = run("engine.predict", *options, "--", *STRANGE, cwd=work, repository=repository)
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["input"] for answer in answers] == STRANGE
    assert {answer["status"] for answer in answers} == {"ok"}
    # Handed over to a worker, as a hook does it: no shell there either.
    spool = tmp_path / "spool"
    with_settings = ["engine.serve", str(spool), *options, "--once"]
    run(*with_settings, cwd=work, repository=repository, check=(0,))
    handed = run(
        "engine.predict", "--spool", str(spool), "--", *STRANGE, cwd=work, repository=repository
    )
    again = [json.loads(line) for line in handed.stdout.splitlines()]
    assert [answer["status"] for answer in again] == [answer["status"] for answer in answers]
    assert sorted(path.name for path in work.iterdir()) == before
    assert {path.name for path in tmp_path.iterdir()} == {"work", "deep", "spool", "base.dcm"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert not (tmp_path.parent / "escaped").exists()
    for answer in answers:
        for key in ("sr", "sc", "heatmap"):
            name = answer.get(key)
            if name is not None:
                assert Path(name).name == name
                assert (out / name).resolve().parent == out.resolve()
    # A wrong UID of the source is none of a result's.
    for path in out.glob("*.s[rc].dcm"):
        assert b"escaped" not in path.read_bytes()
        assert b"absolute" not in path.read_bytes()
