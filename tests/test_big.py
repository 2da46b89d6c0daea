"""Containers that do not fit into memory: trained from and judged in a bounded amount of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from formats import ContainerWriter, preprocessing_digest

ROWS, DIM = 50_000, 1280
# All rows as float32, once; reading everything and standardising a copy took twice this.
WHOLE_MIB = 4 * ROWS * DIM / 2**20
CLASSES = ("first", "second", "third")
STATUS = Path("/proc/self/status")

# The peak of the process itself: what getrusage says, a child inherits from its parent's pages.
PEAK = """
import json, pathlib, re, sys
import engine
from engine import evaluate, train
data, head, how = sys.argv[1:]
if how == "train":
    code = train.main([data, "-o", head, "--quiet"])
elif how == "evaluate":
    code = evaluate.main([head, data, "--quiet"])
else:
    # Whoever opens it as usual has it mapped.
    with engine.open_container(data) as container:
        study = engine.study_head([container], seed=0, name=pathlib.Path(head).stem)
    study.head.save(head)
    code = 0
status = pathlib.Path("/proc/self/status").read_text()
print(json.dumps([code, int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) / 1024]))
"""


def make(path: Path, n_rows: int) -> Path:
    """Write features of a few hidden factors, whose means the classes move."""
    rng = np.random.default_rng(3)
    mix = (rng.normal(size=(16, DIM)) * np.geomspace(2, 0.2, 16)[:, None]).astype(np.float32)
    centres = rng.normal(size=(3, 16)).astype(np.float32) * np.float32(0.7)
    groups = rng.permutation(np.arange(n_rows) // 3)
    group_labels = rng.permutation(np.arange(groups.max() + 1) % 3)
    group_splits = rng.choice([1, 2, 3], groups.max() + 1, p=[0.7, 0.15, 0.15])
    preprocessing = {"version": 1}
    notes = {
        "classes": list(CLASSES),
        "multilabel": False,
        "backbone": {"name": "net", "sha256": "a" * 64},
        "preprocessing": preprocessing,
        "blocks": [{"tap": "final", "pooling": "mean", "offset": 0, "width": DIM}],
    }
    with ContainerWriter(
        path,
        dim=DIM,
        expected_rows=n_rows,
        backbone_digest="a" * 64,
        preprocessing_digest=preprocessing_digest(preprocessing),
    ) as writer:
        for start in range(0, n_rows, 3000):
            group = groups[start : start + 3000]
            label = group_labels[group]
            factors = centres[label] + rng.standard_normal((len(group), 16), np.float32)
            noise = rng.standard_normal((len(group), DIM), np.float32)
            writer.append(
                factors @ mix + np.float32(0.3) * noise,
                label=label.astype(np.uint16),
                group=group.astype(np.uint32),
                split=group_splits[group].astype(np.uint8),
            )
        writer.seal(notes)
    return path


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A small and a large one; the large one does not stay in the temporary folder."""
    folder = tmp_path_factory.mktemp("big")
    small, large = make(folder / "small.hilum", 600), make(folder / "large.hilum", ROWS)
    yield small, large
    large.unlink()


def peak_mib(repository: Path, data: Path, head: Path, how: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(data), str(head), how],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    code, peak = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return float(peak)


@pytest.mark.skipif(not STATUS.is_file(), reason="no /proc/self/status to read the peak from")
def test_training_and_judging_hold_a_part_of_the_features(
    repository: Path, containers: tuple[Path, Path], tmp_path: Path
) -> None:
    assert re.search(r"VmHWM:", STATUS.read_text())
    small, large = containers
    heads = {"train": tmp_path / "one" / "h.safetensors", "fit": tmp_path / "two" / "h.safetensors"}
    for head in heads.values():
        head.parent.mkdir()
    base = peak_mib(repository, small, heads["train"], "train")
    for how in ("train", "fit", "evaluate"):
        peak = peak_mib(repository, large, heads.get(how, heads["train"]), how)
        assert peak - base < 0.5 * WHOLE_MIB, how
    # Read or mapped, by command or by call: the same head.
    assert heads["train"].read_bytes() == heads["fit"].read_bytes()
