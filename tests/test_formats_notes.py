from __future__ import annotations

import copy
import hashlib
import json
import sys
from typing import Any

import pytest
from formats_helpers import ROOT, notes_of
from hypothesis import given
from hypothesis import strategies as st

import formats
from formats._identity import find_identity
from formats._json import canonical_json, parse_json
from formats.notes import notes_schema, validate_notes

FULL = {
    "format": "hilum-notes",
    "version": 1,
    **notes_of(8),
    "sources": ["unknown", "site-a"],
    "views": {
        "number": 4,
        "mirror": True,
        "rotation_degrees": 5.0,
        "shift_fraction": 0.03,
        "scale_fraction": 0.05,
        "contrast_fraction": 0.1,
        "group": "patient",
    },
    "head": {"kind": "mlp", "hidden": 64},
    "software": {"hilum": "0.1.0", "openvino": "2026.4.1"},
    "n_refused": 3,
    "derived_from": ["0123456789abcdef" * 2, "f" * 32],
    "probes": {"ramp": [0.5, -1, 2.25]},
    "about": {
        "title": "Paediatric chest X-rays, 2010-2013",
        "attribution": "Kermany et al., Cell 172(5), 2018, doi:10.1016/j.cell.2018.02.010",
        "licence": "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/",
        "terms": "Research only",
        "population": "Children of one to five years",
        "age_range_years": [1, 5],
        "url": "https://data.mendeley.com/datasets/rscbjbr9sj/2",
    },
}


def changed(path: str, value: object) -> dict:
    notes = copy.deepcopy(FULL)
    *parents, last = path.split(".")
    target = notes
    for name in parents:
        target = target[int(name)] if isinstance(target, list) else target[name]
    if isinstance(target, list):
        target[int(last)] = value
    else:
        target[last] = value
    return notes


def test_full_notes_are_allowed() -> None:
    validate_notes(FULL, dim=8)
    assert parse_json(canonical_json(FULL)) == FULL


@pytest.mark.parametrize("key", ["format", "version", "classes", "multilabel", "backbone",
                                 "preprocessing", "blocks"])  # fmt: skip
def test_required_keys(key: str) -> None:
    notes = {name: value for name, value in FULL.items() if name != key}
    with pytest.raises(formats.NotesError, match=f"{key}: is missing") as caught:
        validate_notes(notes)
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("patient", "patient"),
        ("anonymous", "anonymous"),
        ("backbone.path", "backbone.path"),
        ("about.contact", "about.contact"),
        ("blocks.0.file", "blocks[0].file"),
        ("software.host", "software.host"),
    ],
)
def test_unknown_keys_are_refused_and_kept_when_reading(path: str, key: str) -> None:
    notes = changed(path, "x")
    with pytest.raises(
        formats.NotesError, match=r"not on the allow-list\. Allowed here: "
    ) as caught:
        validate_notes(notes)
    assert caught.value.key == key
    validate_notes(notes, reading=True)


WRONG = [
    ("format", "other", "format"),
    ("version", 2, "version"),
    ("version", True, "version"),
    ("version", 1.0, "version"),
    ("classes", "normal", "classes"),
    ("classes", ["a", "a"], "classes"),
    ("classes", ["a", 1], "classes[1]"),
    ("classes", [""], "classes[0]"),
    ("classes", ["x" * 101], "classes[0]"),
    ("multilabel", 0, "multilabel"),
    ("sources", [], "sources"),
    ("sources", [f"s{i}" for i in range(257)], "sources"),
    ("backbone", "lite0", "backbone"),
    ("backbone.sha256", "AB" * 32, "backbone.sha256"),
    ("backbone.name", "a b", "backbone.name"),
    ("preprocessing", {}, "preprocessing"),
    ("preprocessing", {"Height": 3}, "preprocessing.Height"),
    ("preprocessing", {"note": "free text here"}, "preprocessing.note"),
    ("preprocessing", {"a": {"b": 1}}, "preprocessing.a"),
    ("preprocessing", {"a": 1_000_001}, "preprocessing.a"),
    ("preprocessing", {"a": [1, float("nan")]}, "preprocessing.a"),
    ("blocks", [], "blocks"),
    ("blocks.0.offset", 1, "blocks[0].offset"),
    ("blocks.0.width", 7, "blocks"),
    ("blocks.0.width", 0, "blocks[0].width"),
    ("views.number", 256, "views.number"),
    ("views.mirror", 1, "views.mirror"),
    ("views.rotation_degrees", 181, "views.rotation_degrees"),
    ("views.shift_fraction", "0.1", "views.shift_fraction"),
    ("views.scale_fraction", True, "views.scale_fraction"),
    ("views.contrast_fraction", -0.1, "views.contrast_fraction"),
    ("views.group", "nobody", "views.group"),
    ("head.kind", "forest", "head.kind"),
    ("software.hilum", "0.1 on my PC", "software.hilum"),
    ("n_refused", -1, "n_refused"),
    ("n_refused", 1.0, "n_refused"),
    ("probes", {"ramp": ["x"]}, "probes.ramp[0]"),
    ("probes", {}, "probes"),
    ("about.title", "x" * 501, "about.title"),
    ("about.title", " ", "about.title"),
    ("about.age_range_years", [0, 91], "about.age_range_years[1]"),
    ("about.age_range_years", [5, 1], "about.age_range_years"),
    ("about.age_range_years", [5], "about.age_range_years"),
    ("about.url", "ftp://example.org/x", "about.url"),
    ("about.url", "https://pacs.local/study?id=3", "about.url"),
    ("about.url", "https://me@example.org/", "about.url"),
    ("derived_from", [], "derived_from"),
    ("derived_from", ["a" * 32] * 2, "derived_from"),
    ("derived_from", [f"{i:032x}" for i in range(65)], "derived_from"),
    ("derived_from", ["A" * 32], "derived_from[0]"),
    ("derived_from", ["a" * 31], "derived_from[0]"),
    ("derived_from", "a" * 32, "derived_from"),
]


@pytest.mark.parametrize(("path", "value", "key"), WRONG)
def test_wrong_values_are_refused_with_the_key(path: str, value: object, key: str) -> None:
    with pytest.raises(formats.NotesError) as caught:
        validate_notes(changed(path, value), dim=8)
    assert caught.value.key == key
    assert key in str(caught.value)


# ---- The JSON Schema ---------------------------------------------------------------------------

# what a schema cannot say; everything else that is wrong must be wrong for both
ONLY_THE_VALIDATOR = [
    ("preprocessing", {"a": [1, float("nan")]}),  # JSON has none
    ("blocks.0.offset", 1),
    ("blocks.0.width", 7),
    ("n_refused", 1.0),
    ("version", 1.0),
    ("about.age_range_years", [5, 1]),
    ("about.title", "2019-03-07"),
    ("classes.0", "DOE^JOHN"),
    ("about.url", "https://pacs.szpital.pl/"),
    ("backbone.name", "12345678"),
    ("preprocessing.scan_2019_03", 1),
]
RIGHT = [
    ("classes", []),
    ("classes", ["x" * 100, "肺炎"]),
    ("multilabel", True),
    ("sources", [f"s{i}" for i in range(256)]),
    ("backbone.name", "a.b_c+d-e"),
    ("preprocessing", {"a": [1, -0.5, True, None, "b-c"], "b": [], "c9_": 1_000_000}),
    ("preprocessing", {f"k{i}": i for i in range(64)}),
    ("head", {"kind": "linear"}),
    ("software", {}),
    ("software.openvino", "2026.4.1.dev3"),
    ("n_refused", 0),
    ("derived_from", [f"{i:032x}" for i in range(64)]),
    ("probes", {f"p{i}": [1e6, -1e6] for i in range(16)}),
    ("about", {}),
    ("about.title", "x" * 500),
    ("about.age_range_years", [0, 90]),
    ("about.age_range_years", [3, 3]),
]


@pytest.fixture(scope="module")
def schema() -> Any:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    stored = json.loads((ROOT / "formats" / "notes.schema.json").read_text(encoding="utf-8"))
    assert stored == notes_schema(), (
        "the file is not what the rules say; write json.dumps(notes_schema(), indent=2) and a "
        "line end into formats/notes.schema.json"
    )
    jsonschema.Draft202012Validator.check_schema(stored)
    return jsonschema.Draft202012Validator(stored)


def allowed(notes: object) -> bool:
    try:
        validate_notes(notes, dim=8)  # type: ignore[arg-type]
    except formats.NotesError:
        return False
    return True


def test_the_schema_names_every_key_and_only_those(schema: Any) -> None:
    assert set(schema.schema["properties"]) == set(FULL)
    assert schema.schema["additionalProperties"] is False
    objects = [schema.schema]
    while objects:
        item = objects.pop()
        if item.get("type") == "object":
            assert "additionalProperties" in item
            assert item["additionalProperties"] is False or "propertyNames" in item
        objects += [child for child in item.values() if isinstance(child, dict)]


def test_schema_and_validator_allow_the_same(schema: Any) -> None:
    with formats.open_container(ROOT / "engine" / "demonstration" / "pneumonia.hilum") as container:
        schema.validate(container.notes)
    for notes in (FULL, *(changed(path, value) for path, value in RIGHT)):
        validate_notes(notes)
        schema.validate(notes)


@pytest.mark.parametrize(("path", "value", "key"), WRONG)
def test_schema_and_validator_refuse_the_same(
    schema: Any, path: str, value: object, key: str
) -> None:
    del key
    only = repr((path, value)) in map(repr, ONLY_THE_VALIDATOR)
    assert schema.is_valid(changed(path, value)) is only


@pytest.mark.parametrize("key", list(FULL))
def test_schema_and_validator_require_the_same(schema: Any, key: str) -> None:
    for notes in (
        {name: value for name, value in FULL.items() if name != key},
        changed(key, None),
        changed(key, {"x": 1}),
        changed(key, [1]),
        changed(key, 3.5),
        {**FULL, f"{key}_": FULL[key]},
    ):
        assert schema.is_valid(notes) is allowed(notes)


@pytest.mark.parametrize(("path", "value"), ONLY_THE_VALIDATOR)
def test_what_only_the_validator_refuses(schema: Any, path: str, value: object) -> None:
    assert schema.is_valid(changed(path, value))
    assert not allowed(changed(path, value))


# ---- Tripwires ---------------------------------------------------------------------------------

# values that would lead to a person, a study or a machine
IDENTIFYING = [
    "2019-03-07", "2019/03", "20190307", "7.3.2019", "07/03/19", "03/2019", "March 2019",
    "Mar 7, 2019", "7 March", "7th of x 12 Dec", "on 2019.3.7.", "201903", "1998 05 17",
    "12345678", "MRN 0012345", "tel 5551234567", "A1234567B",
    "jo@clinic.org", "write to a.b+c@x-y.co.uk",
    "DOE^JOHN", "^^",
    "1.2.840.10008.5.1.4.1.1.1", "uid 2.25.329800735698586629295641978511506172918",
    "1.3.6.1.4.1",
    "/home/jo/x", "C:\\data\\x", "see ~/x", "../x", "\\\\server\\share", "file:abc",
    "a/b1234/c", "study/p10042/x",
    "IM-0001.dcm", "scan.jpeg", "list.csv", "(/mnt/x)",
    "aged 93", "a 97-year-old woman", "101 years", "95 yo", "92 y/o",
    # the same in other spellings, languages and alphabets
    "12-Mar-2019", "12Mar2019", "12-mar-19", "Mar-2019", "2019-Mar-12", "2019 March", "Dec 12",
    "12 MAY", "12 OCT 2019", "OCTOBER 2019", "12th of March 2019", "12 march 2019",
    "2019\u201303\u201312", "2019\u201103\u201112", "2019\u221203", "2019\u00a003\u00a012",
    "20\u00ad19-03-12", "\uff12\uff10\uff11\uff19-\uff10\uff13-\uff11\uff12",
    "\u0662\u0660\u0661\u0669-\u0660\u0663",
    "1956年3月12日", "3月12日", "1956년 3월 12일", "12 marca 1956", "w marcu 1956", "12. März 1956",
    "Marz 1956", "12 août 1956", "12 de marzo de 2019", "12 марта 1956", "май 1956",
    "12 Μαρτίου 1956", "12 IV 1956", "12.IV.1956", "12-abc-1956", "7. 3. 2019", "2019/3", "2019.3",
    "03.2019", "03-2019", "07-03-19", "7.3.19",
    "123-45-6789", "943 476 5919", "+48 601 234 567", "+49 (30) 12-34/56", "12 345 678",
    "440514-01359", "440514\u201301359", "1_2_840_113619_2_55", "4.4.0.5.1.4.0", "560312/1234",
    "1234-5678",
    "192.168.1.17", "on 10.0.0.1", "pacs01.szpital.local", "ws7.lan", "localhost", "fe80::1ff:2",
    "00:1b:44:11:3a:b7", "pacs.szpital.pl", "pacs.szpital.pl:11112",
    "93 lat", "lat 99 letnia 91-letnia", "93-jähriger", "93-jährige", "93 ans", "93 años", "96岁",
    "wiek: 93", "Alter 93",
    "https://pacs.szpital.pl/patient/44051401359", "10.1234/44051401359", "see http://x.org/y",
    "HTTPS://x.org/y", "jo\uff20clinic.org", "DOE\uff3eJOHN",
    # weeks, quarters and times of day
    "2019-W12", "2019-W12-4", "2019W12", "W12/2019", "week 12 2019", "KW 12/2019", "Q1 2019",
    "2019Q1", "day 66 of 2019", "March '19", "14:23:11", "at 14:23", "um 14:23", "2:05 pm",
    "14:23 Uhr", "一九五六年三月十二日",
    # shorter numbers where a word says whose they are
    "MRN12345", "MRN: 12345", "mrn_4711", "pid 4711", "patient 4711", "Patient-ID 123456",
    "patient id 12", "PAT0001", "acc 55512", "accession number 4711", "acc no AB-471",
    "study no 17", "case number 4711", "DOB 1956", "Patient Name: Anna", "patient's name",
    "(030) 123 456", "tel. 123-456", "Fax: 0301", "tel:601-234",
    # addresses in other clothes
    "anna.k(at)szpital.pl", "anna [at] szpital [dot] pl", "mailto:anna", "smb://pacs/share",
    "ftp://pacs/x", "ssh://host/x", "s3://bucket/x", "//server/share/x", "home/jo/x",
    "2001:db8::8a2e:370:7334", "00-1B-44-11-3A-B7", "001b.4411.3ab7", "DESKTOP-4F7K2L9",
    "radiology.hospital.org", "www.hospital.pl", "ris.szpital.pl", "hospital.org/x",
    "doe.nrrd", "doe.mha", "doe.npy", "doe.txt", "doe.zip", "doe.pdf", "doe.docx", "doe.hl7",
    "doe.safetensors", "doe.webp", "doe.jp2", "doe.html", "doe.db",
    # hashes and keys
    "d41d8cd98f00b204e9800998ecf8427e", "da39a3ee5e6b4b0d3255bfef95601890afd80709",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "550e8400-e29b-41d4-a716-446655440000", "1B2M2Y8AsgTpgAmY7PhCfg==",
    # ages and titles
    "93 y", "93Y", "093Y", "age: 093Y", "104y", "ninety-three years", "Dr. House", "Mr John Doe",
    "Prof. Kowalska", "Frau Müller",
    "bell\x07", "line\nbreak", "tab\tx", "a\u2028b", "\x9b1m",
]  # fmt: skip


@pytest.mark.parametrize("text", IDENTIFYING)
@pytest.mark.parametrize("path", ["about.title", "about.population", "classes.0", "sources.1"])
def test_identifying_values_are_refused(text: str, path: str) -> None:
    assert find_identity(text) is not None
    with pytest.raises(formats.NotesError, match="Notes travel with the features") as caught:
        validate_notes(changed(path, text))
    assert caught.value.key == path.replace(".0", "[0]").replace(".1", "[1]")


@pytest.mark.parametrize("text", IDENTIFYING)
def test_identifying_keys_and_names_are_refused(text: str) -> None:
    for notes in (
        changed("preprocessing", {text: 1}),
        changed(f"about.{text.replace('.', '_')}", "x"),
        changed("backbone.name", text),
        changed("blocks.0.tap", text),
        changed("preprocessing", {"filter": text}),
        changed("probes", {text: [1]}),
    ):
        with pytest.raises(formats.NotesError):
            validate_notes(notes)


HARMLESS = [
    "normal", "COVID-19", "COVID-19 since 2020", "bacterial pneumonia", "viral/bacterial",
    "AP/PA/LL", "normal/bacterial/viral", "a/b/c", "grade 1/2/3", "KL 0/1/2/3/4", "Grade 3", "T1N0",
    "SARS-CoV-2", "ICD-10 J18.9", "ICD-10 version 2019", "24h follow-up",
    "5-10-15 mm", "5-10-15", "10/12/15 mm", "1.5-3 cm", "90 %", "v1.0.10", "12-bit 2018",
    "1 may be uncertain", "1 in 10 march fractures", "in 2018 may contain", "I may 2",
    "March of Dimes", "OCT2017", "3 OCT scans", "OCT 2017", "stage 2 DIC", "3 MRT", "2 MAI",
    "8th edition 2017", "test set 2018", "lip lesion",
    "zapalenie płuc", "Lungenentzündung", "6月龄", "Pneumothorax 肺炎", "пневмония",
    "collected 2010-2013 in Guangzhou", "2010 2011 2012", "2018/2019/2020", "112 120 images",
    "Größe: 5,856 images; Müller et al.", "children of 1 to 5 years", "up to 89 years",
    "acc 0.91", "patients 2010-2013", "patients: 5,856", "5856 patients", "patient 2019", "case 3",
    "study 2019", "accuracy 0.912", "ratio 10:10", "16:10", "1:10", "Q1-Q3 range", "week 1 to 4",
    "90Y microspheres", "90+", "children born 2010-2013", "newborns", "drug", "Dr", "MR 1.5 T",
    "MS, MR and CT", "layer4.0.se.conv", "features.conv.bn", "block.norm1.in", "e.g.another",
    "phones and faxes", "case-control study", "telangiectasia 3", "dob", "data and home", "1.5.2",
    "e.g. text", "accept 300", "patterns 300", "abcdefabcdefabcdef", "deadbeef", "train/test",
    "CC BY-NC-SA 4.0", "Cell 172(5), 1122-1131, 2018", "Mendeley Data, version 2, 2018",
]  # fmt: skip


@pytest.mark.parametrize("text", HARMLESS)
@pytest.mark.parametrize("path", ["about.title", "classes.0"])
def test_harmless_texts_are_allowed(text: str, path: str) -> None:
    assert find_identity(text) is None
    validate_notes(changed(path, text))


@pytest.mark.parametrize(
    "text",
    [
        "doi:10.17632/rscbjbr9sj.2",
        "10.17632/rscbjbr9sj.2",
        "Kermany D., Zhang K., Goldbaum M. (2018), https://doi.org/10.17632/rscbjbr9sj.2.",
        "Rajpurkar et al., arXiv:1711.05225v3",
        "data at https://data.mendeley.com/datasets/rscbjbr9sj/2",
        "Dr. Kermany et al., kaggle.com",
        "Have you seen https://example.org/chest?",
        *HARMLESS,
    ],
)
def test_citations_may_hold_public_addresses(text: str) -> None:
    validate_notes(changed("about.attribution", text))


def test_licence_and_terms_may_hold_links_but_no_numbers() -> None:
    for key in ("licence", "terms"):
        validate_notes(
            changed(f"about.{key}", "CC0 (https://creativecommons.org/publicdomain/zero/1.0/)")
        )
        for text in ("10.1234/44051401359", "https://pacs.szpital.pl/", "https://x.pl/44051401359"):
            with pytest.raises(formats.NotesError, match="Notes travel with the features"):
                validate_notes(changed(f"about.{key}", text))


@pytest.mark.parametrize(
    "text",
    [
        "https://pacs.szpital.pl/",
        "https://x.pl/patient/44051401359",
        "see https://192.168.1.17/x",
        "https://example.org/p?name=kowalska",
        "https://example.org/p#kowalska",
        "https://10.17632/rscbjbr9sj.2 and 12 marca 1956",
        "doi:10.17632/rscbjbr9sj.2, PESEL 44051401359",
    ],
)
def test_citations_may_hold_nothing_else(text: str) -> None:
    with pytest.raises(formats.NotesError, match="Notes travel with the features"):
        validate_notes(changed("about.attribution", text))


@pytest.mark.parametrize(
    "url",
    [
        "https://doi.org/10.17632/rscbjbr9sj.2",
        "https://doi.org/10.5281/zenodo.12345678",
        "https://pubs.rsna.org/doi/10.1148/ryai.2019180041",
        "https://physionet.org/content/mimic-cxr/2.0.0/",
        "https://example.org/2019/03/07/chest",
    ],
)
def test_public_addresses_are_allowed(url: str) -> None:
    validate_notes(changed("about.url", url))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://pacs.szpital.pl/", "not public"),
        ("https://x.local/a", "not public"),
        ("https://192.168.1.17/a", "not public"),
        ("https://example.org:8080/a", "not public"),
        ("https://x.pl/patient/44051401359", "seven or more digits"),
        ("https://x.pl/440514-01359", "seven or more digits"),
        ("https://x.pl/10.1234/44051401359", "seven or more digits"),
        ("https://x.pl/%344051401359", "seven or more digits"),
        ("https://x.pl/1.2.840.1.5", "DICOM UID"),
    ],
)
def test_addresses_that_lead_to_a_person_or_machine_are_refused(url: str, message: str) -> None:
    with pytest.raises(formats.NotesError, match=message) as caught:
        validate_notes(changed("about.url", url))
    assert caught.value.key == "about.url"


@pytest.mark.parametrize(
    "version",
    [
        "0.1.0",
        "2026.4.1",
        "1.0.0rc1",
        "0.2.0.dev3",
        "1.2+g1a2b3c4",
        "1.0b2.post1.dev2",
        "2.1+cu126",
    ],
)
def test_versions_are_allowed(version: str) -> None:
    validate_notes(changed("software.openvino", version))


@pytest.mark.parametrize(
    "version",
    ["44051401359", "2026.4.1-20426", "192.168.1.17", "1.2.840.10008", "123-45-6789", "ws7.lan",
     "2019-03-12", "Nowak", "a/b", "12Mar2019", "2019-W12", "93Y", "1.2+g4405140135",
     "1.0-Nowak", "12.03.1956"],
)  # fmt: skip
def test_what_is_no_version_is_refused(version: str) -> None:
    for name in ("hilum", "openvino"):
        with pytest.raises(formats.NotesError, match="expected a version"):
            validate_notes(changed(f"software.{name}", version))


@pytest.mark.parametrize("key", ["p44051", "x_44051_y", "k" * 41])
def test_keys_that_hold_more_than_a_name_are_refused(key: str) -> None:
    for notes in (changed(f"preprocessing.{key}", 1), changed("probes", {key: [1]})):
        with pytest.raises(formats.NotesError, match="without five digits in a row"):
            validate_notes(notes)
        validate_notes(notes, reading=True)
    with pytest.raises(formats.NotesError, match="up to 1000000"):
        validate_notes(changed("probes", {"ramp": [44051401359]}))


def test_the_demonstration_passes_the_tripwires() -> None:
    folder = ROOT / "engine" / "demonstration"
    with formats.open_container(folder / "pneumonia.hilum") as container:
        validate_notes(container.notes, dim=container.dim)
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    validate_notes({**FULL, "about": about})


def test_tripwires_are_the_writers_duty() -> None:
    for path, value in (
        ("about.title", "2019-03-07"),
        ("about.url", "http://localhost:80/?study=3"),
        ("software.hilum", "2026.4.1-20426-abc-releases/2026/4"),
        ("preprocessing.height", 1_000_001),
        ("probes.ramp", [2e6]),
    ):
        with pytest.raises(formats.NotesError):
            validate_notes(changed(path, value))
        validate_notes(changed(path, value), reading=True)


def test_numbers_of_binary64_are_read() -> None:
    largest = int(sys.float_info.max)
    assert parse_json(b"[%d,1e308]" % largest) == [largest, 1e308]


def test_reading_is_strict_about_types() -> None:
    for path, value in (
        ("about.url", 3),
        ("about.url", ""),
        ("software.hilum", 1.0),
        ("preprocessing.height", float("inf")),
        ("preprocessing.height", [[1]]),
        ("derived_from", ["x"]),
        ("classes", ["a", "a"]),
    ):
        with pytest.raises(formats.NotesError):
            validate_notes(changed(path, value), reading=True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"{} x", "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b"\xff\xfe{\0}\0", "not valid JSON"),
        (b'{"a":1,"a":1}', "a: the key stands twice"),
        (b'{"b":{"a":1,"a":2}}', "a: the key stands twice"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":-Infinity}', "-Infinity"),
        (b'{"a":1e400}', "too large"),
        (b'{"a":"\\ud800"}', "surrogate"),
        (b'{"\\udc00":1}', "surrogate"),
        (b"[" * 17 + b"]" * 17, "deeper than 16"),
        (b'{"a":' * 17 + b"1" + b"}" * 17, "deeper than 16"),
        (b"[" * 100_000, "deeper than 16"),
        (b'"' + b"x" * (1 << 20) + b'"', "at most 1048576"),
        (b"1" * 5000, "not valid JSON"),
        (b"1" + b"0" * 309, "too large"),
        (b'{"a":[-1' + b"0" * 309 + b"]}", "too large"),
    ],
)
def test_json_that_two_readers_could_read_differently(data: bytes, message: str) -> None:
    with pytest.raises(formats.NotesError, match=message):
        parse_json(data)


def test_sixteen_levels_are_allowed() -> None:
    assert parse_json(b"[" * 16 + b"]" * 16) is not None


def test_canonical_json() -> None:
    assert canonical_json({"b": 1.0, "a": ["ä", None, True], "é": {}}) == (
        '{"a":["ä",null,true],"b":1.0,"é":{}}'.encode()
    )
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for value in (float("nan"), float("inf"), {1, 2}, b"x", "\ud800", deep):
        with pytest.raises(formats.NotesError, match="cannot be written as JSON"):
            canonical_json({"a": value})


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_canonical_json_round_trip(value: dict) -> None:
    data = canonical_json(value)
    again = parse_json(data)
    assert again == value
    assert canonical_json(again) == data


@given(JSON)
def test_any_json_is_refused_or_allowed_but_never_crashes(value: object) -> None:
    for key in ("classes", "about", "blocks", "backbone", "preprocessing", "probes", "head"):
        for reading in (False, True):
            try:
                validate_notes(changed(key, value), dim=8, reading=reading)
            except formats.NotesError as exc:
                assert exc.key.startswith(key)
    for whole in (value, [value], {"x": value}):
        with pytest.raises(formats.NotesError):
            validate_notes(whole)


@given(st.sampled_from(sorted(FULL)), JSON, st.data())
def test_the_schema_allows_whatever_may_be_written(
    schema: Any, key: str, value: object, data: st.DataObject
) -> None:
    """Random values at random places: never allowed by the validator and refused by the schema."""
    path = key
    inner = FULL[key]
    while isinstance(inner, dict | list) and data.draw(st.booleans()):
        at = data.draw(
            st.sampled_from(list(inner) if isinstance(inner, dict) else range(len(inner)))
        )
        path, inner = f"{path}.{at}", inner[at]
    notes = changed(path, value)
    assert schema.is_valid(notes) or not allowed(notes)


def test_preprocessing_digest() -> None:
    digest = formats.preprocessing_digest({"width": 3, "height": 2})
    assert digest == hashlib.sha256(b'{"height":2,"width":3}').hexdigest()
