"""Heads: from a backbone's descriptor to 64 dimensions."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LinearHead:
    """embedding = normalise(weight @ normalise(descriptor) + bias)."""

    weight: NDArray[np.float32]  # (dim, D)
    bias: NDArray[np.float32]  # (dim,)


def fit_pca(descriptors: Mapping[str, NDArray[np.float32]], dim: int) -> LinearHead:
    """PCA over unit-norm descriptors (N_domain, D), every domain with the same weight.

    Computed in float64; each axis points so that its largest component is positive, so the same
    descriptors always give the same head.
    """
    units = [_unit(rows.astype(np.float64)) for rows in descriptors.values()]
    mean = np.mean([rows.mean(axis=0) for rows in units], axis=0)  # (D,)
    covariance = np.mean([(rows - mean).T @ (rows - mean) / len(rows) for rows in units], axis=0)  # (D, D)
    _, vectors = np.linalg.eigh(covariance)  # ascending
    axes = vectors[:, ::-1][:, :dim].T  # (dim, D)
    signs = np.sign(axes[np.arange(dim), np.abs(axes).argmax(axis=1)])
    axes = axes * signs[:, None]
    return LinearHead(axes.astype(np.float32), (-axes @ mean).astype(np.float32))


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit
