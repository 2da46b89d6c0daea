"""Exact rewritings of a convolution: batch normalisation and equal input channels folded away.

NumPy only, in float64, so that the same functions serve the build script and a test that needs
neither PyTorch nor OpenVINO.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PIXEL_OFFSET", "PIXEL_SCALE", "fold_batch_norm", "fold_stem"]

Float = NDArray[np.float64]

PIXEL_OFFSET = 127.0
"""EfficientNet-Lite was trained on ``(pixel - 127) / 128``, equal for red, green and blue
(``MEAN_RGB`` and ``STDDEV_RGB`` of tensorflow/tpu, efficientnet/lite)."""

PIXEL_SCALE = 128.0
"""Divisor of the input normalisation; a power of two, so folding it into weights is exact."""


def fold_batch_norm(
    weight: NDArray[Any],
    gamma: NDArray[Any],
    beta: NDArray[Any],
    mean: NDArray[Any],
    variance: NDArray[Any],
    epsilon: float,
) -> tuple[Float, Float]:
    """Fold an inference-time batch normalisation into the convolution before it.

    ``gamma * (conv(x) - mean) / sqrt(variance + epsilon) + beta`` is again a convolution
    (Ioffe and Szegedy, arXiv:1502.03167, section 3.1).

    Parameters
    ----------
    weight : ndarray, shape (out, in, kh, kw)
        Kernels of a convolution without bias.
    gamma, beta, mean, variance : ndarray, shape (out,)
        Scale, shift and running statistics.
    epsilon : float
        Added to the variance.

    Returns
    -------
    weight : ndarray of float64, shape (out, in, kh, kw)
    bias : ndarray of float64, shape (out,)
    """
    factor = np.asarray(gamma, np.float64) / np.sqrt(np.asarray(variance, np.float64) + epsilon)
    bias = np.asarray(beta, np.float64) - np.asarray(mean, np.float64) * factor
    return np.asarray(weight, np.float64) * factor[:, None, None, None], bias


def fold_stem(weight: NDArray[Any], *, scale: float = PIXEL_SCALE) -> Float:
    """Fold the first convolution to one input channel and take the pixel scale into it.

    A grayscale picture gives all input channels the same values and one mean and one divisor
    serve all of them, so the sum of the kernels over the input channels gives the same result.
    That includes the border: padding is zero after normalisation in every channel, and stays
    zero because only the divisor, not the offset, moves into the kernels.

    Parameters
    ----------
    weight : ndarray, shape (out, channels, kh, kw)
        Kernels for the normalised picture ``(pixel - offset) / scale``.
    scale : float, default 128
        Divisor of the normalisation.

    Returns
    -------
    ndarray of float64, shape (out, 1, kh, kw)
        Kernels for ``pixel - offset``.
    """
    folded: Float = np.asarray(weight, np.float64).sum(axis=1, keepdims=True) / scale
    return folded
