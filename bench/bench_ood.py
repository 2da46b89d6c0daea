"""Which pictures a head refuses: held-out chest X-rays, altered ones, and strangers.

python -m bench ood [--data FOLDER]

Each of five parts of the patients is judged by a model fitted to the other four, which never sees a
stranger; altered pictures are those of the part that is left out. A round is another division into
parts. Nothing here chooses anything.

Without data, the embedded container is judged (its features are of real X-rays), strangers are
drawn, and nothing is altered, because its pictures are not there. With data, the chest X-rays are
those of ``labels.csv`` (file, label, patient), and each folder in ``strangers`` is one more kind of
stranger, as are the adults of the folder ``covid``.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import engine
from bench.stages import Findings, Missing, Setting, Stage, version_of
from engine.features import feature_vectors
from engine.images import Preprocessing
from engine.metrics import wilson
from engine.ood import fit_ood
from engine.pooling import blocks_from_notes

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Score = Callable[[F32], F64]
EMBEDDED = Path(engine.__file__).parent / "demonstration" / "pneumonia.hilum"
STAGE = Stage(
    "ood",
    "Which pictures a head refuses",
    [
        "At least 98 % of held-out chest X-rays of the training source are kept.",
        "Photographs, text pages, lateral views and other body parts are refused.",
    ],
    order=60,
)
HELD_OUT = "held-out chest X-rays"
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

    def altered(self, files: Sequence[Path], name: str, folder: Path) -> F32:
        """Features of pictures that were altered, in their order."""
        rng = np.random.default_rng(0)
        paths = []
        for number, file in enumerate(files):
            pixels = np.asarray(Image.open(file).convert("L"))
            paths.append(folder / f"{number}.png")
            Image.fromarray(np.ascontiguousarray(ALTERED[name](pixels, rng))).save(paths[-1])
        rows, n_failed = self.features(paths)
        if n_failed:
            raise RuntimeError(f"{n_failed} altered pictures ({name}) cannot be read")
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

NEED_LOGITS = ("energy (Liu)", "virtual logit (Wang)")


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
        part = _parts(patients, 1000)
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


def refuse(
    X: F32,
    labels: NDArray[Any],
    patients: NDArray[Any],
    some: NDArray[np.int64],
    altered: dict[str, F32],
    strangers: dict[str, F32],
    fit: Callable[[F32, NDArray[Any], NDArray[Any]], tuple[Score, float]],
    seed: int = 0,
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
    seed : int
        Of the division into parts.

    Returns
    -------
    dict of str to dict
        For each kind ``n``, ``refused`` (share), ``auroc`` against held-out chest X-rays (mean
        over parts), and for rows of patients the flags ``rows``.
    """
    part = _parts(patients, seed)
    flags: dict[str, Any] = {
        HELD_OUT: np.zeros(len(X), np.bool_),
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
        flags[HELD_OUT][out] = known > limit
        for name, rows in altered.items():
            if not out[some].any():  # few pictures: none of this part was altered
                continue
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


def _pictures(folder: Path, limit: int) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in KINDS)[:limit]


def _strangers(
    findings: Findings, setting: Setting, extractor: Extractor, limit: int
) -> dict[str, F32]:
    """Draw strangers, and look for real ones."""
    from engine.phantoms import STRANGERS, draw_phantom, draw_stranger, write_png

    folder = setting.work / "drawn"
    folder.mkdir()
    n = setting.size(40, 4)
    kinds = {
        f"drawn: {kind}": [
            write_png(draw_stranger(seed, kind), folder / f"{kind}{seed}.png") for seed in range(n)
        ]
        for kind in STRANGERS
    }
    kinds["drawn: frontal chest"] = [
        write_png(draw_phantom(seed), folder / f"chest{seed}.png") for seed in range(n)
    ]
    real = []
    if setting.data is not None:
        if (setting.data / "strangers").is_dir():
            real = sorted(path for path in (setting.data / "strangers").iterdir() if path.is_dir())
        if (setting.data / "covid" / "images").is_dir():
            kinds["adults, other hospitals"] = _pictures(setting.data / "covid", limit)
    for place in real:
        kinds[place.name] = _pictures(place, limit)
    if not real:
        findings.missing(
            "photographs, text pages, other modalities",
            "no folder strangers in that of --data, with a folder for each kind; none is handed on "
            "with the program: engine/models/README.md names where they are from",
        )
    found = {}
    for name, paths in kinds.items():
        rows, n_failed = extractor.features(paths)
        if n_failed:
            findings.note(f"{name}: {n_failed} of {len(paths)} were refused before any feature.")
        if len(rows):
            found[name] = rows
    return found


def _chest(
    findings: Findings, setting: Setting, extractor: Extractor
) -> tuple[F32, NDArray[Any], NDArray[Any], list[Path]]:
    """Features, labels and patients of the X-rays to judge; their files if they are there."""
    if setting.data is None:
        container = engine.open_container(EMBEDDED)
        X, y = container.arrays()
        findings.missing("altered chest X-rays", "their pictures are not there; give --data")
        some = slice(None, None, setting.size(1, 8))
        X, y, groups = (np.asarray(each)[some] for each in (X, y, container.groups))
        return X.astype(np.float32), y, groups, []
    samples = setting.samples(setting.size(100_000, 60))
    if len({sample.label for sample in samples}) < 2:
        raise Missing(
            "the folder of --data has no labels.csv (file, label, patient) with two labels or "
            "more, nor its folder pneumonia; without --data the embedded container is judged"
        )
    files = [sample.path for sample in samples]
    X, n_failed = extractor.features(files)
    if n_failed:
        raise Missing(f"{n_failed} of {len(files)} chest X-rays of --data cannot be read")
    labels, patients = (
        np.array([getattr(sample, name) for sample in samples]) for name in ("label", "patient")
    )
    return X, labels, patients, files


def measure(setting: Setting) -> Findings:
    """Refuse what should be refused and what should not, with our score and with others."""
    findings = Findings(setting)
    extractor = Extractor()
    X, labels, patients, files = _chest(findings, setting, extractor)
    some = np.sort(np.random.default_rng(0).permutation(len(files))[: setting.size(150, 8)])
    chosen = [files[row] for row in some.tolist()]
    place = setting.work / "altered"
    place.mkdir()
    altered = {name: extractor.altered(chosen, name, place) for name in ALTERED} if chosen else {}
    strangers = _strangers(findings, setting, extractor, setting.size(100_000, 8))
    seconds = []
    for _ in range(setting.rounds):
        start = time.perf_counter()
        model = fit_ood((X - X.mean(0)) / X.std(0), patients, refusal_rate=RATE)
        seconds.append(time.perf_counter() - start)
    findings.table(
        "Fitting", ["rows", "features", "s"], [[*X.shape, seconds]], note=model.summary()
    )
    given = (X, labels, patients, some, altered, strangers)
    rounds = [refuse(*given, _own, seed) for seed in range(setting.rounds)]
    findings.figure(
        "held-out chest X-rays kept",
        [100 * (1 - each[HELD_OUT]["refused"]) for each in rounds], asked=">= 98", unit="%",
        note="by patient; a round is another division into five parts",
    )  # fmt: skip
    rows = []
    for name, first in rounds[0].items():
        if "rows" in first:
            whose = patients if name == HELD_OUT else patients[some]
            low, high = _interval(first["rows"], whose)
        else:
            low, high = wilson(round(first["refused"] * first["n"]), first["n"]) or (0.0, 1.0)
        rows.append([
            name, first["n"], [100 * each[name]["refused"] for each in rounds],
            f"{100 * low:.1f} to {100 * high:.1f}",
            [each[name]["auroc"] for each in rounds] if "auroc" in first else None,
        ])  # fmt: skip
    findings.table(
        "Refused", ["pictures", "number", "refused, %", "95 % interval, %", "AUROC"], rows,
        note="The interval is of the first round: patient bootstrap, or Wilson's for strangers and "
        "where none or all are refused. AUROC: against the held-out chest X-rays.",
    )  # fmt: skip
    findings.chart(
        "Refused", {name: [100 * each[name]["refused"] for each in rounds] for name in rounds[0]},
        unit="%", ours=(HELD_OUT,),
    )  # fmt: skip
    others(findings, given, rounds[0])
    return findings


def others(findings: Findings, given: tuple[Any, ...], ours: dict[str, dict[str, Any]]) -> None:
    """Refuse with other scores, at thresholds of the same rule, in the first division."""
    names = list(ours)
    rows = [["this one", *(100 * ours[name]["refused"] for name in names)]]
    version = version_of("scikit-learn")
    for score, fit in OTHERS.items():
        if version is None and score in NEED_LOGITS:
            findings.missing(score, "its logits need scikit-learn: pip install scikit-learn")
            continue
        found = refuse(*given, _other(fit))
        rows.append([score, *(100 * found[name]["refused"] for name in names)])
    if version is not None:
        findings.peer("scikit-learn", version=version, how="logits of the last two scores")
    findings.table(
        "Other scores with the same rule for the threshold: refused, %", ["score", *names], rows,
        note="Of the first round. References are in engine/models/README.md.",
    )  # fmt: skip
