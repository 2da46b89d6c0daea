from __future__ import annotations

import copy
import hashlib

import pytest
from formats_helpers import notes_of
from hypothesis import given
from hypothesis import strategies as st

import formats
from formats.notes import canonical_json, find_identity, parse_json, validate_notes

FULL = {
    "format": "hilum-notes",
    "version": 1,
    **notes_of(8),
    "sources": ["unknown", "site-a"],
    "head": {"kind": "mlp", "hidden": 64},
    "software": {"hilum": "0.1.0", "openvino": "2026.4.1-20426-releases/2026/4"},
    "n_refused": 3,
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


@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        ("format", "other", "format"),
        ("version", 2, "version"),
        ("version", True, "version"),
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
    ],
)
def test_wrong_values_are_refused_with_the_key(path: str, value: object, key: str) -> None:
    with pytest.raises(formats.NotesError) as caught:
        validate_notes(changed(path, value), dim=8)
    assert caught.value.key == key
    assert key in str(caught.value)


# values that would lead to a person, a study or a machine
IDENTIFYING = [
    "2019-03-07", "2019/03", "20190307", "7.3.2019", "07/03/19", "03/2019", "March 2019",
    "Mar 7, 2019", "7 March", "7th of x 12 Dec", "on 2019.3.7.", "201903", "1998 05 17",
    "12345678", "MRN 0012345", "tel 5551234567", "A1234567B",
    "jo@clinic.org", "write to a.b+c@x-y.co.uk",
    "DOE^JOHN", "^^",
    "1.2.840.10008.5.1.4.1.1.1", "uid 2.25.329800735698586629295641978511506172918",
    "1.3.6.1.4.1",
    "/home/jo/x", "C:\\data\\x", "see ~/x", "../x", "\\\\server\\share", "file:abc", "a/b/c",
    "IM-0001.dcm", "scan.jpeg", "list.csv", "(/mnt/x)",
    "aged 93", "a 97-year-old woman", "101 years", "95 yo", "92 y/o",
    "bell\x07", "line\nbreak", "tab\tx", "a\u2028b", "\x9b1m",
]  # fmt: skip


@pytest.mark.parametrize("text", IDENTIFYING)
@pytest.mark.parametrize("path", ["about.title", "about.terms", "classes.0", "sources.1"])
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


@pytest.mark.parametrize(
    "text",
    [
        "normal",
        "COVID-19",
        "bacterial pneumonia",
        "viral/bacterial",
        "collected 2010-2013 in Guangzhou",
        "Cell 172(5), 1122-1131, 2018",
        "doi:10.17632/rscbjbr9sj.2",
        "https://zenodo.org/records/12345678",
        "children of 1 to 5 years",
        "up to 89 years",
        "CC BY-NC-SA 4.0",
        "Größe: 5,856 images; Müller et al.",
        "Pneumothorax 肺炎",
        "March of Dimes",
        "I may 2",
    ],
)
def test_harmless_texts_are_allowed(text: str) -> None:
    assert find_identity(text) is None
    validate_notes(changed("about.population", text))


def test_tripwires_are_the_writers_duty() -> None:
    validate_notes(changed("about.title", "2019-03-07"), reading=True)


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


def test_preprocessing_digest() -> None:
    digest = formats.preprocessing_digest({"width": 3, "height": 2})
    assert digest == hashlib.sha256(b'{"height":2,"width":3}').hexdigest()
