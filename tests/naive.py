"""Slow, obvious NumPy answers that the kernels are compared with; imports nothing of ours."""

from __future__ import annotations

import numpy as np


def _cells(feature_map, size):
    """The cells of a grid over (c, h, w), row-major; they overlap where sizes do not divide."""
    _, h, w = feature_map.shape
    for row in range(size):
        for column in range(size):
            yield feature_map[
                :,
                int(np.floor(row * h / size)) : int(np.ceil((row + 1) * h / size)),
                int(np.floor(column * w / size)) : int(np.ceil((column + 1) * w / size)),
            ]


def pool(feature_map, pooling):
    """Pool (c, h, w) in float64; returns a vector."""
    wide = feature_map.astype(np.float64)
    with np.errstate(all="ignore"):
        if pooling == "mean":
            return wide.mean(axis=(1, 2))
        if pooling == "max":
            return wide.max(axis=(1, 2))
        if pooling == "std":
            return wide.std(axis=(1, 2))
        if pooling == "gem":
            return np.power(np.power(np.maximum(wide, 1e-6), 3).mean(axis=(1, 2)), 1 / 3)
        if "x" in pooling[-2:]:
            cells = _cells(wide, int(pooling[-1]))
            reduce = np.mean if pooling.startswith("mean") else np.max
            return np.concatenate([reduce(cell, axis=(1, 2)) for cell in cells])
    raise ValueError(pooling)


def softmax(logits):
    shifted = logits - logits.max(axis=1, keepdims=True)
    exp = np.exp(shifted)
    return exp / exp.sum(axis=1, keepdims=True)


def log_softmax(logits):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def sigmoid(logits):
    return np.where(
        logits >= 0, 1 / (1 + np.exp(-np.abs(logits))), 1 - 1 / (1 + np.exp(-np.abs(logits)))
    )


def logits(X, weight, bias):
    return X.astype(np.float64) @ weight.astype(np.float64).T + bias


def mlp_logits(X, hidden_weight, hidden_bias, weight, bias, kept=1.0):
    """With kept (n, h), units are multiplied by it: 0 drops one."""
    hidden = np.maximum(X.astype(np.float64) @ hidden_weight.T + hidden_bias, 0) * kept
    return hidden @ weight.T + bias


def softmax_loss(z, labels, row_weights):
    """Sum over rows of weight x cross entropy."""
    return -(row_weights * log_softmax(z)[np.arange(len(z)), labels]).sum()


def multilabel_loss(z, labels, positive_weights, negative_weights):
    """Sum over assessed labels of weight x binary cross entropy."""
    signed = np.where(labels == 1, -z, z)
    entropy = np.maximum(signed, 0) + np.log1p(np.exp(-np.abs(signed)))
    weights = np.where(labels == 1, positive_weights, negative_weights)
    return (weights * entropy)[labels >= 0].sum()


def auroc(scores, positive):
    """Mann-Whitney: the share of pairs in the right order, ties half; None without pairs."""
    high, low = scores[positive], scores[~positive]
    if len(high) == 0 or len(low) == 0:
        return None
    pairs = np.sign(high[:, None] - low[None, :])
    return float(((pairs + 1) / 2).mean())


def calibration_error(p, positive, weights, bins=10):
    """Weighted mean gap between predicted and observed rate over bins of equally many rows."""
    order = np.argsort(p)
    gaps = [
        abs((weights[rows] * (p[rows] - positive[rows])).sum())
        for rows in np.array_split(order, bins)
    ]
    return float(sum(gaps) / weights.sum())
