"""What the README promises of accuracy, size and memory, held on real features and real X-rays."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import engine
from engine.demo import DEMONSTRATION_CONTAINER
from engine.prediction import DEMONSTRATION_HEAD

# Below what was measured (0.890 / 0.968), above what raw 64 x 64 pixels reach (0.801 / 0.925); with
# the seed of the folds the figures move by 0.006 and 0.002.
LEAST_ACCURACY, LEAST_AUROC = 0.860, 0.948
MOST_ROW_BYTES = 10_000
MOST_TRAINING_MIB = 400

TRAIN = """
import json, pathlib, re, sys
from engine.train import main
assert main(sys.argv[1:]) == 0
status = pathlib.Path("/proc/self/status").read_text()
print(int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_cross_validation_by_patient_on_real_features(tmp_path: Path) -> None:
    figures = tmp_path / "m.json"
    result = subprocess.run(
        [sys.executable, "-c", TRAIN, str(DEMONSTRATION_CONTAINER), "--cv", "5", "--quiet",
         "-o", str(tmp_path / "h.safetensors"), "--json", str(figures)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(figures.read_text())
    assert (found["n_rows"], found["n_groups"]) == (720, 578)
    assert found["accuracy"] >= LEAST_ACCURACY
    assert found["auroc_macro"] >= LEAST_AUROC
    low, high = found["ci95"]["accuracy"]
    assert low < found["accuracy"] < high
    assert int(result.stdout) < MOST_TRAINING_MIB


def test_the_embedded_head_is_of_the_embedded_container() -> None:
    head = engine.load_head(DEMONSTRATION_HEAD)
    with engine.open_container(DEMONSTRATION_CONTAINER) as container:
        assert head.training["data_sets"] == [container.uuid]
        assert (head.backbone_digest, head.preprocessing_digest) == (
            container.backbone_digest,
            container.preprocessing_digest,
        )
        assert "CC BY 4.0" in container.notes["about"]["licence"]
    with engine.load_backbone() as backbone:
        assert head.backbone_digest == backbone.digest


def test_a_row_is_small(xrays: Path) -> None:
    with engine.open_container(DEMONSTRATION_CONTAINER) as container:
        assert container.size_bytes / container.n_rows <= MOST_ROW_BYTES
        images = sum(path.stat().st_size for path in (xrays / "images").iterdir())
        assert container.size_bytes < images


def test_extraction_gives_the_embedded_features_again(xrays: Path, tmp_path: Path) -> None:
    """Every twentieth X-ray finds its own row among the 720, whatever this CPU rounds."""
    lines = (xrays / "labels.csv").read_text().splitlines()[1::20]
    files = [xrays / line.split(",")[0] for line in lines]
    labels = [line.split(",")[1] for line in lines]
    with (
        engine.load_backbone() as backbone,
        engine.extract_features(backbone, files, tmp_path / "o.hilum", seed=0) as fresh,
        engine.open_container(DEMONSTRATION_CONTAINER) as embedded,
    ):
        rows = embedded.read_rows()
        found = fresh.read_rows()
        assert fresh.labels is None
        classes = np.array(embedded.classes)[np.asarray(embedded.labels)]
    norms = np.linalg.norm(rows, axis=1)
    cosines = found @ rows.T / (np.linalg.norm(found, axis=1)[:, None] * norms)
    best = cosines.argmax(axis=1)
    assert cosines.max(axis=1).min() > 0.9995
    assert sorted(classes[best]) == sorted(labels)
    assert len(set(best.tolist())) == len(files)
