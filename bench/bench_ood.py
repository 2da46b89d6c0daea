"""Which pictures a head refuses: held-out chest X-rays, altered ones, and strangers in folders.

python -m bench.bench_ood --chest FOLDER --strangers FOLDER/photographs FOLDER/text [--compare]

The chest folder holds ``labels.csv`` (file, label, patient) and the images; without it, the
embedded container is judged, and nothing is altered. Each of five parts of the patients is judged
by a model fitted to the other four, which never sees a stranger; altered pictures are those of the
part that is left out. Nothing here chooses anything.
"""

from __future__ import annotations

import argparse
import csv
import io
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import engine
from engine.features import feature_vectors
from engine.images import Preprocessing
from engine.metrics import wilson
from engine.ood import fit_ood
from engine.pooling import blocks_from_notes

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Score = Callable[[F32], F64]
EMBEDDED = Path(engine.__file__).parent / "demonstration" / "pneumonia.hilum"
FOLDS = 5
RATE = 0.01
DRAWS = 2000
KINDS = (".png", ".jpg", ".jpeg", ".dcm", ".tif", ".tiff")


# --- pictures ------------------------------------------------------------------------------------


def _jpeg(a: NDArray[np.uint8], _: np.random.Generator) -> NDArray[np.uint8]:
    data = io.BytesIO()
    Image.fromarray(a).save(data, "JPEG", quality=50)
    return np.asarray(Image.open(data))


def _window(a: NDArray[np.uint8], rng: np.random.Generator, side: float) -> NDArray[np.uint8]:
    high, wide = (round(side * length) for length in a.shape)
    top, left = (int(rng.integers(0, length - cut + 1)) for length, cut in zip(a.shape, (high, wide), strict=True))  # fmt: skip  # noqa: E501
    return a[top : top + high, left : left + wide]


def _half(a: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    out = a.copy()
    out[:, : a.shape[1] // 2] = rng.choice([0, 255])
    return out


# The first should be refused, as far as features can tell; the others are harmless.
ALTERED: dict[str, Callable[[NDArray[np.uint8], np.random.Generator], NDArray[np.uint8]]] = {
    "inverted": lambda a, _: 255 - a,
    "turned by 90 degrees": lambda a, _: np.rot90(a),
    "turned by 180 degrees": lambda a, _: a[::-1, ::-1],
    "mirrored": lambda a, _: a[:, ::-1],
    "window of 60 % of each side": lambda a, rng: _window(a, rng, 0.6),
    "upper left quarter": lambda a, _: a[: a.shape[0] // 2, : a.shape[1] // 2],
    "one half covered": _half,
    "dimmed (0.7 x + 20)": lambda a, _: (a * 0.7 + 20).astype(np.uint8),
    "gamma 0.8": lambda a, _: (255 * (a / 255) ** 0.8).astype(np.uint8),
    "JPEG quality 50": _jpeg,
    "half the resolution": lambda a, _: np.asarray(
        Image.fromarray(a).resize((a.shape[1] // 2, a.shape[0] // 2))
    ),
    "shifted by 5 %": lambda a, _: np.pad(a, ((0, 0), (a.shape[1] // 20, 0)))[:, : a.shape[1]],
    "turned by 5 degrees": lambda a, rng: np.asarray(
        Image.fromarray(a).rotate(float(rng.choice([-5, 5])), Image.Resampling.BICUBIC)
    ),
}


class Extractor:
    """Default features, as extraction and prediction compute them."""

    def __init__(self) -> None:
        container = engine.open_container(EMBEDDED)
        self.blocks = blocks_from_notes(container.blocks)
        self.preprocessing = Preprocessing.from_dict(container.notes["preprocessing"])
        self.backbone = engine.load_backbone(container.backbone)

    def features(self, paths: Sequence[Path]) -> tuple[F32, int]:
        """Features of the pictures that can be read, and how many cannot."""
        found = []
        for first in range(0, len(paths), 8):
            some = paths[first : first + 8]
            found += feature_vectors(some, self.backbone, self.preprocessing, self.blocks)
        rows = [row for row in found if isinstance(row, np.ndarray)]
        width = sum(block.width for block in self.blocks)
        return np.array(rows, np.float32).reshape(len(rows), width), len(found) - len(rows)

    def altered(self, files: Sequence[Path], name: str) -> F32:
        """Features of pictures that were altered, in their order."""
        rng = np.random.default_rng(0)
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for number, file in enumerate(files):
                pixels = np.asarray(Image.open(file).convert("L"))
                paths.append(Path(folder) / f"{number}.png")
                Image.fromarray(np.ascontiguousarray(ALTERED[name](pixels, rng))).save(paths[-1])
            rows, n_failed = self.features(paths)
        if n_failed:
            raise SystemExit(f"{n_failed} altered pictures ({name}) cannot be read")
        return rows


# --- scores --------------------------------------------------------------------------------------


def _axes(Z: F64, r: int) -> tuple[F64, F64, float]:
    """Axes, deviations along them, and the mean square of what is left."""
    _, singular, axes = np.linalg.svd(Z, full_matrices=False)
    return axes[:r], singular[:r] / np.sqrt(len(Z)), float((singular[r:] ** 2).sum()) / len(Z)


def _gauss(r: int, inside: float, outside: float) -> Callable[[F32, NDArray[Any]], Score]:
    """Mahalanobis distance along r axes, beside them, or a weighted sum of both."""

    def fit(Z: F32, _: NDArray[Any]) -> Score:
        axes, spread, rest = _axes(Z.astype(np.float64), r)

        def score(Y: F32) -> F64:
            along = Y @ axes.T
            left = (Y.astype(np.float64) ** 2).sum(1) - (along**2).sum(1)
            found: F64 = inside * ((along / spread) ** 2).mean(1) + outside * left / rest
            return found

        return score

    return fit


def _by_class(r: int, relative: bool) -> Callable[[F32, NDArray[Any]], Score]:
    """Lee et al. 2018, section 2.1; relative: Ren et al. 2021, section 3."""

    def fit(Z: F32, labels: NDArray[Any]) -> Score:
        means = {name: Z[labels == name].mean(0) for name in np.unique(labels)}
        whole = _gauss(r, 1, 1)(Z, labels)
        rests = Z - np.array([means[name] for name in labels.tolist()])
        tied = _gauss(r, 1, 1)(rests, labels)

        def score(Y: F32) -> F64:
            nearest: F64 = np.min([tied(Y - mean) for mean in means.values()], axis=0)
            return nearest - whole(Y) if relative else nearest

        return score

    return fit


def _nearest(r: int, k: int) -> Callable[[F32, NDArray[Any]], Score]:
    """Sun et al. 2022, with Euclidean distances in the plane of r axes. It needs training rows."""

    def fit(Z: F32, _: NDArray[Any]) -> Score:
        axes = _axes(Z.astype(np.float64), r)[0]
        known = Z @ axes.T

        def score(Y: F32) -> F64:
            along = Y @ axes.T
            squares = (along**2).sum(1)[:, None] - 2 * along @ known.T + (known**2).sum(1)
            found: F64 = np.sort(squares, axis=1)[:, :k].mean(1)
            return found

        return score

    return fit


def _energy(axes_left: int | None) -> Callable[[F32, NDArray[Any]], Score]:
    """Liu et al. 2020; with axes, the virtual logit of Wang et al. 2022 (ViM)."""

    def fit(Z: F32, labels: NDArray[Any]) -> Score:
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=1 / (0.3 * len(Z)), max_iter=300).fit(Z, labels)
        beside = _gauss(axes_left, 0, 1)(Z, labels) if axes_left else None
        weight = 0.0
        if beside is not None:
            weight = model.decision_function(Z).max(1).mean() / np.sqrt(beside(Z)).mean()

        def score(Y: F32) -> F64:
            logits: F64 = model.decision_function(Y)
            most = logits.max(1)
            energy: F64 = -(most + np.log(np.exp(logits - most[:, None]).sum(1)))
            return energy if beside is None else energy + weight * np.sqrt(beside(Y))

        return score

    return fit


OTHERS = {
    "Mahalanobis along 32 axes": _gauss(32, 1, 0),
    "distance from the plane of 32": _gauss(32, 0, 1),
    "sum of both, equally": _gauss(32, 1, 1),
    "by class (Lee)": _by_class(32, relative=False),
    "relative (Ren)": _by_class(32, relative=True),
    "5 nearest rows (Sun)": _nearest(32, 5),
    "energy (Liu)": _energy(None),
    "virtual logit (Wang)": _energy(64),
}


def _parts(patients: NDArray[Any], seed: int) -> NDArray[np.int64]:
    known, number = np.unique(patients, return_inverse=True)
    shuffled = np.random.default_rng(seed).permutation(len(known)) % FOLDS
    part: NDArray[np.int64] = shuffled[number]
    return part


def _own(Z: F32, labels: NDArray[Any], patients: NDArray[Any]) -> tuple[Score, float]:
    model = fit_ood(Z, patients, refusal_rate=RATE)
    return model.scores, model.threshold


def _other(
    fit: Callable[[F32, NDArray[Any]], Score],
) -> Callable[[F32, NDArray[Any], NDArray[Any]], tuple[Score, float]]:
    """The same rule for the threshold, with another score."""

    def fitted(Z: F32, labels: NDArray[Any], patients: NDArray[Any]) -> tuple[Score, float]:
        part = _parts(patients, 1)
        unseen = np.empty(len(Z))
        for number in range(FOLDS):
            out = part == number
            unseen[out] = fit(Z[~out], labels[~out])(Z[out])
        rank = int(np.ceil((len(Z) + 1) * (1 - RATE) - 1e-9))
        return fit(Z, labels), float(np.sort(unseen)[min(rank, len(Z)) - 1])

    return fitted


# --- the measurement -----------------------------------------------------------------------------


def _auroc(known: F64, strangers: F64) -> float:
    order = np.searchsorted(np.sort(known), strangers, "left")
    ties = np.searchsorted(np.sort(known), strangers, "right")
    return float((order + ties).mean() / 2 / len(known))


def _interval(refused: NDArray[np.bool_], patients: NDArray[Any]) -> tuple[float, float]:
    """95 % of bootstrap draws of patients; Wilson's, counting patients, of none and of all."""
    _, number = np.unique(patients, return_inverse=True)
    counts = np.bincount(number).astype(float)
    hits = np.bincount(number, refused)
    if hits.sum() in (0, counts.sum()):
        return wilson(len(counts) if hits.any() else 0, len(counts)) or (0.0, 1.0)
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(counts), (DRAWS, len(counts)))
    low, high = np.quantile(hits[drawn].sum(1) / counts[drawn].sum(1), [0.025, 0.975])
    return float(low), float(high)


def measure(
    X: F32,
    labels: NDArray[Any],
    patients: NDArray[Any],
    some: NDArray[np.int64],
    altered: dict[str, F32],
    strangers: dict[str, F32],
    fit: Callable[[F32, NDArray[Any], NDArray[Any]], tuple[Score, float]],
) -> dict[str, dict[str, Any]]:
    """Refuse held-out rows, what became of them, and strangers; five parts by patient.

    Parameters
    ----------
    X : float32 (n, d)
        Features of chest X-rays.
    labels, patients : (n,)
        Of each.
    some : int64 (s,)
        Rows that were altered.
    altered : dict of str to float32 (s, d)
        Features of those pictures, altered.
    strangers : dict of str to float32 (m, d)
        Features of other pictures.
    fit : callable
        Takes standardised features, labels and patients; returns a score and its threshold.

    Returns
    -------
    dict of str to dict
        For each kind ``n``, ``refused`` (share), ``auroc`` against held-out chest X-rays (mean
        over parts), and for rows of patients the flags ``rows``.
    """
    part = _parts(patients, 0)
    flags: dict[str, Any] = {
        "held-out chest X-rays": np.zeros(len(X), np.bool_),
        **{name: np.zeros(len(some), np.bool_) for name in altered},
    }
    shares: dict[str, list[float]] = {name: [] for name in strangers}
    aurocs: dict[str, list[float]] = {}
    for number in range(FOLDS):
        out = part == number
        mean, scale = X[~out].mean(0), X[~out].std(0)
        scale[scale == 0] = 1.0

        def standard(rows: F32, mean: F32 = mean, scale: F32 = scale) -> F32:
            return (rows - mean) / scale

        score, limit = fit(standard(X[~out]), labels[~out], patients[~out])
        known = score(standard(X[out]))
        flags["held-out chest X-rays"][out] = known > limit
        for name, rows in altered.items():
            found = score(standard(rows[out[some]]))
            flags[name][out[some]] = found > limit
            aurocs.setdefault(name, []).append(_auroc(known, found))
        for name, rows in strangers.items():
            found = score(standard(rows))
            shares[name].append(float((found > limit).mean()))
            aurocs.setdefault(name, []).append(_auroc(known, found))
    result: dict[str, dict[str, Any]] = {
        name: {"n": len(rows), "refused": float(rows.mean()), "rows": rows}
        for name, rows in flags.items()
    }
    for name, found_shares in shares.items():
        result[name] = {"n": len(strangers[name]), "refused": float(np.mean(found_shares))}
    for name, values in aurocs.items():
        result[name]["auroc"] = float(np.mean(values))
    return result


def _read_chest(folder: Path | None) -> tuple[F32 | None, NDArray[Any], NDArray[Any], list[Path]]:
    if folder is None:
        container = engine.open_container(EMBEDDED)
        X, y = container.arrays()
        return np.asarray(X, np.float32), np.asarray(y), np.asarray(container.groups), []
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    files = [folder / row["file"] for row in rows]
    labels, patients = (np.array([row[key] for row in rows]) for key in ("label", "patient"))
    return None, labels, patients, files


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the tables."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--chest", type=Path, help="folder with labels.csv and the images")
    options.add_argument("--strangers", type=Path, nargs="*", default=[], help="a folder per kind")
    options.add_argument("--altered", type=int, default=150, metavar="N", help="pictures to alter")
    options.add_argument("--compare", action="store_true", help="also other scores")
    arguments = options.parse_args(argv)
    extractor = Extractor()
    X, labels, patients, files = _read_chest(arguments.chest)
    if X is None:
        X, n_failed = extractor.features(files)
        if n_failed:
            raise SystemExit(f"{n_failed} chest X-rays cannot be read")
    some = np.sort(np.random.default_rng(0).permutation(len(files))[: arguments.altered])
    chosen = [files[row] for row in some.tolist()]
    altered = {name: extractor.altered(chosen, name) for name in ALTERED} if chosen else {}
    strangers: dict[str, F32] = {}
    for folder in arguments.strangers:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in KINDS)
        rows, n_failed = extractor.features(paths)
        if n_failed:
            print(f"{folder.name}: {n_failed} of {len(paths)} were refused before any feature")
        if len(rows):
            strangers[folder.name] = rows

    start = time.perf_counter()
    model = fit_ood((X - X.mean(0)) / X.std(0), patients, refusal_rate=RATE)
    seconds = time.perf_counter() - start
    print(
        f"{len(X)} rows of {X.shape[1]}: fitted in {seconds:.2f} s; {model.summary()}\n", flush=True
    )
    own = measure(X, labels, patients, some, altered, strangers, _own)
    print("| pictures | n | refused | 95 % interval | AUROC |\n|---|---|---|---|---|")
    for name, found in own.items():
        if "rows" in found:
            whose = patients if found["n"] == len(X) else patients[some]
            low, high = _interval(found["rows"], whose)
        else:
            low, high = wilson(round(found["refused"] * found["n"]), found["n"]) or (0.0, 1.0)
        auroc = f"{found['auroc']:.3f}" if "auroc" in found else ""
        print(
            f"| {name} | {found['n']} | {100 * found['refused']:.1f} % | "
            f"{100 * low:.1f} to {100 * high:.1f} % | {auroc} |"
        )
    if arguments.compare:
        names = list(own)
        print("\n| score | " + " | ".join(names) + " |\n|---" * (len(names) > 0) + "|---" * len(names) + "|")  # fmt: skip  # noqa: E501
        for name, fit in {"this one": _own, **{k: _other(f) for k, f in OTHERS.items()}}.items():
            result = measure(X, labels, patients, some, altered, strangers, fit)
            print(f"| {name} | " + " | ".join(f"{100 * result[k]['refused']:.1f}" for k in names) + " |", flush=True)  # fmt: skip  # noqa: E501
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
