"""Linear heads: from a backbone's descriptor to the embedding."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.scoring.evaluation import unit

_LEAST = 0.05**2  # share of the first axis' variance; Octet's 64th axis has more
HeadKind = Literal["pca", "whitened", "raw"]
DIM = 64  # of the embeddings in the paper


@dataclass(frozen=True)
class LinearHead:
    """embedding = normalise(weight @ normalise(descriptor) + bias)."""

    weight: NDArray[np.float32]  # (dim, D)
    bias: NDArray[np.float32]  # (dim,)

    def __call__(self, descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map (N, D) to (N, dim) of unit norm."""
        return unit(unit(descriptors) @ self.weight.T + self.bias)


def identity(dim: int) -> LinearHead:
    """Return a head that only normalises the descriptor."""
    return LinearHead(np.eye(dim, dtype=np.float32), np.zeros(dim, dtype=np.float32))


def fit_pca(descriptors: Mapping[str, NDArray[np.float32]], dim: int, whiten: bool = False) -> LinearHead:
    """Fit a PCA to unit-norm descriptors (N_domain, D), with equal weight for every domain.

    With `whiten`, each axis is divided by its standard deviation and multiplied by the first axis'.

    Computed in float64. The sign of each axis makes its largest component positive, so the same descriptors
    always give the same head.
    """
    units = [unit(rows).astype(np.float64) for rows in descriptors.values()]
    mean = np.mean([rows.mean(axis=0) for rows in units], axis=0)  # (D,)
    covariance = np.mean([(rows - mean).T @ (rows - mean) / len(rows) for rows in units], axis=0)  # (D, D)
    variances, vectors = np.linalg.eigh(covariance)  # ascending
    axes = vectors[:, ::-1][:, :dim].T  # (dim, D)
    signs = np.sign(axes[np.arange(dim), np.abs(axes).argmax(axis=1)])
    axes = axes * signs[:, None]
    if whiten:
        # With fewer images than axes, some axes have no variance; scaling must not amplify their noise.
        deviations = np.sqrt(np.maximum(variances[::-1][:dim], _LEAST * variances[-1]))
        axes = axes * (deviations[0] / deviations)[:, None]
    return LinearHead(axes.astype(np.float32), (-axes @ mean).astype(np.float32))
