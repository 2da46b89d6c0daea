"""What the measurements share: images to work on, and CPU time of a piece of work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.stages import Setting

N_PHANTOMS = 120


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Real X-rays from HILUM_TEST_DATA (the folder that holds pneumonia/), else phantoms."""
    folder = os.environ.get("HILUM_TEST_DATA")
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    real = Path(folder) if folder else default
    found = sorted((real / "pneumonia" / "images").glob("*.jpg"))
    if found:
        return found
    from engine.phantoms import draw_phantom, write_png

    target = tmp_path_factory.mktemp("phantoms")
    return [write_png(draw_phantom(seed), target / f"{seed}.png") for seed in range(N_PHANTOMS)]


@pytest.fixture(scope="session")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """What `python -m bench` gives a stage; HILUM_BENCH_QUICK=1 for the smallest sizes."""
    folder = os.environ.get("HILUM_TEST_DATA")
    quick = os.environ.get("HILUM_BENCH_QUICK", "") not in {"", "0"}
    work = tmp_path_factory.mktemp("stage")
    return Setting(Path(folder) if folder else None, 2 if quick else 7, work, quick)


@pytest.fixture(scope="session")
def container_path(images: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A container of the default features: the embedded one, which is made of real X-rays."""
    import engine

    return Path(engine.__file__).parent / "demonstration" / "pneumonia.hilum"


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of this process, all threads, that a piece of work takes."""
    start = time.process_time()
    work()
    return time.process_time() - start
