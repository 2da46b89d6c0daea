"""Plugin for Orthanc: hands every new radiograph over to Hilum by writing it into the spool.

Runs inside Orthanc, by the system's Python and its standard library. Hilum stays a program of its
own, in another process and another environment. Named in orthanc.json as "PythonScript".
"""

import contextlib
import json
import os
from pathlib import Path

import orthanc  # type: ignore[import-not-found]  # Orthanc itself provides it

# The one line to look at. The user Orthanc runs as has to own this folder.
SPOOL = Path(os.environ.get("HILUM_SPOOL", "/var/lib/hilum/spool"))

# What Hilum reads; all else (CT, reports, presentation states) stays in Orthanc only.
MODALITIES = ("", "CR", "DX", "RF")


def is_wanted(series: dict[str, str]) -> bool:
    """Tell a radiograph from the rest, Hilum's own reports and pictures included."""
    maker, series_name, modality = (
        series.get(name, "").strip(" \0").upper()
        for name in ("Manufacturer", "SeriesDescription", "Modality")
    )
    own = maker == "HILUM" or series_name.startswith("HILUM RESULT")
    return modality in MODALITIES and not own


def hand_over(instance: str) -> None:
    """Write a picture into the spool, under a hidden name until it is whole."""
    part = SPOOL / "incoming" / f".{instance}.part"
    try:
        with part.open("wb") as stream:
            stream.write(orthanc.RestApiGet(f"/instances/{instance}/file"))
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(SPOOL / "incoming" / f"{instance}.dcm")
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def on_change(change: int, _level: int, resource: str) -> None:
    """Be told by Orthanc of everything new; runs beside its answering of requests."""
    if change != orthanc.ChangeType.NEW_INSTANCE:
        return
    try:
        series = json.loads(orthanc.RestApiGet(f"/instances/{resource}/series"))
        if is_wanted(series.get("MainDicomTags", {})):
            hand_over(resource)
    except Exception as error:  # Orthanc goes on, and still has the picture
        orthanc.LogError(f"Hilum: a picture was not handed over: {error!r}")


orthanc.RegisterOnChangeCallback(on_change)
