"""Fixtures shared by the tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Backbones that somebody imported on this machine are none of the tests' business.
os.environ["HILUM_MODELS"] = ""


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout the tests run from."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real X-rays; they are never part of the repository, so tests skip without it."""
    folder = Path(os.environ.get("HILUM_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "pneumonia" / "labels.csv").is_file():
        pytest.skip(f"no real X-rays at {folder} (set HILUM_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def xrays(shared_data: Path) -> Path:
    """Folder of the 720 paediatric X-rays with labels.csv."""
    return shared_data / "pneumonia"
