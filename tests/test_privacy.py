"""Identifying values, put wherever a user can put a text: none of them gets into a container."""

from __future__ import annotations

import base64
import copy
import csv
import hashlib
import hmac
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from formats_helpers import notes_of
from PIL import Image, PngImagePlugin
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

import engine
import formats
from engine import features
from engine.backbone import Backbone
from engine.errors import EngineError
from engine.features import extract_features
from formats._identity import find_identity

# ---- The values --------------------------------------------------------------------------------

# refused wherever they stand in the notes
IDENTIFYING = [
    # names, as DICOM writes them and with a title
    "KOWALSKA^ANNA", "Kowalska^Anna^Maria^^Dr", "Patient Name: Kowalska",
    # dates in several forms, finer than a year
    "1956-03-12", "19560312", "12.03.1956", "3/12/1956", "12 Mar 1956", "12. März 1956",
    "12 marca 1956", "1956年3月12日", "2019-03-07T14:23:11", "20190307142311.123", "2019-W12",
    "March 2019", "DOB 1956", "Q1 2019",
    # study times
    "14:23:11", "at 14:23", "2:05 pm",
    # UIDs
    "1.2.840.113619.2.55.3.604688119.971.1268904405.467",
    "2.25.329800735698586629295641978511506172918",
    # numbers of records, studies, insurances and people
    "MRN 0012345", "MRN-48213", "Patient-ID 482133", "patient 48213", "44051401359",
    "440514/1359", "078-05-1120", "943 476 5919", "ACC-2019-004521", "accession number 48213",
    "E0012345678", "DE89 3704 0044 0532 0130 00",
    # mail and telephone
    "anna.kowalska@szpital.pl", "anna.kowalska(at)szpital.pl", "+48 601 234 567",
    "(030) 1234 567", "tel. 601-234",
    # paths and file names
    "C:\\Users\\kowalska\\scan", "C:/Users/kowalska/scan", "/home/kowalska/scan",
    "\\\\pacs01\\archive\\kowalska", "//pacs01/archive/kowalska", "~/kowalska/scan", "../kowalska",
    "archive/p48213/kowalska", "IM-0001-0001.dcm", "kowalska_chest.png", "kowalska.nii.gz",
    "kowalska.docx", "file:///data/kowalska",
    # machines and addresses
    "10.20.30.40", "2001:db8::8a2e:370:7334", "00:1b:44:11:3a:b7", "pacs01.szpital.local",
    "pacs.szpital.pl:11112", "DESKTOP-4F7K2L9", "https://pacs.szpital.pl/kowalska",
    "https://example.org/viewer?study=48213", "smb://archive/kowalska",
    # ages over 89
    "aged 93", "a 97-year-old woman", "093Y", "93 lat", "ninety-three years",
    # hashes of images, other keys
    "d41d8cd98f00b204e9800998ecf8427e", "da39a3ee5e6b4b0d3255bfef95601890afd80709",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "550e8400-e29b-41d4-a716-446655440000", "1B2M2Y8AsgTpgAmY7PhCfg==",
]  # fmt: skip
# allowed in attribution, licence and terms, which name people and public sites
ONLY_ELSEWHERE = ["Dr. Kowalska", "ris.szpital.pl", "www.szpital-kowalska.com"]
# Known to pass: container.md says that tripwires cannot know names and shorter numbers.
HOLES = [
    "Anna Kowalska",
    "ward 7",
    "482133",
    "142311",
    "14:23",
    "WS-RAD-03",
    "born in 1956",
    "spring 2019",
]


def test_there_are_fifty_of_them_and_more() -> None:
    assert len(set(IDENTIFYING)) == len(IDENTIFYING) >= 50


@pytest.mark.parametrize("value", HOLES)
def test_known_holes(value: str) -> None:
    """Not wanted, but known: when one closes, take it off the list here and in container.md."""
    assert find_identity(value) is None


# ---- The notes and columns ---------------------------------------------------------------------

Notes = dict[str, Any]
FULL: Notes = {
    "format": "hilum-notes",
    "version": 1,
    **notes_of(4),
    "sources": ["unknown", "site-a"],
    "head": {"kind": "linear"},
    "software": {"hilum": "0.1.0"},
    "derived_from": ["0123456789abcdef" * 2],
    "probes": {"ramp": [0.5]},
    "about": {"title": "Chest X-rays"},
}
CITING = ("about.attribution", "about.licence", "about.terms")
# where a text can stand, and the keys that a refusal must name
PLACES = {
    "classes.1": "classes[1]",
    "sources.1": "sources[1]",
    "backbone.name": "backbone.name",
    "backbone.sha256": "backbone.sha256",
    "blocks.0.tap": "blocks[0].tap",
    "blocks.0.pooling": "blocks[0].pooling",
    "preprocessing.fit": "preprocessing.fit",
    "head.kind": "head.kind",
    "software.hilum": "software.hilum",
    "software.openvino": "software.openvino",
    "derived_from.0": "derived_from[0]",
    "format": "format",
    "about.title": "about.title",
    "about.attribution": "about.attribution",
    "about.licence": "about.licence",
    "about.terms": "about.terms",
    "about.population": "about.population",
    "about.url": "about.url",
    # a list where one text is expected, or one number
    "about.age_range_years": "about.age_range_years",
    "n_refused": "n_refused",
    "multilabel": "multilabel",
    "probes.ramp": "probes.ramp",
}
# objects whose keys a user may choose, or try to
KEYED = {
    "": "",
    "about": "about",
    "backbone": "backbone",
    "head": "head",
    "software": "software",
    "blocks.0": "blocks[0]",
    "preprocessing": "preprocessing",
    "probes": "probes",
}


def put(place: str, value: object) -> Notes:
    """Return full notes with a value at a place; a tuple's last part may hold dots."""
    notes = copy.deepcopy(FULL)
    *parents, last = place.split(".")
    target: Any = notes
    for name in parents:
        target = target[int(name)] if isinstance(target, list) else target[name]
    target[int(last) if isinstance(target, list) else last] = value
    return notes


def put_key(place: str, key: str) -> Notes:
    notes = copy.deepcopy(FULL)
    target: Any = notes
    for name in filter(None, place.split(".")):
        target = target[int(name)] if isinstance(target, list) else target[name]
    target[key] = [1] if place == "probes" else 1
    return notes


def test_the_notes_of_this_test_are_allowed(tmp_path: Path) -> None:
    """Otherwise everything would be refused for another reason."""
    formats.write_container(tmp_path / "x", np.ones((2, 4)), FULL)
    for place in PLACES:
        if place.startswith("about.") and place.removeprefix("about.") not in FULL["about"]:
            allowed = {"about.url": "https://example.org/", "about.age_range_years": [1, 5]}
            formats.validate_notes({**put(place, allowed.get(place, "Text"))})


@pytest.mark.parametrize("place", PLACES)
def test_no_value_of_the_notes_lets_one_in(place: str) -> None:
    texts = IDENTIFYING if place in CITING else IDENTIFYING + ONLY_ELSEWHERE
    for text in texts:
        if len(text) == 64 and place == "backbone.sha256":
            continue  # a SHA-256 is what belongs there, and the header's has to be equal
        if len(text) == 32 and place == "derived_from.0":
            continue  # nothing tells a uuid from another number of 128 bits
        for value in (text, f"normal {text}", f"{text}, seen"):
            with pytest.raises(formats.NotesError) as caught:
                formats.validate_notes(put(place, value))
            assert caught.value.key == PLACES[place]
            assert PLACES[place] in str(caught.value)


@pytest.mark.parametrize("place", KEYED)
def test_no_key_of_the_notes_lets_one_in(place: str) -> None:
    for text in IDENTIFYING + ONLY_ELSEWHERE:
        lower = text.lower()
        for key in (text, lower, re.sub(r"[^a-z0-9_]", "_", f"k_{lower}")):
            if place == "preprocessing" and find_identity(key) is None and key.startswith("k_"):
                continue  # bent into a key so far that only the name itself is left: a hole
            if place == "probes" and find_identity(key) is None:
                continue
            with pytest.raises(formats.NotesError) as caught:
                formats.validate_notes(put_key(place, key))
            assert caught.value.key.startswith(KEYED[place])


def test_numbers_that_are_somebodys_are_refused() -> None:
    for place in ("preprocessing.height", "probes.ramp"):
        for number in (44051401359, 48213482, 19560312, -19560312.0):
            with pytest.raises(formats.NotesError, match="up to 1000000"):
                formats.validate_notes(put(place, [number]))


def test_nothing_is_written_when_a_value_is_refused(tmp_path: Path) -> None:
    places = [place for place in PLACES if place not in ("backbone.sha256", "derived_from.0")]
    for i, text in enumerate(IDENTIFYING):
        place = places[i % len(places)]
        with pytest.raises(formats.NotesError, match=re.escape(PLACES[place])):
            formats.write_container(tmp_path / "x", np.ones((2, 4)), put(place, text))
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", IDENTIFYING)
def test_no_column_name_lets_one_in(text: str, tmp_path: Path) -> None:
    for name in (text, text.lower(), re.sub(r"[^a-z0-9_]", "_", text.lower())[:23]):
        with pytest.raises(ValueError, match="expected some of label, split") as caught:
            formats.write_container(
                tmp_path / "x", np.ones((2, 4)), notes_of(4), columns={name: [0, 1]}
            )
        assert repr(name) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_ages_over_89_are_refused_as_such(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="90 stands for 90 or more"):
        formats.write_container(tmp_path / "x", np.ones((1, 4)), notes_of(4), columns={"age": [93]})


# ---- Through the extraction --------------------------------------------------------------------

# beside the values as a whole: what of them would be enough
SECRET = b"a secret of the site, 32 bytes.."
PARTS = ["kowalska", "szpital", "48213", "0012345", "004521", "440514", "604688119", "pacs01",
         "a secret of the site"]  # fmt: skip


def forms_of(text: str) -> Iterator[bytes]:
    """Yield the bytes by which a text could stand in a file, ASCII letters in lower case."""
    for encoding in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "latin-1"):
        for spelling in (text, text.lower(), text.upper()):
            yield spelling.encode(encoding, "replace").lower()
    yield base64.b64encode(text.encode()).rstrip(b"=").lower()[:-1]
    yield text.encode().hex().encode()
    yield text.encode("unicode_escape").lower()
    digits = re.sub(r"\D", "", text)
    if len(digits) >= 6:
        yield digits.encode()
        number = int(digits)
        if number >= 1 << 24:  # shorter ones are found in any file of this size by chance
            for format_, limit in (("<I", 32), (">I", 32), ("<Q", 64), (">Q", 64), ("<d", 53)):
                if number < 1 << limit:
                    yield struct.pack(format_, number).lower()


def found_in(data: bytes, texts: list[str]) -> list[str]:
    lower = data.lower()
    return [text for text in texts if any(form in lower for form in forms_of(text))]


def hashes_of(path: Path) -> list[bytes]:
    """Hashes of a file by which its row could be recognised, as bytes and as digits."""
    data = path.read_bytes()
    pixels = np.asarray(Image.open(path)).tobytes() if path.suffix != ".bin" else data
    found = []
    for kind in ("md5", "sha1", "sha256", "sha512", "blake2b"):
        for content in (data, pixels, str(path).encode(), path.name.encode()):
            digest = hashlib.new(kind, content).digest()[:16]
            found += [digest, digest.hex().encode()]
    return found


def test_the_search_finds_what_is_there() -> None:
    for text in (*IDENTIFYING, *PARTS):
        for encoding in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le"):
            planted = b"\x00\x01" + text.upper().encode(encoding) + b"\xff"
            assert found_in(planted, [text]) == [text]
    assert found_in(struct.pack("<d", 44051401359), ["44051401359"])
    assert found_in(struct.pack("<I", 19560312), ["1956-03-12"])
    assert not found_in(bytes(range(256)) * 4, [*IDENTIFYING, *PARTS])


def as_file_name(text: str) -> str:
    return re.sub(r"[/\\\0]", "_", text)


def draw_png(path: Path, pixels: np.ndarray, text: str) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", "Kowalska Anna")
    info.add_text("Comment", text.encode("latin-1", "replace").decode("latin-1"), zip=True)
    info.add_itxt("Description", text)
    exif = Image.Exif()
    exif[0x010E], exif[0x0132] = text, "1956:03:12 14:23:11"
    Image.fromarray(pixels).save(path, "PNG", pnginfo=info, exif=exif)


def draw_jpeg(path: Path, pixels: np.ndarray, text: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = exif[0x013B] = exif[0x9C9C] = text
    exif[0x0132] = "1956:03:12 14:23:11"
    Image.fromarray(pixels).save(path, "JPEG", exif=exif, comment=text.encode()[:60_000])


def draw_tiff(path: Path, pixels: np.ndarray, text: str) -> None:
    tags = {270: text, 315: "Kowalska", 316: "pacs01", 306: "1956:03:12 14:23:11", 269: text}
    ascii_tags = {
        number: value.encode("ascii", "replace").decode() for number, value in tags.items()
    }
    Image.fromarray(pixels).save(path, "TIFF", tiffinfo=ascii_tags)


def draw_dicom(path: Path, pixels: np.ndarray, text: str) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = "2.25.329800735698586629295641978511506172918"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"KOWALSKA".ljust(128, b"\0"))
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = meta.MediaStorageSOPClassUID
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID = "1.2.840.113619.2.55.3.604688119.971.1268904405.467"
    ds.Modality = "DX"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = "KOWALSKA^ANNA", "MRN-48213", "19560312"
    ds.PatientAge, ds.PatientSex = "093Y", "F"
    ds.AccessionNumber, ds.InstitutionName = "ACC-2019-004521", "Szpital Kowalska"
    ds.StudyDate, ds.StudyTime, ds.StationName = "20190307", "142311.123", "DESKTOP-4F7K2L9"
    ds.ReferringPhysicianName = "Kowalska^Dr"
    ds.ImageComments = text
    block = ds.private_block(0x0011, "SZPITAL", create=True)
    block.add_new(0x01, "UT", text)
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OB"
    pydicom.dcmwrite(path, ds, enforce_file_format=True)


DRAWERS: list[tuple[str, Callable[[Path, np.ndarray, str], None]]] = [
    ("png", draw_png),
    ("jpg", draw_jpeg),
    ("tif", draw_tiff),
    ("dcm", draw_dicom),
]


@pytest.fixture(scope="module")
def backbone() -> Iterator[Backbone]:
    yield engine.load_backbone("efficientnet-lite0", streams=2)


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures whose folders, names, metadata and manifest are full of identifying values."""
    folder = tmp_path_factory.mktemp("clinic") / "KOWALSKA^ANNA 1956-03-12" / "MRN 0012345"
    folder.mkdir(parents=True)
    everything = "\n".join(IDENTIFYING)
    with (folder / "labels 2019-03-07.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "label", "patient", "split", "source", "sex", "age", "view"])
        # each value is a patient, a file name, and in the metadata of every picture
        for i, text in enumerate(IDENTIFYING):
            ending, draw = DRAWERS[i % 4]
            rng = np.random.default_rng(i)
            coarse = Image.fromarray(rng.integers(0, 256, (8, 8)).astype(np.uint8))
            pixels = np.asarray(coarse.resize((96, 80), Image.Resampling.BICUBIC))
            name = f"{as_file_name(text)} {i}.{ending}"
            draw(folder / name, pixels, everything)
            age = "97Y" if i % 5 == 0 else str(20 + i % 60)
            label, source = ["normal", "pneumonia"][i % 2], ["north", "south"][i % 3 > 0]
            rows.writerow([name, label, text, "", source, "FM"[i % 2], age, "PA"])
    return folder


def test_the_pictures_of_this_test_hold_what_is_looked_for(clinic: Path) -> None:
    for ending in ("png", "jpg", "tif", "dcm"):
        data = next(clinic.glob(f"*.{ending}")).read_bytes()
        assert len(found_in(data, IDENTIFYING)) >= 50, ending
    table = (clinic / "labels 2019-03-07.csv").read_bytes()
    assert len(found_in(table, IDENTIFYING)) >= 50


def look_for_everything(folder: Path, clinic: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    pictures = [path for path in clinic.iterdir() if path.suffix in (".png", ".jpg", ".tif")]
    for path in files:
        data = path.read_bytes()
        assert found_in(data, [*IDENTIFYING, *PARTS, *ONLY_ELSEWHERE]) == [], path.name
        for picture in pictures:
            for digest in hashes_of(picture):
                assert digest not in data, (path.name, picture.name)


@pytest.mark.parametrize("dtype", ["f16", "i8"])
def test_nothing_comes_through_the_extraction(
    clinic: Path, backbone: Backbone, tmp_path: Path, dtype: str
) -> None:
    manifest = clinic / "labels 2019-03-07.csv"
    about = {"title": "Chest X-rays of adults", "licence": "CC BY 4.0"}
    with extract_features(
        backbone, [], tmp_path / "o.hilum", manifest=manifest, dtype=dtype, about=about
    ) as container:
        container.verify()
        assert container.n_rows == len(IDENTIFYING)
        assert container.classes == ("normal", "pneumonia")
        assert container.sources_names == ("north", "south")
        assert set(container.columns) == {
            "label", "group", "source", "sex", "age", "projection",
        }  # fmt: skip
        ages = np.asarray(container.ages)
        assert ages.max() == 90 and np.count_nonzero(ages == 90) == -(-len(IDENTIFYING) // 5)
        assert sorted(np.asarray(container.groups).tolist()) == list(range(len(IDENTIFYING)))
        assert container.features.dtype == np.dtype("f2" if dtype == "f16" else "i1")
    assert [path.name for path in tmp_path.iterdir()] == ["o.hilum"]
    look_for_everything(tmp_path, clinic)


@pytest.mark.parametrize("dtype", ["f16", "i8"])
def test_what_a_stopped_extraction_leaves_holds_nothing_either(
    clinic: Path, backbone: Backbone, tmp_path: Path, dtype: str
) -> None:
    def stop(done: int, _total: int) -> None:
        if done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_features(
            backbone,
            [],
            tmp_path / "o.hilum",
            manifest=clinic / "labels 2019-03-07.csv",
            dtype=dtype,
            sample_key_secret=SECRET,
            on_progress=stop,
        )
    left = {path.name for path in tmp_path.iterdir()}
    assert {"o.hilum.part", "o.hilum.part.journal"} <= left
    assert "o.hilum" not in left
    look_for_everything(tmp_path, clinic)


def test_keys_of_images_need_the_secret(clinic: Path, backbone: Backbone, tmp_path: Path) -> None:
    picture = next(clinic.glob("*.png"))
    expected = hmac.digest(SECRET, picture.read_bytes(), "sha256")[:16]
    with extract_features(
        backbone, picture, tmp_path / "o.hilum", sample_key_secret=SECRET
    ) as container:
        assert container.sample_keys is not None
        assert bytes(container.sample_keys[0]) == expected
    look_for_everything(tmp_path, clinic)


@pytest.mark.parametrize("column", ["label", "source"])
def test_texts_of_a_manifest_that_would_be_stored_are_refused(
    column: str, backbone: Backbone, tmp_path: Path
) -> None:
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "b.png")
    manifest, out = tmp_path / "m.csv", tmp_path / "out"
    out.mkdir()
    key = "classes" if column == "label" else "sources"
    for text in IDENTIFYING + ONLY_ELSEWHERE:
        with manifest.open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerows([["file", column], ["a.png", text], ["b.png", "plain"]])
        with pytest.raises(formats.NotesError, match=rf"notes: {key}\[[01]\]: "):
            extract_features(backbone, [], out / "o.hilum", manifest=manifest)
        assert list(out.iterdir()) == []


@pytest.mark.parametrize("key", ["title", "population", "attribution", "licence", "terms", "url"])
def test_what_is_said_about_a_set_is_refused(key: str, backbone: Backbone, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "a.png")
    for text in IDENTIFYING:
        with pytest.raises(formats.NotesError, match=rf"notes: about\.{key}: "):
            extract_features(backbone, tmp_path / "a.png", tmp_path / "o.hilum", about={key: text})
    with pytest.raises(formats.NotesError, match=r"about\.44051401359: this key is not on"):
        extract_features(
            backbone, tmp_path / "a.png", tmp_path / "o.hilum", about={"44051401359": "x"}
        )
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_folders_that_would_be_classes_are_refused(backbone: Backbone, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for i, text in enumerate(IDENTIFYING):
        name = as_file_name(text)
        if find_identity(name) is None or name in (".", ".."):
            continue
        folder = tmp_path / str(i)
        for label in (name, "normal"):
            (folder / label).mkdir(parents=True)
            Image.fromarray(np.zeros((64, 64), np.uint8)).save(folder / label / "a.png")
        with pytest.raises(EngineError, match=r"notes: classes\[[01]\]: "):
            extract_features(backbone, folder, out / "o.hilum")
        assert list(out.iterdir()) == []


# ---- Through files of others -------------------------------------------------------------------


def test_a_strangers_table_brings_none_in(tmp_path: Path) -> None:
    notes = {key: FULL[key] for key in ("backbone", "preprocessing")}
    table, out = tmp_path / "t.csv", tmp_path / "out"
    out.mkdir()

    def bring_in(header: list[str], column: list[str]) -> None:
        with table.open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["f0", "f1", *header])
            rows.writerows([i, 0.5, text] for i, text in enumerate(column))
        formats.import_container(table, out / "o.hilum", notes=notes)

    bring_in(["patient"], IDENTIFYING)
    with formats.open_container(out / "o.hilum") as container:
        assert sorted(np.asarray(container.groups).tolist()) == list(range(len(IDENTIFYING)))
        order = np.asarray(container.features[:, 0])
        assert correlation(order, np.arange(len(order))) < BOUND
    assert [path.name for path in out.iterdir()] == ["o.hilum"]
    data = (out / "o.hilum").read_bytes()
    assert found_in(data, [*IDENTIFYING, *PARTS]) == []
    (out / "o.hilum").unlink()
    for text in IDENTIFYING + ONLY_ELSEWHERE:
        for name, key in (("label", "classes"), ("source", "sources")):
            with pytest.raises(formats.NotesError, match=rf"notes: {key}\[[01]\]: "):
                bring_in([name], [text, "plain"])
        with pytest.raises(formats.ContainerError, match=r"is unknown\. Leave it out") as caught:
            bring_in([text], ["1", "2"])
        assert f"column {text!r} is unknown" in str(caught.value)
    assert list(out.iterdir()) == []


def test_a_strangers_container_brings_none_into_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading sets no tripwires, so a container of another writer may hold what ours refuses."""
    stranger, out = tmp_path / "stranger.hilum", tmp_path / "out"
    out.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("formats._identity.find_identity", lambda *_, **__: None)
        formats.write_container(
            stranger,
            np.arange(16).reshape(4, 4),
            put("about.title", "Chest of KOWALSKA^ANNA"),
            columns={"label": [0, 1, 0, 1], "group": [0, 1, 2, 3]},
        )
    with formats.open_container(stranger) as container:
        assert "KOWALSKA" in container.notes["about"]["title"]
    calls: list[Callable[[], object]] = [
        lambda: formats.subset_container(stranger, out / "o.hilum", rows=[0, 1]),
        lambda: formats.merge_containers([stranger, stranger], out / "o.hilum"),
        lambda: formats.withdraw_rows(stranger, out / "o.hilum", rows=[0]),
        lambda: formats.resplit_container(stranger, out / "o.hilum"),
        lambda: formats.export_container(stranger, out / "o.npz"),
    ]
    for call in calls:
        with pytest.raises(EngineError, match=r"notes: about\.title: .* holds a '\^'"):
            call()
        assert list(out.iterdir()) == []


# ---- Order -------------------------------------------------------------------------------------

N_PATIENTS, N_IMAGES = 200, 400
# A correlation of n random pairs has a standard deviation of 1 / sqrt(n - 1): 5.2 of them here. It
# comes by chance once in five million runs; an order that is kept gives 1.
BOUND = 5.2


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation (Spearman's) in units of its standard deviation."""
    ranks = [np.argsort(np.argsort(values, kind="stable")) for values in (first, second)]
    return float(abs(np.corrcoef(*ranks)[0, 1]) * np.sqrt(len(first) - 1))


@pytest.fixture
def numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A manifest whose images are not looked at: the first feature is an image's number."""

    def fake(
        paths: Any, _backbone: Any, _preprocessing: Any, blocks: Any, views: Any
    ) -> list[np.ndarray]:
        width = sum(block.width for block in blocks)
        return [
            np.full((1 + len(views), width), int(Path(path).stem), np.float32) for path in paths
        ]

    monkeypatch.setattr(features, "feature_vectors", fake)
    lines = [f"{i}.png,p{i // 2},{['train', 'valid', 'test'][i // 2 % 3]}" for i in range(N_IMAGES)]
    (tmp_path / "m.csv").write_text("file,patient,split\n" + "\n".join(lines) + "\n")
    return tmp_path / "m.csv"


def run(backbone: Backbone, manifest: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Extract; returns the number of each row's image, and its group."""
    out = manifest.with_name(name)
    with extract_features(backbone, [], out, manifest=manifest, dtype="f32") as container:
        assert container.n_rows == N_IMAGES
        return container.features[:, 0].astype(int), np.array(container.groups)


def test_rows_are_shuffled(numbered: Path, backbone: Backbone) -> None:
    first, _ = run(backbone, numbered, "a.hilum")
    second, _ = run(backbone, numbered, "b.hilum")
    place = np.arange(N_IMAGES)
    for order in (first, second):
        assert sorted(order.tolist()) == place.tolist()
        assert correlation(order, place) < BOUND
        # no runs of neighbours either: by chance two of 400 rows follow their neighbour
        assert np.count_nonzero(np.abs(np.diff(order)) == 1) < 20
    assert first.tolist() != second.tolist()
    assert correlation(first, second) < BOUND
    assert correlation(place, place) > BOUND  # the bound can be missed


def test_group_numbers_are_dense_and_random(numbered: Path, backbone: Backbone) -> None:
    numbers = []
    for name in ("a.hilum", "b.hilum"):
        images, groups = run(backbone, numbered, name)
        of_patient = np.full(N_PATIENTS, -1)
        of_patient[images // 2] = groups
        assert (of_patient[images // 2] == groups).all()  # both images of a patient alike
        assert sorted(of_patient.tolist()) == list(range(N_PATIENTS))
        assert correlation(of_patient, np.arange(N_PATIENTS)) < BOUND
        numbers.append(of_patient)
    assert numbers[0].tolist() != numbers[1].tolist()
    assert correlation(*numbers) < BOUND


def test_the_writer_numbers_groups_anew_in_random_order(tmp_path: Path) -> None:
    """Real numbers of patients, in their order and with holes, are not found again."""
    given = np.repeat(np.arange(N_PATIENTS) * 31 + 4_400_000, 2)
    numbers = []
    for name in ("a", "b"):
        formats.write_container(
            tmp_path / name, np.ones((N_IMAGES, 4)), notes_of(4), columns={"group": given}
        )
        with formats.open_container(tmp_path / name) as container:
            groups = np.asarray(container.groups)[::2]
            assert (np.asarray(container.groups)[1::2] == groups).all()
        assert sorted(groups.tolist()) == list(range(N_PATIENTS))
        assert correlation(groups, np.arange(N_PATIENTS)) < BOUND
        numbers.append(groups.copy())
    assert correlation(*numbers) < BOUND
