"""Descriptors in files: `<domain>/<split>.npy`, float32 (N, D), rows in the order of the info file."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.errors import DataError
from benchmarks.offline import unit

_BLOCK = 65_536  # rows looked at at a time


def read_vectors(folder: Path, domain: str, split: str, count: int) -> NDArray[np.float32]:
    """float32 (count, D) of unit norm; zeros stay zeros. Raises DataError, naming the file."""
    file = folder / domain / f"{split}.npy"
    try:
        rows = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{file} does not exist") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{file} is not a NumPy array: {error}") from error
    if not isinstance(rows, np.ndarray) or rows.dtype != np.float32 or rows.ndim != 2 or not rows.shape[1]:
        found = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else "an archive of arrays"
        raise DataError(f"{file} holds {found}, not float32 (N, D)")
    if len(rows) != count:
        raise DataError(f"{file} has {len(rows):,} rows, but {domain}/{split}.json has {count:,}")
    for start in range(0, count, _BLOCK):
        bad = ~np.isfinite(rows[start : start + _BLOCK]).all(axis=1)
        if bad.any():
            raise DataError(f"{file} holds NaN or infinity, first in row {start + int(bad.argmax()):,}")
    return unit(rows)
