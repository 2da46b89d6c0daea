"""Answers as DICOM objects that a viewer shows beside the picture, in the same study.

A structured report (PS3.3 section A.35.13, Comprehensive 3D SR; PS3.16 TID 1500) carries numbers
with what they are and who found them; a secondary capture (PS3.3 section A.8.1) carries the heatmap
for viewers that show pictures only. Both say what they are for, and no probability stands without
what its head learned from.

Patient and study are the source's, everything else is ours. UIDs follow from the key of the
prediction, so the same result is the same instance however often it is made.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib
import io
import logging
import math
import re
import threading
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.dicom_file import DicomFile, as_list, parse_dicom, read_code, read_value
from engine.dicom_kind import OWN_MANUFACTURER, OWN_SERIES, is_own
from engine.errors import ImageError, MissingPart
from engine.picture import quiet_decoders
from formats import open_regular

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from engine.answers import Prediction
    from engine.heads import Head

__all__ = [
    "BANNER",
    "CODING_SCHEME",
    "OwnFile",
    "read_own",
    "secondary_capture",
    "structured_report",
]

BANNER = "research use – not for diagnosis"
"""What every result says of itself."""

CODING_SCHEME = "99HILUM"
"""Coding scheme of what has no standard code: names of classes are free text. A code is the kind of
concept and the beginning of a SHA-256 over the name, so that the same name is the same code."""

_REPORT_SERIES, _CAPTURE_SERIES = 9901, 9902
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
_UTF_8 = "ISO_IR 192"
# Registered for nobody: 2.25 and a number of 128 bits (PS3.5 section B.2).
_UID_ROOT = "2.25."
_MEANING_CHARS = 64  # LO, PS3.5 section 6.2
# A report or banner of heads with a thousand classes would be read by nobody.
_MOST_TEXT_CHARS = 4000
_MOST_LINE_CHARS, _MOST_BANNER_CHARS = 1000, 9000  # LT holds 10,240

# Of the patient and the study, each with its VR: what says that two objects belong together. Type 2
# attributes are written empty where the source has none, the others not at all.
_IDENTITY = {
    "StudyDate": "DA",
    "StudyTime": "TM",
    "AccessionNumber": "SH",
    "ReferringPhysicianName": "PN",
    "StudyDescription": "LO",
    "PatientName": "PN",
    "PatientID": "LO",
    "IssuerOfPatientID": "LO",
    "PatientBirthDate": "DA",
    "PatientSex": "CS",
    "StudyID": "SH",
}
_OPTIONAL = ("StudyDescription", "IssuerOfPatientID")
# Of the picture.
_FACTS = (
    *("BurnedInAnnotation", "RecognizableVisualFeatures", "LossyImageCompression"),
    *("LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)
_KEYWORDS = (
    *("SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID"),
    *("SeriesInstanceUID", *_IDENTITY, *_FACTS),
)
# Transfer syntaxes whose pictures have lost something, and how (PS3.3 section C.7.6.1.1.5).
_LOSSY = {
    "1.2.840.10008.1.2.4.50": "ISO_10918_1",
    "1.2.840.10008.1.2.4.51": "ISO_10918_1",
    "1.2.840.10008.1.2.4.81": "ISO_14495_1",
    "1.2.840.10008.1.2.4.91": "ISO_15444_1",
}
_VALID = {
    "TM": re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?"),
    "CS": re.compile(r"[MFO]"),
}
_UID = re.compile(r"(?=.{1,64}$)[0-9]+(\.[0-9]+)*")


class _Source(NamedTuple):
    """What a result takes from the file it is about."""

    identity: dict[str, Any]
    facts: dict[str, Any]
    study: str
    series: str
    instance: str
    storage: str
    lossy: str  # method, empty for none that is known


@dataclass(frozen=True)
class OwnFile:
    """A DICOM file that Hilum made, as far as sending it needs to know.

    Attributes
    ----------
    sop_class, sop_instance, syntax : str
        UIDs of storage class, instance and transfer syntax.
    """

    sop_class: str
    sop_instance: str
    syntax: str


# ---- What the source says ------------------------------------------------------------------------


def read_own(path: str | Path) -> OwnFile | None:
    """Tell whether a file is a result of ours, and what it is.

    Parameters
    ----------
    path : str or Path
        Any file.

    Returns
    -------
    OwnFile or None
        None for whatever Hilum did not make.

    Raises
    ------
    OSError
        The file cannot be opened.
    """
    path = Path(path)
    with open_regular(path) as stream, quiet_decoders():
        try:
            wanted = ("SOPClassUID", "SOPInstanceUID", "Manufacturer", "SeriesDescription")
            file = parse_dicom(path, stream, wanted)
            instance = _uid(file.dataset, "SOPInstanceUID")
            if not (is_own(file.dataset) and instance and _UID.fullmatch(file.storage)):
                return None
        except OSError:
            raise
        except Exception:  # no DICOM, or damaged
            return None
        return OwnFile(file.storage, instance, file.syntax)


def _read_source(path: Path) -> _Source:
    try:
        with open_regular(path) as stream, quiet_decoders():
            file = parse_dicom(path, stream, _KEYWORDS)
            if file.source.is_short:  # the UID of a study may be half of one
                raise EOFError
            return _describe(file)
    except EOFError:
        raise ImageError(path, "is cut short; send or copy it again") from None
    except ImageError as exc:
        raise ImageError(
            path,
            "is no DICOM file, so its result belongs to no study that a PACS knows; leave --sr "
            "and --sc out for it",
        ) from exc
    except OSError as exc:
        raise ImageError(path, f"cannot be read ({exc.strerror or exc})") from exc
    except Exception as exc:  # pydicom's text quotes values
        raise ImageError(
            path, f"its header is damaged ({type(exc).__name__}); send or export it again"
        ) from None


def _describe(file: DicomFile) -> _Source:
    dataset = file.dataset
    facts = {keyword: _plain(dataset, keyword) for keyword in _FACTS}
    return _Source(
        identity={keyword: _identity(dataset, keyword, vr) for keyword, vr in _IDENTITY.items()},
        facts={keyword: value for keyword, value in facts.items() if value},
        study=_uid(dataset, "StudyInstanceUID"),
        series=_uid(dataset, "SeriesInstanceUID"),
        instance=_uid(dataset, "SOPInstanceUID"),
        storage=file.storage if _UID.fullmatch(file.storage) else "",
        lossy=_LOSSY.get(file.syntax, ""),
    )


def _plain(dataset: Dataset, keyword: str) -> Any:
    """Give a value, or several, as text without control characters; empty where there is none."""
    try:
        values = [_clean(str(value)) for value in as_list(read_value(dataset, keyword))]
    except Exception:  # not readable is as good as missing
        return ""
    return values[0] if len(values) == 1 else values or ""


def _uid(dataset: Dataset, keyword: str) -> str:
    # A component that begins with 0 is as wrong as it is common, and the PACS has it so.
    value = read_code(dataset, keyword)
    return value if _UID.fullmatch(value) else ""


def _identity(dataset: Dataset, keyword: str, vr: str) -> Any:
    """Give what can be written: names and numbers as they are, dates and codes if they are such.

    A number that is longer than the standard allows is the one the PACS knows the patient by:
    shortened, it would be another patient's.
    """
    value = _plain(dataset, keyword)
    if vr == "DA":
        try:
            valid = len(value) == 8 and bool(datetime.date.fromisoformat(value))
        except (TypeError, ValueError):
            valid = False
        return value if valid else ""
    if vr in _VALID:
        return value if isinstance(value, str) and _VALID[vr].fullmatch(value) else ""
    return value


def _clean(text: str, *, lines: bool = False) -> str:
    """Leave control characters out, line breaks too unless asked for, and space around."""
    kept = (
        sign
        for sign in text
        if unicodedata.category(sign) not in ("Cc", "Cs") or (lines and sign == "\n")
    )
    return "".join(kept).strip()


# ---- Names, codes, UIDs --------------------------------------------------------------------------


def _version() -> str:
    # The package's own: this floor is under the one that states it, and is never loaded without.
    return str(importlib.import_module(__package__ or "engine").__version__)


def _make_uid(key: str, what: str) -> str:
    """Derive a UID from a prediction's key; another release's object is another instance."""
    digest = hashlib.sha256(f"hilum\n{_version()}\n{what}\n{key}".encode()).digest()
    return _UID_ROOT + str(int.from_bytes(digest[:16], "big"))


def _key(prediction: Prediction) -> str:
    if not prediction.key:
        raise ValueError("prediction.key is empty, so its objects would have no identity")
    return prediction.key


def _meaning(text: str) -> str:
    """Shorten a text to what CodeMeaning holds."""
    # A backslash would part it into two values.
    text = _clean(text.replace("\\", "/")) or "(no name)"
    return text if len(text) <= _MEANING_CHARS else text[: _MEANING_CHARS - 1].rstrip() + "~"


def _code_value(kind: str, name: str) -> str:
    """Make a code of at most 16 characters (SH) for a name of any length."""
    return f"{kind}-{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:12].upper()}"


def _one_line(answer: Mapping[str, Any]) -> str:
    """Say an answer: label, its probability and threshold; or all labels of a multi-label head."""
    label, probabilities = answer["label"], answer["probabilities"]
    threshold = answer["threshold"]
    if isinstance(label, str):
        text = f"{label} {_number(probabilities[label])}"
        others = [name for name in probabilities if name != label]
        text += f" ({', '.join(f'{name} {_number(probabilities[name])}' for name in others)})"
        if threshold is not None:
            text += f", threshold of {list(probabilities)[-1]} {_number(threshold)}"
        return text
    every = (
        f"{name} {_number(value)} / {_number((threshold or {}).get(name))}"
        for name, value in probabilities.items()
    )
    said = ", ".join(label) or "none of its labels"
    return f"{said}; probability / threshold: {', '.join(every)}"


def _number(value: float | None) -> str:
    return "?" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _limits(answer: Mapping[str, Any]) -> str:
    return str(answer.get("notice") or "") or "what it learned from is not known"


def _answered(path: Path, prediction: Prediction) -> dict[str, dict[str, Any]]:
    """Give the answers with a label; none is an error."""
    found = {name: answer for name, answer in prediction.heads.items() if "label" in answer}
    if not found:
        raise ImageError(path, "no head answered for it, so there is no result to send")
    return found


# ---- The report ----------------------------------------------------------------------------------


def structured_report(source: str | Path, prediction: Prediction, heads: Sequence[Head]) -> bytes:
    """Make a Comprehensive 3D SR of TID 1500 from a prediction.

    Each head that was asked has a measurement group (TID 1501): what it is (name, release, digests
    of head, backbone and preprocessing), what it learned from, the decided label, a number for each
    class, its threshold, and how unlike the training images the picture is. A head that refused
    has its reason in the place of label and numbers.

    Parameters
    ----------
    source : str or Path
        The DICOM file that was predicted.
    prediction : Prediction
        With a key and at least one answer.
    heads : sequence of Head
        Those that were asked, for their digests.

    Returns
    -------
    bytes
        A DICOM file, explicit little endian, text in UTF-8.

    Raises
    ------
    ImageError
        The file is no DICOM, or lacks the UIDs a report must refer to; or no head answered.
    MissingPart
        highdicom is not installed.
    """
    path = Path(source)
    answered = _answered(path, prediction)
    origin = _read_source(path)
    for name, value in (
        ("StudyInstanceUID (0020,000D)", origin.study),
        ("SeriesInstanceUID (0020,000E)", origin.series),
        ("SOPInstanceUID (0008,0018)", origin.instance),
        ("SOPClassUID (0008,0016)", origin.storage),
    ):
        if not value:
            raise ImageError(
                path, f"lacks a valid {name}, so no report can refer to it; send or export it again"
            )
    with quiet_decoders(), _quiet_highdicom():
        dataset = _report(origin, prediction, {head.name: head for head in heads}, answered)
        return _write(dataset, origin)


_highdicom_lock = threading.Lock()


@contextmanager
def _quiet_highdicom() -> Iterator[None]:
    """Keep what highdicom warns of and logs, UIDs among it, from the user.

    One thread at a time: filters of warnings belong to the process.
    """
    logger = logging.getLogger("highdicom")
    with _highdicom_lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"highdicom(\.|$)")
        try:
            import highdicom.sr  # noqa: F401
        except ImportError as exc:
            raise MissingPart(
                "a structured report needs highdicom, which is not installed; "
                'pip install "hilum[pacs]", or leave --sr out'
            ) from exc
        before, logger.propagate = logger.propagate, False
        try:
            yield
        finally:
            logger.propagate = before


def _report(
    origin: _Source,
    prediction: Prediction,
    heads: Mapping[str, Head],
    answered: Mapping[str, dict[str, Any]],
) -> Dataset:
    from highdicom import sr
    from pydicom.dataset import Dataset
    from pydicom.sr.codedict import codes

    key = _key(prediction)
    evidence = Dataset()
    evidence.SOPClassUID, evidence.SOPInstanceUID = origin.storage, origin.instance
    evidence.StudyInstanceUID, evidence.SeriesInstanceUID = origin.study, origin.series
    # Patient and study are filled in by `_write`, which is not stopped by what is wrong with them.
    for keyword, vr in _IDENTITY.items():
        setattr(evidence, keyword, None if vr in ("DA", "TM") else "")
    observer = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            # One for each release: the same software is the same observer everywhere.
            uid=_make_uid("", "device"),
            name=OWN_MANUFACTURER,
            manufacturer_name=OWN_MANUFACTURER,
            model_name=f"{OWN_MANUFACTURER} {_version()}",
        ),
    )
    groups = [
        _group(origin, prediction, name, heads.get(name), answer, f"{key}\n{name}")
        for name, answer in prediction.heads.items()
        if name in answered or "refused" in answer
    ]
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=codes.SCT.PlainRadiography,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    # TID 1500 may be extended; in front of the measurements, so that it is read before them.
    items = content[0].ContentSequence
    remarks = [_text("USE", "Intended use", BANNER)]
    if prediction.allowed:
        allowed = ", ".join(prediction.allowed)
        remarks.append(_text("SET-ASIDE", "Checks set aside by the caller", allowed))
    if prediction.chain is not None:
        remarks.append(_text("CHAIN", "Chain of heads", _chain(prediction.chain)))
    for remark in remarks:
        items.insert(len(items) - 1, remark)
    dataset: Dataset = sr.Comprehensive3DSR(
        evidence=[evidence],
        content=content[0],
        series_instance_uid=_make_uid(key, "report series"),
        series_number=_REPORT_SERIES,
        sop_instance_uid=_make_uid(key, "report"),
        instance_number=1,
        manufacturer=OWN_MANUFACTURER,
        manufacturer_model_name=OWN_MANUFACTURER,
        software_versions=_version(),
        device_serial_number=None,
        series_description=f"{OWN_SERIES}: report",
        is_complete=True,
        is_final=False,
    )
    scheme = Dataset()
    scheme.CodingSchemeDesignator = CODING_SCHEME
    scheme.CodingSchemeName = "Names of heads' classes and of what Hilum reports"
    scheme.CodingSchemeResponsibleOrganization = OWN_MANUFACTURER
    dataset.CodingSchemeIdentificationSequence = [scheme]
    return dataset


def _group(
    origin: _Source,
    prediction: Prediction,
    name: str,
    head: Head | None,
    answer: Mapping[str, Any],
    key: str,
) -> Any:
    """Make the measurement group of one head."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    parameters = [f"network {prediction.backbone}"]
    if head is not None:
        parameters = [
            f"head SHA-256 {head.digest}",
            f"backbone {head.backbone} SHA-256 {head.backbone_digest}",
            f"preprocessing SHA-256 {head.preprocessing_digest}",
        ]
        url = head.about.get("url")
        parameters += [f"data {_clean(url)}"] if isinstance(url, str) and _clean(url) else []
    if prediction.n_views:
        parameters.append(f"augmented views averaged {prediction.n_views}")
    said: list[Any] = []
    numbers: list[tuple[Any, float | None]] = []
    finding = None
    remarks = [_text("LIMITS", "What the head learned from, and its terms", _limits(answer))]
    if "refused" in answer:
        said.append((_concept("ANSWER", "Answer"), _concept("REFUSED", "Refused: no answer")))
        remarks.append(_text("REASON", "Reason of refusal", str(answer["refused"])))
    else:
        labels = answer["label"]
        labels = [labels] if isinstance(labels, str) else list(labels)
        values = [_named("L", label) for label in labels]
        values = values or [_concept("NONE", "None of the head's labels")]
        said += [(_concept("ANSWER", "Decided label"), value) for value in values]
        finding = values[0] if len(labels) == 1 else None
        threshold = answer["threshold"]
        for class_name, probability in answer["probabilities"].items():
            numbers.append((_named("P", class_name, "Probability: "), probability))
        if isinstance(threshold, Mapping):
            numbers += [
                (_named("T", class_name, "Threshold: "), value)
                for class_name, value in threshold.items()
            ]
        elif threshold is not None:
            numbers.append(
                (_named("T", list(answer["probabilities"])[-1], "Threshold: "), threshold)
            )
        # Names that a code's meaning cannot hold are said whole.
        remarks += [
            _text("NAME", "Name of a class in full", class_name)
            for class_name in answer["probabilities"]
            if _meaning(f"Probability: {class_name}") != f"Probability: {class_name}"
        ]
    seen = answer.get("ood")
    if seen:
        numbers.append((_concept("OOD-SCORE", "Unlikeness to the training images"), seen["score"]))
        numbers.append((_concept("OOD-LIMIT", "Unlikeness that is refused"), seen["threshold"]))
    finite = [(what, value) for what, value in numbers if _is_finite(value)]
    remarks += [
        _text("NO-NUMBER", "Has no finite value", str(what.meaning))
        for what, value in numbers
        if not _is_finite(value)
    ]
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=_make_uid(key, "group"), identifier=f"{_clean(name)}: {BANNER}"
        ),
        finding_type=finding,
        algorithm_id=sr.AlgorithmIdentification(
            name=_clean(name) or "(no name)",
            version=_version(),
            parameters=parameters,
        ),
        measurements=[
            sr.Measurement(name=what, value=float(value or 0.0), unit=codes.UCUM.NoUnits)
            for what, value in finite
        ],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(name=what, value=value) for what, value in said
        ],
        source_images=[
            sr.SourceImageForMeasurementGroup(
                referenced_sop_class_uid=origin.storage,
                referenced_sop_instance_uid=origin.instance,
            )
        ],
    )
    # In front of the numbers: whoever reads from the top meets the limits first.
    items = group[0].ContentSequence
    first = next(
        (number for number, item in enumerate(items) if item.ValueType == "NUM"), len(items)
    )
    for remark in reversed(remarks):
        items.insert(first, remark)
    return group


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _concept(code: str, meaning: str) -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(value=code, scheme_designator=CODING_SCHEME, meaning=_meaning(meaning))


def _named(kind: str, name: str, what: str = "") -> Any:
    """Code a class: no standard code is guessed, because only its head knows what it means."""
    return _concept(_code_value(kind, name), f"{what}{name}")


def _text(code: str, meaning: str, text: str) -> Any:
    from highdicom.sr import RelationshipTypeValues, TextContentItem

    return TextContentItem(
        name=_concept(code, meaning),
        value=_clean(text, lines=True)[:_MOST_TEXT_CHARS] or "(none)",
        relationship_type=RelationshipTypeValues.CONTAINS,
    )


def _chain(chain: Mapping[str, Any]) -> str:
    """Say which steps of a chain answered; its answer is among those of the heads."""
    steps = (f"{step.get('name')}: {step.get('outcome')}" for step in chain.get("steps", ()))
    return f"{chain.get('name')}; {'; '.join(steps)}"


# ---- The picture ---------------------------------------------------------------------------------


def secondary_capture(
    source: str | Path, prediction: Prediction, sheet: NDArray[np.uint8]
) -> bytes:
    """Make a Secondary Capture of a heatmap, with banner, answers and their limits above it.

    Parameters
    ----------
    source : str or Path
        The DICOM file that was predicted.
    prediction : Prediction
        With a key and at least one answer.
    sheet : uint8 (h, w, 3)
        RGB, from `engine.heatmap.render_sheet`.

    Returns
    -------
    bytes
        A DICOM file, explicit little endian, uncompressed, text in UTF-8.

    Raises
    ------
    ImageError
        The file is no DICOM, or lacks its StudyInstanceUID; or no head answered.
    """
    path = Path(source)
    answered = _answered(path, prediction)
    origin = _read_source(path)
    if not origin.study:
        raise ImageError(
            path,
            "lacks a valid StudyInstanceUID (0020,000D), so its result belongs to no study; send "
            "or export it again",
        )
    with quiet_decoders():
        return _write(_capture(origin, prediction, sheet, _lines(prediction, answered)), origin)


def _capture(
    origin: _Source, prediction: Prediction, sheet: NDArray[np.uint8], lines: Sequence[str]
) -> Dataset:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID

    key = _key(prediction)
    pixels = _under_banner(sheet, lines)
    now = datetime.datetime.now()
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S.%f")
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = UID(_SECONDARY_CAPTURE)
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(_make_uid(key, "capture"))
    dataset.file_meta.TransferSyntaxUID = UID(_EXPLICIT_LITTLE)
    dataset.SpecificCharacterSet = _UTF_8
    dataset.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = date, time
    dataset.SOPClassUID = UID(_SECONDARY_CAPTURE)
    dataset.SOPInstanceUID = UID(_make_uid(key, "capture"))
    dataset.ContentDate, dataset.ContentTime = date, time
    dataset.Modality = "OT"
    dataset.ConversionType = "WSD"
    dataset.Manufacturer = OWN_MANUFACTURER
    dataset.ManufacturerModelName = OWN_MANUFACTURER
    dataset.SoftwareVersions = _version()
    dataset.SecondaryCaptureDeviceManufacturer = OWN_MANUFACTURER
    dataset.SecondaryCaptureDeviceManufacturerModelName = OWN_MANUFACTURER
    dataset.SecondaryCaptureDeviceSoftwareVersions = _version()
    dataset.DateOfSecondaryCapture, dataset.TimeOfSecondaryCapture = date, time
    dataset.SeriesDescription = f"{OWN_SERIES}: heatmap"
    dataset.DerivationDescription = (
        "Evidence of a trained head drawn over the X-ray, which was resized and rendered to 8 bits "
        f"({BANNER})"
    )
    dataset.ImageComments = "\r\n".join([BANNER, *lines])
    if origin.instance and origin.storage:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = origin.storage, origin.instance
        purpose = Dataset()
        purpose.CodeValue, purpose.CodingSchemeDesignator = "121322", "DCM"
        purpose.CodeMeaning = "Source image for image processing operation"
        item.PurposeOfReferenceCodeSequence = [purpose]
        dataset.SourceImageSequence = [item]
    dataset.StudyInstanceUID = origin.study
    dataset.SeriesInstanceUID = UID(_make_uid(key, "capture series"))
    dataset.SeriesNumber = _CAPTURE_SERIES
    dataset.InstanceNumber = 1
    dataset.PatientOrientation = None
    # Type 2C (PS3.3 section C.7.3.1): of a paired body part, and nobody says that this is none.
    dataset.Laterality = None
    _copy_facts(dataset, origin)
    dataset.SamplesPerPixel = 3
    dataset.PhotometricInterpretation = "RGB"
    dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelRepresentation = 0
    data = pixels.tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OB"
    return dataset


def _copy_facts(dataset: Dataset, origin: _Source) -> None:
    """Say of the drawing what holds of the X-ray in it; nothing is said where that says nothing.

    BurnedInAnnotation (PS3.3 section C.7.6.1) asks for text that identifies the patient: ours never
    does, the X-ray's own may.
    """
    for keyword, valid in (
        ("BurnedInAnnotation", ("YES", "NO")),
        ("RecognizableVisualFeatures", ("YES", "NO")),
    ):
        value = origin.facts.get(keyword)
        if value in valid:
            setattr(dataset, keyword, value)
    if origin.facts.get("LossyImageCompression") == "01" or origin.lossy:
        dataset.LossyImageCompression = "01"
        ratio = as_list(origin.facts.get("LossyImageCompressionRatio"))
        method = as_list(origin.facts.get("LossyImageCompressionMethod"))
        if ratio and all(re.fullmatch(r"\d{1,8}(\.\d{1,7})?", text) for text in ratio):
            dataset.LossyImageCompressionRatio = ratio
        method = method or as_list(origin.lossy)
        if all(re.fullmatch(r"[A-Z0-9_]{1,16}", text) for text in method):
            dataset.LossyImageCompressionMethod = method
    elif origin.facts.get("LossyImageCompression") == "00":
        dataset.LossyImageCompression = "00"


def _lines(prediction: Prediction, answered: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say each head's answer, and behind it what the head learned from; pairs of lines."""
    aside = ""
    if prediction.allowed:
        aside = f"; checks set aside by the caller: {', '.join(prediction.allowed)}"
    lines: list[str] = []
    for number, (name, answer) in enumerate(answered.items()):
        texts = (f"{name}: {_one_line(answer)}", f"Limits: {_limits(answer)}{aside}")
        pair = [_clip(_clean(text)) for text in texts]
        # An answer and its limits come together or not at all.
        if sum(map(len, (*lines, *pair))) > _MOST_BANNER_CHARS:
            left = len(answered) - number
            return [*lines, f"{left} more heads answered", "Limits: see the report or the JSON"]
        lines += pair
    return lines


def _clip(text: str) -> str:
    return text if len(text) <= _MOST_LINE_CHARS else text[: _MOST_LINE_CHARS - 1] + "~"


def _under_banner(sheet: NDArray[np.uint8], lines: Sequence[str]) -> NDArray[np.uint8]:
    """Set banner and answers above a drawing, which stays as it is; uint8 (H, w, 3)."""
    from PIL import Image, ImageDraw

    from engine.heatmap import INK, PAPER, WARNING, drawable, line_height, load_font, wrap_text

    height, width = sheet.shape[:2]
    size, small = max(16, width // 28), load_font(max(11, width // 56))
    margin = line_height(small) // 2
    while _banner_width(size) > width - 2 * margin and size > 8:
        size -= 1
    texts = [
        (line, WARNING if number % 2 else INK)
        for number, text in enumerate(lines)
        for line in wrap_text(drawable(text), small, width - 2 * margin)
    ]
    top = 2 * margin + line_height(load_font(size))
    strip = top + len(texts) * line_height(small) + margin
    out = Image.new("RGB", (width, strip + height), PAPER)
    pen = ImageDraw.Draw(out)
    _draw_banner(pen, margin, margin, size)
    for number, (line, colour) in enumerate(texts):
        pen.text((margin, top + number * line_height(small)), line, fill=colour, font=small)
    out.paste(Image.fromarray(np.ascontiguousarray(sheet)), (0, strip))
    return np.asarray(out)


def _banner_width(size: int) -> float:
    from engine.heatmap import load_font

    font = load_font(size)
    return sum(font.getlength(part) for part in BANNER.split("–")) + size / 2


def _draw_banner(pen: Any, x: int, y: int, size: int) -> None:
    """Draw the banner; the font that comes with Pillow has no dash, so that is drawn by itself."""
    from engine.heatmap import WARNING, load_font

    font = load_font(size)
    before, after = BANNER.split("–")
    pen.text((x, y), before, fill=WARNING, font=font)
    left, right = x + font.getlength(before), x + font.getlength(before) + size / 2
    _, top, _, bottom = font.getbbox("e")
    middle, thick = y + (top + bottom) / 2, max(1, round(size / 14))
    pen.rectangle((left, middle - thick / 2, right, middle + thick / 2), fill=WARNING)
    pen.text((right, y), after, fill=WARNING, font=font)


# ---- The file ------------------------------------------------------------------------------------


def _write(dataset: Dataset, origin: _Source) -> bytes:
    """Fill in patient and study, and give the file's bytes."""
    import pydicom
    from pydicom.config import IGNORE
    from pydicom.datadict import tag_for_keyword
    from pydicom.dataelem import DataElement
    from pydicom.uid import UID

    for keyword, vr in _IDENTITY.items():
        value = origin.identity[keyword]
        if not value and keyword in _OPTIONAL:
            if keyword in dataset:
                delattr(dataset, keyword)
            continue
        tag = tag_for_keyword(keyword) or 0
        # Not checked: what is too long for the standard is what the PACS knows the patient by.
        dataset[tag] = DataElement(tag, vr, value, validation_mode=IGNORE)
    dataset.SpecificCharacterSet = _UTF_8
    dataset.file_meta.ImplementationClassUID = UID(_make_uid("", "implementation"))
    dataset.file_meta.ImplementationVersionName = f"HILUM {_version()}"[:16]
    data = io.BytesIO()
    pydicom.dcmwrite(data, dataset, enforce_file_format=True)
    return data.getvalue()
