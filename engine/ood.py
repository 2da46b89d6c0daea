"""Whether features look like those a head was trained on: the out-of-distribution score."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import MismatchError

__all__ = ["METHOD", "OodModel", "fit_ood"]

METHOD = "pca-mahalanobis"
# Principal components kept at most; fewer for few rows.
_MOST_COMPONENTS = 32


@dataclass(frozen=True, eq=False)
class OodModel:
    """What the training images' features look like, and how far from them is too far.

    Attributes
    ----------
    tensors : dict of str to float32 array
        ``basis`` (r, d) with orthonormal rows, ``spread`` (r,), ``rest`` (1,): standard deviations
        along the components and outside of them.
    threshold : float
        Scores above are refused.
    refusal_rate : float
        Share of unseen images of the training sources that the threshold is meant to refuse.
    about : dict
        How many rows it was fitted to, and what share of them was refused when unseen.
    """

    tensors: dict[str, NDArray[np.float32]] = field(repr=False)
    threshold: float
    refusal_rate: float
    about: dict[str, Any] = field(default_factory=dict)

    def scores(self, standard: NDArray[np.float32]) -> NDArray[np.float64]:
        """Score rows: the larger, the less they look like the training images.

        Parameters
        ----------
        standard : float32 (n, d)
            Standardised features, see `Head.standardise`.

        Returns
        -------
        float64 (n,)
            Not negative; infinite for features that are not finite.
        """
        X = standard.astype(np.float64)
        projected = X @ self.tensors["basis"].astype(np.float64).T
        inside = ((projected / self.tensors["spread"]) ** 2).sum(axis=1)
        outside = np.maximum((X**2).sum(axis=1) - (projected**2).sum(axis=1), 0.0)
        scores = inside / projected.shape[1] + outside / float(self.tensors["rest"][0])
        return np.where(np.isfinite(scores), scores, np.inf)

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
            Damaged, or of a later release.
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
        expected = {"basis": (r, d), "spread": (r,), "rest": (1,)}
        if set(tensors) != set(expected) or not r:
            raise ValueError(f"tensors {', '.join(sorted(tensors))}; expected {sorted(expected)}")
        for name, shape in expected.items():
            tensor = tensors[name]
            if tensor.shape != shape or tensor.dtype != np.float32 or not np.isfinite(tensor).all():
                raise ValueError(f"tensor {name!r} is {tensor.dtype} {tensor.shape}")
        if not (tensors["spread"] > 0).all() or tensors["rest"][0] <= 0:
            raise ValueError("a spread is not positive")
        return cls(dict(tensors), float(value["threshold"]), float(value["refusal_rate"]), about)


def fit_ood(
    X: NDArray[np.float32], groups: NDArray[Any], *, refusal_rate: float = 0.01, seed: int = 0
) -> OodModel:
    """Learn what the training images' features look like.

    Parameters
    ----------
    X : float32 (n, d)
        Standardised features of training images, without augmented views.
    groups : int (n,)
        Patient of each.
    refusal_rate : float
        Share of unseen images of the same sources that may be refused.
    seed : int
        Of the parts that predict the scores of unseen images.

    Returns
    -------
    OodModel
        With the threshold.

    Raises
    ------
    MismatchError
        Fewer than 20 images.
    """
    if len(X) < 20:
        raise MismatchError(f"{len(X)} images are too few to tell strangers by; expected 20")
    order = np.random.default_rng(seed).permutation(np.unique(groups))
    part_of = dict(zip(order.tolist(), (np.arange(len(order)) % 5).tolist(), strict=True))
    part = np.array([part_of[group] for group in groups.tolist()])
    unseen = np.empty(len(X))
    for number in range(5):
        rest = part != number
        if rest.any() and not rest.all():
            unseen[~rest] = OodModel(_components(X[rest]), 0.0, 0.0).scores(X[~rest])
    threshold = float(np.quantile(unseen, 1.0 - refusal_rate, method="higher"))
    about = {"n_rows": len(X), "refused_unseen": float((unseen > threshold).mean())}
    return OodModel(_components(X), threshold, float(refusal_rate), about)


def _components(X: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    wide = X.astype(np.float64)
    _, singular, basis = np.linalg.svd(wide, full_matrices=False)
    r = max(1, min(_MOST_COMPONENTS, len(X) // 4))
    spread = np.maximum(singular[:r] / math.sqrt(len(X)), 1e-6)
    rest = max(float((singular[r:] ** 2).sum() / len(X)), 1e-6)
    return {
        "basis": basis[:r].astype(np.float32),
        "spread": spread.astype(np.float32),
        "rest": np.array([rest], np.float32),
    }
