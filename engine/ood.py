"""Whether features look like those a head was trained on: the out-of-distribution score.

The training rows are described by a Gaussian with a few long axes and one common deviation across
all others (probabilistic PCA: Tipping, Bishop 1999, *Mixtures of probabilistic principal component
analysers*, section 2). Its Mahalanobis distance is the score, in units of what unseen training
images usually have. Most of it is the distance from the plane of the long axes: what separated
strangers best, also with few rows, and forgave a shifted picture. The measurements, and the other
scores that were tried, are in ``engine/models/README.md``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import MismatchError

__all__ = ["LEAST_ROWS", "METHOD", "OodModel", "fit_ood"]

METHOD = "probabilistic-pca"
#: Images that are needed.
LEAST_ROWS = 20
# Long axes kept at most; 16, 32 and 64 refused the same. Few rows, and wide ones, get fewer.
_MOST_AXES = 32
# Values of all axes together: a quarter of a megabyte in the file of the head.
_MOST_VALUES = 1 << 16
# Rows looked at, at most.
_MOST_ROWS = 3000
# Rows that a source needs for a limit of its own: the largest of n unseen scores is passed by one
# image in n + 1, here by less than 2 %.
_LEAST_SOURCE = 50
_FOLDS = 5
# Subspace iteration (Halko, Martinsson, Tropp 2011, algorithm 4.4): axes beside those kept, and
# rounds. With ten rounds the same pictures were refused.
_SPARE_AXES = 8
_ROUNDS = 2
_SMALLEST = 1e-6


@dataclass(frozen=True, eq=False)
class OodModel:
    """What the training images' features look like, and how far from them is too far.

    It holds means, deviations and axes over all training images, no row of any.

    Attributes
    ----------
    tensors : dict of str to float32 array
        ``center`` (d,) and ``scale`` (d,): mean and deviation of the training rows; ``basis``
        (r, d): long axes, orthonormal rows; ``spread`` (r,) and ``rest`` (1,): deviations along
        each of them and along any other direction, times what makes 1 the usual score.
    threshold : float
        Scores above are refused.
    refusal_rate : float
        Share of unseen images of the training sources that the threshold is meant to refuse.
    about : dict
        ``n_rows`` and ``n_groups`` it was fitted to; ``population``, the same in words;
        ``stated_rate``: the refusal rate that so many rows can promise; ``refused_unseen`` with
        ``refused_unseen_ci95``: share of images refused by parts that saw neither them nor their
        patients; ``sources``: rows and ``refused_unseen`` of each source that has a limit of its
        own.
    """

    tensors: dict[str, NDArray[np.float32]] = field(repr=False)
    threshold: float
    refusal_rate: float
    about: dict[str, Any] = field(default_factory=dict)

    def scores(self, standard: NDArray[np.float32]) -> NDArray[np.float64]:
        """Score rows: the larger, the less they look like the training images.

        A row has the same score alone and among others.

        Parameters
        ----------
        standard : float32 (n, d)
            Standardised features, see `Head.standardise`.

        Returns
        -------
        float64 (n,)
            Not negative, 1 for a usual image; infinite for features that are not finite.
        """
        basis = self.tensors["basis"].astype(np.float64)
        spread = self.tensors["spread"].astype(np.float64)
        center, scale = self.tensors["center"], self.tensors["scale"]
        rest = float(self.tensors["rest"][0])
        scores = np.empty(len(standard))
        with np.errstate(over="ignore", invalid="ignore"):
            for i, row in enumerate(standard):
                x = (row.astype(np.float64) - center) / scale
                # Not BLAS: its sums hang on the number of threads, and on how many rows there are.
                along = (basis * x).sum(axis=1)
                inside = ((along / spread) ** 2).sum()
                outside = max((x * x).sum() - (along * along).sum(), 0.0) / (rest * rest)
                scores[i] = math.sqrt((inside + outside) / len(x))
        return np.where(np.isfinite(scores), scores, np.inf)

    def explain(self, score: float) -> str:
        """Say what a score means, and what to do about one above the threshold.

        Parameters
        ----------
        score : float
            One of `scores`.

        Returns
        -------
        str
            Two or three sentences.
        """
        # More digits where a score just above the limit would read as equal to it.
        digits = next((n for n in (1, 2, 3) if f"{score:.{n}f}" != f"{self.threshold:.{n}f}"), 6)
        by = f" ({self.about['population']})" if self.about.get("population") else ""
        if math.isfinite(score):
            said = (
                f"its features are {score:.{digits}f} times as far from the training images{by} as "
                f"unseen ones of the same kind usually are; the limit is "
                f"{self.threshold:.{digits}f}"
            )
        else:
            said = f"its features are not finite numbers, those of the training images{by} are"
        if score <= self.threshold:
            return said
        return (
            f"{said}. The head has not learned from pictures like it, and its probabilities would "
            "mean nothing. Check that it is a frontal chest X-ray, upright, whole, not inverted, "
            "and of patients like those of the training; to see the answer all the same, use "
            "--allow out_of_distribution"
        )

    def summary(self) -> str:
        """Say how many images of the training sources it refuses, for a report.

        Returns
        -------
        str
            One sentence; with what it cannot promise.
        """
        rate = float(self.about.get("stated_rate", self.refusal_rate))
        said = f"meant to refuse {100 * rate:.3g} % of unseen images of the training sources"
        if "refused_unseen" in self.about:
            share, (low, high) = self.about["refused_unseen"], self.about["refused_unseen_ci95"]
            said += (
                f"; measured on patients that its parts had not seen: {100 * share:.1f} % "
                f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
            )
        if rate > self.refusal_rate:
            said += (
                f"; {self.about.get('n_rows')} images are too few to promise "
                f"{100 * self.refusal_rate:.3g} %"
            )
        return said

    def to_json(self) -> dict[str, Any]:
        """Return what a head file holds beside the tensors."""
        return {
            "method": METHOD,
            "threshold": self.threshold,
            "refusal_rate": self.refusal_rate,
            "about": self.about,
        }

    @classmethod
    def from_file(
        cls, tensors: Mapping[str, NDArray[Any]], value: Mapping[str, Any], d: int
    ) -> OodModel:
        """Read what a head file holds.

        Parameters
        ----------
        tensors : mapping of str to array
            Without the prefix ``ood.``.
        value : mapping
            As `to_json` gave it.
        d : int
            Features of the head.

        Returns
        -------
        OodModel
            Checked.

        Raises
        ------
        ValueError
            Damaged, or of another release.
        """
        if value.get("method") != METHOD:
            raise ValueError(f"method is {value.get('method')!r}; expected {METHOD!r}")
        numbers = [value.get("threshold"), value.get("refusal_rate")]
        if not all(
            isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x) and x >= 0
            for x in numbers
        ):
            raise ValueError(f"threshold and refusal_rate are {numbers!r}")
        about = value.get("about")
        if not isinstance(about, dict):
            raise ValueError("about is missing")
        basis = tensors.get("basis")
        r = 0 if basis is None or basis.ndim != 2 else len(basis)
        expected = {"basis": (r, d), "center": (d,), "rest": (1,), "scale": (d,), "spread": (r,)}
        if set(tensors) != set(expected) or not r:
            raise ValueError(f"tensors {', '.join(sorted(tensors))}; expected {sorted(expected)}")
        for name, shape in expected.items():
            tensor = tensors[name]
            if tensor.shape != shape or tensor.dtype != np.float32 or not np.isfinite(tensor).all():
                raise ValueError(
                    f"tensor {name!r} is {tensor.dtype} {tensor.shape}; expected finite float32 "
                    f"{shape}"
                )
        for name in ("rest", "scale", "spread"):
            if not (tensors[name] > 0).all():
                raise ValueError(f"tensor {name!r} has values that are not positive")
        return cls(dict(tensors), float(value["threshold"]), float(value["refusal_rate"]), about)


def fit_ood(
    X: NDArray[np.float32],
    groups: NDArray[Any],
    *,
    refusal_rate: float = 0.01,
    seed: int = 0,
    sources: NDArray[Any] | None = None,
) -> OodModel:
    """Learn what the training images' features look like.

    The threshold is the conformal quantile (Vovk, Gammerman, Shafer 2005, section 2.2) of scores
    that images get from parts which saw neither them nor their patients: of n scores the
    ``ceil((n + 1) (1 - refusal_rate))``-th, or the largest of all if there are too few. Then one
    unseen image in n + 1 is refused in expectation, or `refusal_rate` of them, whichever is more;
    in truth a little less, because the whole knows more than its parts.

    Parameters
    ----------
    X : float32 (n, d)
        Standardised features of training images, without augmented views. Of more than 3,000,
        so many are drawn.
    groups : (n,)
        Patient of each.
    refusal_rate : float
        Share of unseen images of the same sources that may be refused, above 0 and below 1.
    seed : int
        Of the parts that predict the scores of unseen images.
    sources : (n,), optional
        Source of each, for example its name. The rate then holds for each source of at least 50
        images, not only for the lot, where a small source of another kind could be refused whole.

    Returns
    -------
    OodModel
        With the threshold; the same bits for a seed, whatever the number of threads.

    Raises
    ------
    MismatchError
        Fewer than 20 images, or all of one patient.
    ValueError
        A rate outside of 0 to 1, or arrays of different lengths.
    """
    if not 0.0 < refusal_rate < 1.0:
        raise ValueError(f"refusal_rate is {refusal_rate!r}; expected above 0 and below 1")
    X, groups = np.asarray(X, np.float32), np.asarray(groups)
    sources = np.zeros(len(X), np.int64) if sources is None else np.asarray(sources)
    if X.ndim != 2 or not len(X) == len(groups) == len(sources):
        raise ValueError(
            f"features {X.shape}, {len(groups)} groups and {len(sources)} sources; expected (n, d) "
            "and n of each"
        )
    if len(X) < LEAST_ROWS:
        raise MismatchError(
            f"{len(X)} images are too few to tell strangers by; expected {LEAST_ROWS}"
        )
    rng = np.random.default_rng(seed)
    if len(X) > _MOST_ROWS:
        some = np.sort(rng.permutation(len(X))[:_MOST_ROWS])
        X, groups, sources = X[some], groups[some], sources[some]
    patients, patient = np.unique(groups, return_inverse=True)
    if len(patients) < 2:
        raise MismatchError(
            f"all {len(X)} images are of one patient; expected at least two, to see what unseen "
            "patients look like"
        )
    part = (rng.permutation(len(patients)) % min(_FOLDS, len(patients)))[patient]
    unseen = np.empty(len(X))
    for number in range(int(part.max()) + 1):
        out = part == number
        unseen[out] = _scores(X[out], _fitted(X[~out], 1.0))
    usual = max(float(np.median(unseen)), _SMALLEST)
    unseen /= usual
    threshold = _limit(unseen, sources, refusal_rate)
    refused = np.zeros(len(X), np.bool_)
    for number in range(int(part.max()) + 1):
        out = part == number
        refused[out] = unseen[out] > _limit(unseen[~out], sources[~out], refusal_rate)
    share = float(refused.mean())
    own = {name: len(rows) for name, rows in _own_limits(sources).items()}
    about: dict[str, Any] = {
        "n_rows": len(X),
        "n_groups": len(patients),
        "population": f"{len(X)} images of {len(patients)} patients",
        "stated_rate": max(refusal_rate, 1.0 / (min(own.values(), default=len(X)) + 1)),
        "refused_unseen": share,
        "refused_unseen_ci95": list(_wilson(share, len(patients))),
    }
    if own:
        about["sources"] = {
            name: {"n_rows": len(rows), "refused_unseen": float(refused[rows].mean())}
            for name, rows in _own_limits(sources).items()
        }
    return OodModel(_fitted(X, usual), threshold, float(refusal_rate), about)


def _own_limits(sources: NDArray[Any]) -> dict[str, NDArray[np.int64]]:
    """Rows of each source that has a limit of its own; none if there is one source only."""
    names, number, counts = np.unique(sources, return_inverse=True, return_counts=True)
    if len(names) < 2:
        return {}
    return {
        str(name): np.flatnonzero(number == index)
        for index, name in enumerate(names.tolist())
        if counts[index] >= _LEAST_SOURCE
    }


def _limit(unseen: NDArray[np.float64], sources: NDArray[Any], rate: float) -> float:
    """Score that the rate's share of new images passes, in the lot and in each large source."""
    limits = []
    for scores in (unseen, *(unseen[rows] for rows in _own_limits(sources).values())):
        n = len(scores)
        # (n + 1)(1 - rate) may be whole, and a rounding error must not lift it to the next.
        rank = math.ceil((n + 1) * (1.0 - rate) - 1e-9)
        limits.append(float(np.sort(scores)[min(max(rank, 1), n) - 1]))
    return max(limits)


def _wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927), counting patients, of whom images are no copies."""
    z = 1.959963984540054
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _standard(
    X: NDArray[np.float32], center: NDArray[np.float32], scale: NDArray[np.float32]
) -> NDArray[np.float32]:
    from engine.kernels import heads as kernels

    standard = np.empty_like(X)
    kernels.standardise(X, center, scale, standard)
    return standard


def _lengths(standard: NDArray[np.float32]) -> NDArray[np.float64]:
    """Square of each row's length."""
    return np.array([(row * row).sum() for row in map(np.float64, standard)])


def _scores(
    X: NDArray[np.float32], tensors: Mapping[str, NDArray[np.float32]]
) -> NDArray[np.float64]:
    """`OodModel.scores` of many rows, several times as fast; the last digits differ."""
    from engine.kernels import ood as kernels

    standard = _standard(X, tensors["center"], tensors["scale"])
    basis = np.ascontiguousarray(tensors["basis"].T, np.float64)
    along = np.empty((len(X), basis.shape[1]))
    kernels.multiply(standard, basis, along)
    outside = np.maximum(_lengths(standard) - (along**2).sum(axis=1), 0.0)
    inside = ((along / tensors["spread"]) ** 2).sum(axis=1)
    scores: NDArray[np.float64] = np.sqrt(
        (inside + outside / float(tensors["rest"][0]) ** 2) / X.shape[1]
    )
    return scores


def _fitted(X: NDArray[np.float32], usual: float) -> dict[str, NDArray[np.float32]]:
    """Describe rows by a Gaussian; scores are in units of `usual`."""
    from engine.kernels import heads as moments_of
    from engine.kernels import ood as kernels

    X = np.ascontiguousarray(X)
    n, d = X.shape
    mean, deviation = np.zeros((2, d))
    moments_of.add_moments(X, X[0], mean, deviation)
    moments_of.moments(X[0], n, mean, deviation)
    center = mean.astype(np.float32)
    scale = np.where(deviation > _SMALLEST, deviation, 1.0).astype(np.float32)
    standard = _standard(X, center, scale)

    r = max(1, min(_MOST_AXES, n // 4, _MOST_VALUES // d, d - 1))
    width = min(r + _SPARE_AXES, n, d)
    axes, along = np.empty((d, width)), np.empty((n, width))
    # The first axes are sums of rows with random signs and sizes; always the same ones.
    along[:] = np.random.default_rng(0).normal(size=along.shape)
    for _ in range(_ROUNDS):
        kernels.multiply_transposed(standard, along, axes)
        axes = _orthonormal(axes)
        kernels.multiply(standard, axes, along)
    covariance = np.empty((width, width))
    for c in range(width):
        covariance[c] = (along * along[:, c : c + 1]).sum(axis=0) / n
    # Too small for LAPACK to share among threads: a test compares the bits.
    variances, turns = np.linalg.eigh(covariance)
    variances, turns = variances[::-1][:r], turns[:, ::-1][:, :r]
    basis = np.zeros((r, d))
    for c in range(width):
        basis += turns[c][:, np.newaxis] * axes[:, c]

    # What is left is shared by all other directions; no axis is taken for shorter than that.
    left = float(_lengths(standard).sum()) / n - float(variances.sum())
    rest = max(math.sqrt(max(left, 0.0) / max(d - r, 1)), _SMALLEST)
    spread = np.sqrt(np.maximum(variances, rest * rest))
    return {
        "basis": basis.astype(np.float32),
        "center": center,
        "rest": np.array([rest * usual], np.float32),
        "scale": scale,
        "spread": (spread * usual).astype(np.float32),
    }


def _orthonormal(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Make columns orthonormal, in their order; those that hang on earlier ones become zero.

    Gram-Schmidt, twice (Giraud, Langou, Rozloznik 2005), without BLAS.
    """
    rows = np.array(columns.T, order="C")
    for c in range(len(rows)):
        row = rows[c]
        length = math.sqrt(float((row * row).sum()))
        for _ in range(2):
            shares = (rows[:c] * row).sum(axis=1)
            row -= (shares[:, np.newaxis] * rows[:c]).sum(axis=0)
        left = math.sqrt(float((row * row).sum()))
        row[:] = row / left if left > 1e-10 * length else 0.0
    return np.ascontiguousarray(rows.T)
