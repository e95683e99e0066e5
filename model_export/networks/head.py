"""Heads: from a backbone's descriptor to 64 dimensions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.scoring.evaluation import unit

_LEAST = 0.05**2  # of the first axis' variance; Octet's 64th has more
HeadKind = Literal["pca", "whitened", "raw"]
DIM = 64  # of the paper's embeddings


@dataclass(frozen=True)
class LinearHead:
    """embedding = normalise(weight @ normalise(descriptor) + bias)."""

    weight: NDArray[np.float32]  # (dim, D)
    bias: NDArray[np.float32]  # (dim,)

    def __call__(self, descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, D) -> (N, dim), unit norm."""
        return unit(unit(descriptors) @ self.weight.T + self.bias)


def identity(dim: int) -> LinearHead:
    """The descriptor itself, normalised."""
    return LinearHead(np.eye(dim, dtype=np.float32), np.zeros(dim, dtype=np.float32))


def fit_pca(descriptors: Mapping[str, NDArray[np.float32]], dim: int, whiten: bool = False) -> LinearHead:
    """PCA over unit-norm descriptors (N_domain, D), every domain with the same weight.

    With `whiten`, every axis is divided by its standard deviation (and all are scaled by the first one's).

    Computed in float64; each axis points so that its largest component is positive, so the same
    descriptors always give the same head.
    """
    units = [unit(rows).astype(np.float64) for rows in descriptors.values()]
    mean = np.mean([rows.mean(axis=0) for rows in units], axis=0)  # (D,)
    covariance = np.mean([(rows - mean).T @ (rows - mean) / len(rows) for rows in units], axis=0)  # (D, D)
    variances, vectors = np.linalg.eigh(covariance)  # ascending
    axes = vectors[:, ::-1][:, :dim].T  # (dim, D)
    signs = np.sign(axes[np.arange(dim), np.abs(axes).argmax(axis=1)])
    axes = axes * signs[:, None]
    if whiten:
        # Fewer pictures than axes leave axes of no variance: scaled up, they would drown all others.
        deviations = np.sqrt(np.maximum(variances[::-1][:dim], _LEAST * variances[-1]))
        axes = axes * (deviations[0] / deviations)[:, None]
    return LinearHead(axes.astype(np.float32), (-axes @ mean).astype(np.float32))
