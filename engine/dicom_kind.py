"""What a DICOM header says it shows.

Everything that is told of it comes from closed vocabularies; whatever else a header says stays in
it. Each refusal has a reason code of :data:`engine.errors.REFUSALS`.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.dicom_file import DicomFile, read_code, read_value
from engine.errors import Refused
from engine.picture import refuse

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = [
    "ACCEPTED_MODALITIES",
    "OWN_MANUFACTURER",
    "OWN_SERIES",
    "check_kind",
    "check_subject",
    "describe",
    "is_own",
]

ACCEPTED_MODALITIES = ("CR", "DX", "RF")
"""Modalities (0008,0060) of projection radiographs; a file that names none is read too."""

OWN_MANUFACTURER = "Hilum"
"""Manufacturer (0008,0070) of every DICOM object Hilum makes; one that says so is never read."""

OWN_SERIES = "Hilum result"
"""How SeriesDescription (0008,103E) of such an object begins."""

# What storage classes of PS3.4 section B.5 begin with.
_STORAGE = "1.2.840.10008.5.1.4.1.1."

# Storage classes a file without Modality may have: CR, DX for presentation and processing, RF, and
# secondary capture.
_ACCEPTED_CLASSES = tuple(f"{_STORAGE}{end}" for end in ("1", "1.1", "1.1.1", "12.2", "7"))

# The commonest other modalities of PS3.3 section C.7.3.1.1.1.
_OTHER_MODALITIES = (
    *("BMD", "CT", "ES", "GM", "HC", "IO", "IVUS", "MG", "MR", "NM", "OP", "OPT", "OT", "PT", "PX"),
    *("RTIMAGE", "SC", "SM", "US", "XA", "XC"),
)

# Objects about a picture, which a PACS sends along with it, and objects that are none; each also by
# the beginnings of storage classes.
_ANNOTATIONS = ("ANN", "FID", "KO", "PR", "REG", "RTSTRUCT", "SEG", "SR")
_ANNOTATION_CLASSES = tuple(
    f"{_STORAGE}{end}" for end in ("11.", "66.", "68.", "88.", "91.", "481.3")
)
_NO_IMAGES = (
    *("AU", "CTPROTOCOL", "DMS", "DOC", "ECG", "EEG", "EMG", "EPS", "HD", "M3D", "OSS", "PLAN"),
    *("POS", "RESP", "RTDOSE", "RTINTENT", "RTPLAN", "RTRAD", "RTRECORD", "RTSEGANN", "SMR"),
    *("STAIN", "TEXTUREMAP", "XAPROTOCOL"),
)
_NO_IMAGE_CLASSES = (
    "1.2.840.10008.1.",  # directories
    "1.2.840.10008.5.1.4.34.",  # procedure steps
    # Waveforms, documents, protocols; doses, plans and records of radiotherapy.
    *(f"{_STORAGE}{end}" for end in ("9.", "104.", "200.")),
    *(f"{_STORAGE}481.{end}" for end in (2, 4, 5, 6, 7, 8, 9)),
)

# BodyPartExamined (0018,0015) in the languages it is met in. A word of the first list makes it the
# chest, unless one of the second is there too: the thoracic spine is no chest.
_CHEST_WORDS = (
    *("CHEST", "CHST", "THORA", "TORAX", "TORAC", "LUNG", "PULMO", "POLMO", "POUMON", "HEART"),
    *("MEDIASTIN", "BRUSTKORB", "POITRINE", "KLATKA", "KLP", "HRUDNIK", "BORST"),
)
_SPINE_WORDS = (
    *("SPINE", "SPINAL", "LUMB", "VERTEB", "COLUMN", "COLON", "RACHIS", "RAQUIS", "WIRBEL"),
    *("WERVEL", "KREGOSLUP", "DORSAL"),
)
_SAYS_NOTHING = (
    *("", "ANY", "DEFAULT", "NA", "NONE", "NOTSPECIFIED", "NULL", "OTHER", "UNDEFINED", "UNKNOWN"),
    *("UNSPECIFIED", "XRAY"),
)
# What may be repeated of the others (PS3.16 annex L); anything else could be a name.
_OTHER_BODY_PARTS = (
    *("ABDOMEN", "ANKLE", "ARM", "BREAST", "CLAVICLE", "COCCYX", "CSPINE", "ELBOW", "FEMUR"),
    *("FINGER", "FOOT", "FOREARM", "HAND", "HEAD", "HIP", "HUMERUS", "JAW", "KNEE", "LEG"),
    *("LSPINE", "NECK", "PELVIS", "RIB", "SCAPULA", "SHOULDER", "SKULL", "SPINE", "SSPINE"),
    *("STERNUM", "TSPINE", "WRIST"),
)
# AnatomicRegionSequence (0008,2218), PS3.16 annex L: SNOMED CT and the SNOMED-RT codes before it:
# thorax, its cavity, lung, mediastinum, heart; the chest together with abdomen, pelvis or neck.
_CHEST_CODES = (
    *("51185008", "816094009", "43799004", "39607008", "72410000", "80891009"),
    *("T-D3000", "T-D3200", "T-28000", "T-D3300", "T-32000"),
    *("416550000", "416775004", "417437006", "416152001", "416319003"),
    *("R-FAB55", "R-FAB56", "R-FAB52", "R-FAB53", "R-FAB54"),
)

# ViewPosition (0018,5101), PS3.3 section C.8.7.1.1.3 and C.8.11.5.1; decubitus and oblique views
# are "other".
_PROJECTIONS = {"PA": "PA", "AP": "AP", "LL": "lateral", "RL": "lateral", "LATERAL": "lateral"}
_PROJECTIONS |= dict.fromkeys(("LAT", "LLAT", "RLAT", "LATL", "LATR", "LEFTLATERAL"), "lateral")
_PROJECTIONS |= dict.fromkeys(("RIGHTLATERAL", "LLATERAL", "RLATERAL", "LATERALE"), "lateral")

# ViewCodeSequence (0054,0220), PS3.16 CID 4010: SNOMED CT and the SNOMED-RT codes before it.
_VIEW_CODES = {
    **dict.fromkeys(("399348003", "R-10206"), "AP"),
    **dict.fromkeys(("272479007", "R-10214", "R-40888"), "PA"),
    **dict.fromkeys(("399067008", "R-102CD"), "lateral"),
    **dict.fromkeys(("399173006", "R-10236", "399198007", "R-10232"), "lateral"),
}


def check_kind(path: Path, file: DicomFile, allow: frozenset[str], allowed: list[str]) -> str:
    """Refuse what is no radiograph, by its maker, modality and storage class.

    Parameters
    ----------
    path : Path
        The file, for messages.
    file : DicomFile
        Its header.
    allow : frozenset of str
        Reasons of refusal that are set aside.
    allowed : list of str
        Gets each that was.

    Returns
    -------
    str
        The modality; empty where there is none, or none that may be repeated.

    Raises
    ------
    Refused
        ``own_result``, ``annotation``, ``not_an_image`` or ``unsupported_modality``.
    """
    from pydicom.uid import UID

    dataset = file.dataset
    if is_own(dataset):
        found = "is a result that Hilum made, expected a radiograph; leave it out"
        refuse(path, "own_result", found, allow, allowed)
    modality = read_code(dataset, "Modality")
    storage = UID(file.storage)
    known = storage.name if storage.name != str(storage) else ""
    # Only what is known to be a modality is repeated: anything else may have got there by mistake.
    closed = (*ACCEPTED_MODALITIES, *_OTHER_MODALITIES, *_ANNOTATIONS, *_NO_IMAGES)
    shown = modality if modality in closed else "unknown"
    found = f"modality {shown}" if modality and modality not in ACCEPTED_MODALITIES else ""
    found = found or f"storage class {known}"
    wanted = f"expected a radiograph ({', '.join(ACCEPTED_MODALITIES)}); leave it out"
    if modality in _ANNOTATIONS or storage.startswith(_ANNOTATION_CLASSES):
        refuse(path, "annotation", f"is {found}, made about pictures, {wanted}", allow, allowed)
    elif modality in _NO_IMAGES or storage.startswith(_NO_IMAGE_CLASSES):
        raise Refused(path, "not_an_image", f"is {found}, which is no picture, {wanted}")
    elif modality not in ACCEPTED_MODALITIES and (
        modality or (known and storage not in _ACCEPTED_CLASSES)
    ):
        refuse(path, "unsupported_modality", f"is {found}, {wanted}", allow, allowed)
    return modality if modality in closed else ""


def is_own(dataset: Dataset) -> bool:
    """Tell whether Hilum made an object: by its maker, or by the name of its series.

    Parameters
    ----------
    dataset : Dataset
        Its header.

    Returns
    -------
    bool
        Either is enough: a PACS may change one of them.
    """
    return read_code(dataset, "Manufacturer") == OWN_MANUFACTURER.upper() or read_code(
        dataset, "SeriesDescription"
    ).startswith(OWN_SERIES.upper())


def check_subject(
    path: Path, dataset: Dataset, about: dict[str, Any], allow: frozenset[str], allowed: list[str]
) -> None:
    """Refuse another part of the body, and the chest from the side, where the file says so.

    Parameters
    ----------
    path : Path
        The file, for messages.
    dataset : Dataset
        Its header.
    about : dict
        From `describe`.
    allow : frozenset of str
        Reasons of refusal that are set aside.
    allowed : list of str
        Gets each that was.

    Raises
    ------
    Refused
        ``body_part`` or ``lateral``.
    """
    if about.get("body_part") == "other":
        part = _letters(read_code(dataset, "BodyPartExamined"))
        shown = f"body part {part}" if part in _OTHER_BODY_PARTS else "another part of the body"
        found = f"its header says {shown}, expected the chest; leave it out"
        refuse(path, "body_part", found, allow, allowed)
    if about.get("projection") == "lateral":
        found = "its header says lateral view, expected a frontal one (PA or AP); leave it out"
        refuse(path, "lateral", found, allow, allowed)


def describe(dataset: Dataset) -> dict[str, Any]:
    """Give facts from closed vocabularies only; whatever else the file says stays in it.

    Parameters
    ----------
    dataset : Dataset
        The header.

    Returns
    -------
    dict
        ``presentation_intent``, ``body_part`` and ``projection``, where the header tells.
    """
    about: dict[str, Any] = {}
    intent = read_code(dataset, "PresentationIntentType")
    if intent in ("FOR PRESENTATION", "FOR PROCESSING"):
        about["presentation_intent"] = intent.lower()
    chests = [_is_chest(_letters(read_code(dataset, "BodyPartExamined")))]
    for code, meaning in _coded(dataset, "AnatomicRegionSequence"):
        chests.append(code in _CHEST_CODES or _is_chest(_letters(meaning)))
    if any(chests):
        about["body_part"] = "chest"
    elif False in chests:
        about["body_part"] = "other"
    projection = ""
    position = _letters(read_code(dataset, "ViewPosition"))
    if position:
        projection = _PROJECTIONS.get(position, "other")
    else:
        for code, _ in _coded(dataset, "ViewCodeSequence")[:1]:
            projection = _VIEW_CODES.get(code, "other")
    if projection:
        about["projection"] = projection
    return about


def _is_chest(part: str) -> bool | None:
    """Tell the chest by its name; None for a word that says nothing."""
    if part in _SAYS_NOTHING:
        return None
    chest = any(word in part for word in _CHEST_WORDS)
    return chest and not any(word in part for word in _SPINE_WORDS)


def _coded(dataset: Dataset, keyword: str) -> list[tuple[str, str]]:
    """Give code and meaning of a code sequence's items; none where it is damaged."""
    try:
        items = list(read_value(dataset, keyword) or [])[:8]
        return [(read_code(item, "CodeValue"), read_code(item, "CodeMeaning")) for item in items]
    except Exception:  # a damaged sequence says nothing
        return []


def _letters(text: str) -> str:
    """Leave letters and figures alone, upper case and without accents."""
    plain = unicodedata.normalize("NFKD", text.upper().replace("\u0141", "L"))
    return "".join(char for char in plain if char.isalnum())
