"""Refusal: the score against its definition, what the threshold promises, and real strangers."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import engine
from engine.errors import MismatchError
from engine.features import feature_vectors
from engine.images import Preprocessing
from engine.kernels import ood as kernels
from engine.ood import OodModel, fit_ood
from engine.phantoms import STRANGERS, draw_phantom, draw_stranger, write_png
from engine.pooling import blocks_from_notes

D = 60


def rows(n, seed=0, d=D, spread=1.0):
    """Three long axes in d columns, and noise."""
    axes = np.random.default_rng(77).normal(size=(3, d))
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 3)) @ axes * 2 + spread * rng.normal(size=(n, d))
    return X.astype(np.float32)


def refused(model, X):
    return float((model.scores(X) > model.threshold).mean())


# --- kernels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, d, width", [(1, 1, 1), (4, 128, 3), (7, 130, 5), (9, 257, 40)])
def test_products_are_those_of_numpy(n, d, width):
    rng = np.random.default_rng(n)
    X = rng.normal(size=(n, d)).astype(np.float32)
    right, out = rng.normal(size=(d, width)), np.full((n, width), np.nan)
    kernels.multiply(X, right, out)
    np.testing.assert_allclose(out, X.astype(float) @ right, rtol=1e-12, atol=1e-12)
    left, out = rng.normal(size=(n, width)), np.full((d, width), np.nan)
    kernels.multiply_transposed(X, left, out)
    np.testing.assert_allclose(out, X.astype(float).T @ left, rtol=1e-12, atol=1e-12)


BITS = """
import hashlib, numpy as np
from engine.ood import fit_ood
rng = np.random.default_rng(0)
X = (rng.normal(size=(N, 9)) @ rng.normal(size=(9, D)) + rng.normal(size=(N, D))).astype("f4")
model = fit_ood(X, np.arange(len(X)) // 2, sources=np.arange(len(X)) % 3)
digest = hashlib.sha256(repr(model.to_json()).encode())
for name in sorted(model.tensors):
    digest.update(model.tensors[name].tobytes())
digest.update(model.scores(X[:20]).tobytes())
print(digest.hexdigest())
"""


COLD = """
import sys
import numpy as np
from engine.ood import OodModel
tensors = {name: np.ones(n, np.float32) for name, n in
           {"center": 4, "scale": 4, "spread": 1, "rest": 1}.items()}
model = OodModel({**tensors, "basis": np.eye(1, 4, dtype=np.float32)}, 1.0, 0.01)
print(model.scores(np.array([[1, 3, 1, 1]], np.float32)), {"numba", "scipy"} & set(sys.modules))
"""


def bits(n, d, **environment):
    return run(BITS.replace("N", str(n)).replace("D", str(d)), **environment)


def run(program, **environment):
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_same_bits_whatever_the_threads():
    found = {bits(300, 900, OPENBLAS_NUM_THREADS=n, OMP_NUM_THREADS=n) for n in ("1", "2", "7")}
    assert len(found) == 1


@pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="this is the second run")
def test_the_same_bits_as_plain_python():
    """Out-of-bounds reads are silent in compiled kernels; as Python they are an IndexError."""
    assert bits(30, 21) == bits(30, 21, NUMBA_DISABLE_JIT="1")


def test_a_prediction_needs_no_compiler():
    assert run(COLD) == "[1.] set()\n"


# --- the score -----------------------------------------------------------------------------------


def test_the_score_is_the_mahalanobis_distance_to_the_described_gaussian():
    X = rows(200)
    model = fit_ood(X, np.arange(200))
    tensors = {name: array.astype(float) for name, array in model.tensors.items()}
    np.testing.assert_allclose(tensors["center"], X.mean(0), atol=1e-5)
    np.testing.assert_allclose(tensors["scale"], X.std(0), rtol=1e-5)
    basis, rest = tensors["basis"], tensors["rest"][0]
    np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-6)
    covariance = rest**2 * (np.eye(D) - basis.T @ basis)
    covariance += basis.T @ np.diag(tensors["spread"] ** 2) @ basis
    Z = (rows(9, seed=1) - tensors["center"]) / tensors["scale"]
    expected = np.sqrt(np.einsum("ni,ij,nj->n", Z, np.linalg.inv(covariance), Z) / D)
    np.testing.assert_allclose(model.scores(rows(9, seed=1)), expected, rtol=1e-5)


def test_the_long_axes_are_those_of_the_rows():
    X = rows(400)
    Z = (X - X.mean(0)) / X.std(0)
    _, singular, axes = np.linalg.svd(Z, full_matrices=False)
    model = fit_ood(X, np.arange(400))
    found = model.tensors["basis"].astype(float)
    # The three that stand out are found exactly, the others are noise.
    np.testing.assert_allclose(np.abs(found[:3] @ axes[:3].T), np.eye(3), atol=1e-3)
    spread = model.tensors["spread"] / model.tensors["rest"][0]
    rest = math.sqrt((singular[32:] ** 2).sum() / 400 / (D - 32))
    np.testing.assert_allclose(spread[:3], singular[:3] / 20 / rest, rtol=0.05)


def test_a_usual_image_scores_one():
    model = fit_ood(rows(300), np.arange(300))
    assert 0.95 < np.median(model.scores(rows(1000, seed=1))) < 1.02


def test_a_row_alone_has_the_score_it_has_among_others():
    X = rows(50)
    model = fit_ood(X, np.arange(50))
    together = model.scores(X)
    assert all(model.scores(X[i : i + 1])[0] == together[i] for i in range(50))
    assert model.scores(X[:0]).shape == (0,)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_is_infinitely_far(value):
    X = rows(50)
    model = fit_ood(X, np.arange(50))
    X[3, 7] = value
    scores = model.scores(X)
    assert scores[3] > 1e30
    assert (scores[:3] < 10).all()


def test_columns_that_never_change_and_rows_that_are_all_alike():
    X = rows(60)
    X[:, 5] = 2.0
    model = fit_ood(X, np.arange(60))
    assert np.isfinite(model.scores(X)).all()
    strange = X[:1].copy()
    strange[:, 5] = 50.0
    assert model.scores(strange)[0] > model.threshold
    few = fit_ood(np.tile(X[:3], (20, 1)), np.arange(60)).tensors
    assert (few["spread"] >= few["rest"]).all()
    same = fit_ood(np.ones((30, 4), np.float32), np.arange(30))
    assert same.scores(np.ones((1, 4), np.float32))[0] <= same.threshold
    assert same.scores(np.full((1, 4), 1.5, np.float32))[0] > same.threshold


@pytest.mark.parametrize("n, d", [(20, 1), (20, 2), (21, 400), (64, 33)])
def test_few_rows_and_few_columns(n, d):
    model = fit_ood(rows(n, d=d), np.arange(n))
    far = np.full((1, d), 500, np.float32)
    assert model.scores(far)[0] > model.threshold >= np.median(model.scores(rows(n, d=d)))


def test_a_memory_stays_small_and_holds_no_row():
    X = np.random.default_rng(0).normal(size=(40, 4400)).astype(np.float32)
    model = fit_ood(X, np.arange(40))
    assert sum(array.nbytes for array in model.tensors.values()) < 300_000
    wide = fit_ood(np.tile(X, (4, 1)) + 0.1 * X[::-1].repeat(4, 0), np.arange(160))
    assert sum(array.nbytes for array in wide.tensors.values()) < 300_000
    lengths = np.linalg.norm(X, axis=1)
    for array in model.tensors["basis"]:
        assert (np.abs(X @ array) / lengths).max() < 0.9


# --- the threshold -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "n, rate, rank",
    [(99, 0.01, 99), (100, 0.01, 100), (199, 0.01, 198), (720, 0.01, 714), (50, 0.01, 50),
     (199, 0.05, 190), (999, 0.02, 980), (24, 0.44, 14)],
)  # fmt: skip
def test_the_limit_is_the_conformal_quantile(n, rate, rank):
    from engine.ood import _limit

    scores = np.random.default_rng(0).permutation(n) + 1.0
    assert _limit(scores, np.zeros(n), rate) == rank


def test_unseen_rows_are_kept_as_promised():
    """Of 40 sets of 99 rows: one row in a hundred is refused, on average."""
    shares = []
    for seed in range(40):
        X = rows(99 + 300, seed=seed)
        shares.append(refused(fit_ood(X[:99], np.arange(99), seed=seed), X[99:]))
    assert 0.004 < np.mean(shares) < 0.013


def test_what_is_promised_and_measured_is_said():
    model = fit_ood(rows(400), np.arange(400) // 2)
    about = model.about
    assert (about["n_rows"], about["n_groups"], about["stated_rate"]) == (400, 200, 0.01)
    low, high = about["refused_unseen_ci95"]
    assert 0 <= low <= about["refused_unseen"] <= high < 0.06
    assert 0.002 < about["refused_unseen"] < 0.025
    assert "refuse 1 % of unseen images" in model.summary()
    assert "too few" not in model.summary()
    few = fit_ood(rows(30), np.arange(30))
    assert few.about["stated_rate"] == pytest.approx(1 / 31)
    assert "refuse 3.23 % of unseen images" in few.summary()
    assert "30 images are too few to promise 1 %" in few.summary()


def test_a_patient_is_either_seen_or_unseen():
    """Twins of a held-out row in the training would make unseen rows look familiar."""
    X = np.repeat(rows(30, d=200), 5, axis=0)
    X += 0.01 * np.random.default_rng(1).normal(size=X.shape).astype(np.float32)
    apart = fit_ood(X, np.arange(150) // 5).tensors["rest"][0]
    mixed = fit_ood(X, np.arange(150)).tensors["rest"][0]
    assert apart > 3 * mixed


def test_a_small_source_of_another_kind_keeps_its_images():
    X = np.concatenate([rows(900), rows(60, seed=1, spread=1.5)])
    sources = np.array(["big"] * 900 + ["small"] * 60)
    others = rows(500, seed=2, spread=1.5)
    alone = fit_ood(X, np.arange(960))
    assert refused(alone, others) > 0.1
    model = fit_ood(X, np.arange(960), sources=sources)
    assert refused(model, others) < 0.06
    assert set(model.about["sources"]) == {"big", "small"}
    assert model.about["sources"]["small"]["n_rows"] == 60
    assert model.about["stated_rate"] == pytest.approx(1 / 61)
    assert "sources" not in fit_ood(X, np.arange(960), sources=np.zeros(960)).about
    # Too few for a limit of their own: they count with the lot.
    tiny = np.array(["big"] * 940 + ["tiny"] * 20)
    assert set(fit_ood(X, np.arange(960), sources=tiny).about["sources"]) == {"big"}


def test_of_very_many_rows_some_are_drawn():
    X = rows(3500, d=8)
    model = fit_ood(X, np.arange(3500))
    assert model.about["n_rows"] == 3000
    assert refused(model, rows(2000, seed=1, d=8)) < 0.02


@pytest.mark.parametrize("seed", [0, 1])
def test_the_seed_decides_the_parts(seed):
    X = rows(80)
    first, second = (fit_ood(X, np.arange(80), seed=seed) for _ in range(2))
    assert first.to_json() == second.to_json()
    assert fit_ood(X, np.arange(80), seed=2).threshold != first.threshold


def test_bad_input_is_named():
    with pytest.raises(MismatchError, match="19 images are too few"):
        fit_ood(rows(19), np.arange(19))
    with pytest.raises(MismatchError, match="all 40 images are of one patient"):
        fit_ood(rows(40), np.zeros(40))
    for rate in (0.0, 1.0, -1, math.nan):
        with pytest.raises(ValueError, match="expected above 0 and below 1"):
            fit_ood(rows(40), np.arange(40), refusal_rate=rate)
    with pytest.raises(ValueError, match="39 groups"):
        fit_ood(rows(40), np.arange(39))
    with pytest.raises(ValueError, match="3 sources"):
        fit_ood(rows(40), np.arange(40), sources=np.arange(3))


def test_explanations():
    about = {"population": "720 images of 578 patients"}
    model = OodModel({}, 1.4, 0.01, about)
    assert "3.4 times as far from the training images (720 images of 578 p" in model.explain(3.4)
    assert "the limit is 1.4. The head has not learned" in model.explain(3.4)
    assert "--allow out_of_distribution" in model.explain(3.4)
    assert "1.41 times" in model.explain(1.41) and "limit is 1.40." in model.explain(1.41)
    assert model.explain(0.9).endswith("the limit is 1.4")
    assert "not finite" in model.explain(math.inf)
    assert "(" not in replace(model, about={}).explain(0.9)


# --- real features -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded():
    with engine.open_container(
        Path(engine.__file__).parent / "demonstration" / "pneumonia.hilum"
    ) as container:
        X, _ = container.arrays()
        blocks = blocks_from_notes(container.blocks)
        preprocessing = Preprocessing.from_dict(container.notes["preprocessing"])
        X, patients = np.array(X, np.float32), np.array(container.groups)
        backbone = engine.load_backbone(container.backbone, streams=1)

        def extract(paths):
            return np.concatenate(feature_vectors(paths, backbone, preprocessing, blocks))

        yield X, patients, extract
        backbone.close()


def test_held_out_chest_xrays_are_kept(embedded):
    X, patients, _ = embedded
    part = (np.random.default_rng(0).permutation(patients.max() + 1) % 5)[patients]
    n_refused = 0
    for number in range(5):
        out = part == number
        mean, scale = X[~out].mean(0), X[~out].std(0)
        model = fit_ood((X[~out] - mean) / scale, patients[~out])
        n_refused += int((model.scores((X[out] - mean) / scale) > model.threshold).sum())
    assert n_refused <= 0.02 * len(X)
    assert n_refused > 0


def test_what_is_no_frontal_chest_is_refused(embedded, tmp_path):
    """Heads of drawn chests: they keep others, and refuse what is drawn by the same means."""
    _, _, extract = embedded
    size = {"height": 160, "width": 160}
    pictures = [draw_phantom(seed, **size) for seed in range(64)]
    pictures += [draw_stranger(seed, kind, **size) for kind in STRANGERS for seed in range(4)]
    X = extract([write_png(picture, tmp_path / f"{i}.png") for i, picture in enumerate(pictures)])
    known, mean, scale = X[:48], X[:48].mean(0), X[:48].std(0)
    model = fit_ood((known - mean) / scale, np.arange(48))
    scores = model.scores((X - mean) / scale)
    assert (scores[48:64] > model.threshold).sum() <= 1
    assert (scores[64:] > model.threshold).all()


def test_altered_xrays_are_refused(embedded, xrays, tmp_path):
    X, patients, extract = embedded
    mean, scale = X.mean(0), X.std(0)
    model = fit_ood((X - mean) / scale, patients)
    files = sorted((xrays / "images").glob("*.jpg"))[::60]
    alterations = {
        "inverted": lambda a: 255 - a,
        "turned": np.rot90,
        "upside down": lambda a: a[::-1],
        "a quarter": lambda a: a[: a.shape[0] // 2, : a.shape[1] // 2],
        "half covered": lambda a: np.where(np.arange(a.shape[1]) < a.shape[1] // 2, 255, a),
    }
    for name, alter in alterations.items():
        paths = []
        for file in files:
            pixels = np.asarray(Image.open(file).convert("L"))
            paths.append(tmp_path / f"{name}-{file.stem}.png")
            Image.fromarray(np.ascontiguousarray(alter(pixels), np.uint8)).save(paths[-1])
        scores = model.scores((extract(paths) - mean) / scale)
        assert (scores > model.threshold).mean() >= 0.9, name
