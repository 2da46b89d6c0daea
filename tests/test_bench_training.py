"""What the stages of training make of measured costs and predictions, without measuring."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from bench import bench_training as stage
from bench.training_arms import fold_key, scaled_steps

PASSES = [[1.0, 2.0, 100.0], [3.0, 4.0, 100.0]]


@pytest.fixture
def plan(tmp_path: Path) -> dict[str, Any]:
    files = []
    for number in range(8):
        path = tmp_path / f"{number}.png"
        path.write_bytes(bytes(number + 1))
        files.append(str(path))
    return {
        "files": files,
        "labels": [0, 1] * 4,
        "groups": list(range(8)),
        "folds": [0, 0, 0, 0, 1, 1, 1, 1],
        "classes": ["one", "other"],
        "backbone": "name",
        "blocks": [],
        "preprocessing": {},
    }


def test_epochs_that_were_run_are_summed() -> None:
    found = {"once": [10.0, 20.0, 7.0], "passes": PASSES}
    assert stage.totals(found, 1, 0) == ([11.0], False)
    assert stage.totals(found, 2, 1) == ([26.0], False)


def test_epochs_that_were_not_run_are_extrapolated_at_each_pace() -> None:
    found = {"once": [10.0, 20.0, 7.0], "passes": PASSES}
    assert stage.totals(found, 5, 0) == ([10 + 4 + 3 * 1.0, 10 + 4 + 3 * 3.0], True)
    assert stage.totals(found, 5, 2) == ([507.0, 507.0], True)


def test_steps_are_never_taken_for_epochs_that_were_run() -> None:
    found = {"once": [10.0, 20.0, 7.0], "passes": PASSES, "pieces": True}
    assert stage.totals(found, 1, 0) == ([11.0, 13.0], True)


def test_steps_scale_by_their_own_images_and_leave_the_first_out() -> None:
    steps = [(16, [9.0, 9.0, 9], 1.0), (16, [2.0, 3.0, 0], 1.0), (8, [2.0, 3.0, 0], 1.0)]
    assert scaled_steps(steps, 32, 1) == [[4.0, 6.0, 0.0], [8.0, 12.0, 0.0]]


def test_trials_of_fine_tuning_learn_from_as_many_images_as_the_containers() -> None:
    found = {"once": [1.0, 0.0, 0.0], "passes": [[8.0, 0.0, 0.0]]}
    container = {"trial_rows": [3, 5, 4], "trial_image_passes": [100, 300, 200]}
    tuned = stage.trial_total("tuned-final", found, container, 8, 0)
    assert tuned == 1 + len(stage.TRIALS) * stage.TRIAL_EPOCHS * 4 * 1.0
    assert stage.trial_total("int8-files", found, container, 8, 0) == 1 + 200


def test_extraction_is_in_every_total_of_the_container() -> None:
    extract = {"rounds": [[10.0, 0, 0], [20.0, 0, 0]]}
    found = {"timing": {"20": [[1.0, 0, 0], [2.0, 0, 0]]}, "trials": [[1.0, 0, 0]] * 3}
    assert stage.container_total(extract, found, "20", 0) == [11.0, 22.0]
    assert stage.container_total(extract, found, "trials", 0) == [11.0, 21.0, 11.0]


def test_folds_that_were_not_run_are_left_out_and_named(plan: dict[str, Any]) -> None:
    run = [[0.9, 0.1], [0.2, 0.8]] * 2
    shares = run + [[math.nan, math.nan]] * 4
    rows = stage.judged_rows(plan, shares)
    assert rows == [0, 1, 2, 3]
    assert stage.folds_of(plan, rows) == ", 1 of 2 folds"
    assert stage.folds_of(plan, range(8)) == ""
    found = stage.judge(plan, shares, rows)
    assert found is not None
    assert found.accuracy == 1.0
    assert stage.judge(plan, shares, []) is None


def test_what_is_kept_of_a_fold_is_named_by_all_that_changes_it(plan: dict[str, Any]) -> None:
    first = fold_key(plan, "tuned-final", 20, 0, "2")
    assert first == fold_key(dict(plan), "tuned-final", 20, 0, "2")
    others = [
        fold_key(plan, "tuned-taps", 20, 0, "2"),
        fold_key(plan, "tuned-final", 5, 0, "2"),
        fold_key(plan, "tuned-final", 20, 1, "2"),
        fold_key(plan, "tuned-final", 20, 0, "3"),
        fold_key({**plan, "labels": [1, 0] * 4}, "tuned-final", 20, 0, "2"),
    ]
    Path(plan["files"][0]).write_bytes(bytes(99))
    others.append(fold_key(plan, "tuned-final", 20, 0, "2"))
    assert len({first, *others}) == 7
