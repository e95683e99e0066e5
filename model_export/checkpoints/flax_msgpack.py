"""Flax's msgpack checkpoints as flat trees of arrays, without Flax.

The format is msgpack with extension types 1 (an array: shape, dtype name, bytes), 2 (a complex number) and
3 (a NumPy scalar, stored as a 0-d array). An array of more than 2**30 bytes is a map of flat chunks.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from model_export.errors import SourceError

Array = NDArray[Any]
_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"


def read_params(file: Path) -> dict[str, Array]:
    """Return `params` of a train state by path ("Transformer/encoder_norm/scale"). Raises SourceError."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise SourceError(f"{file} cannot be read: {error.strerror}") from error
    if not data:
        raise SourceError(f"{file} is empty")
    # On invalid bytes the decoder raises exceptions of many types, all with the same meaning.
    try:
        state = msgpack.unpackb(data, ext_hook=_extension, strict_map_key=False)
        params = state.get("params") if isinstance(state, dict) else None
        leaves = dict(_leaves(params, "")) if isinstance(params, dict) else {}
    except Exception as error:
        raise SourceError(f"{file} is truncated, damaged, or not a Flax checkpoint (msgpack)") from error
    if not leaves:
        raise SourceError(f"{file} has no `params`: it is not a checkpoint of a Flax train state")
    for path, leaf in leaves.items():
        if not isinstance(leaf, np.ndarray) or not np.issubdtype(leaf.dtype, np.floating):
            raise SourceError(f"{file}: {path} is not an array of floating point numbers")
    return leaves


def _extension(code: int, data: bytes) -> Any:
    if code == _COMPLEX:
        return complex(*msgpack.unpackb(data))
    if code not in (_ARRAY, _SCALAR):
        raise ValueError(f"msgpack extension {code} is not used by Flax")
    shape, dtype, buffer = msgpack.unpackb(data, raw=True)
    return np.frombuffer(buffer, np.dtype(dtype.decode())).reshape(shape)


def _leaves(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if not isinstance(value, dict):
            yield prefix + name, value
        elif _CHUNKED in value:
            yield prefix + name, _joined(value)
        else:
            yield from _leaves(value, f"{prefix}{name}/")


def _joined(chunked: dict[str, Any]) -> Array:
    chunks, shape = (
        [part[str(at)] for at in range(len(part))] for part in (chunked["chunks"], chunked["shape"])
    )
    return np.concatenate(chunks).reshape(shape)
