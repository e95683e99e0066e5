"""Atomic writes: a model folder or file gets its name only after everything in it is written."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.files import atomic_path
from model_export.errors import SourceError, WriteError


@contextmanager
def atomic_model_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder. It replaces `out` when the block succeeds and is removed when it fails.

    Raises SourceError if `out` exists and is not a model folder, WriteError if writing fails.
    """
    if out.exists() and not (out / "manifest.json").exists():
        raise SourceError(f"{out} exists and is not a model folder; it is left unchanged")
    unfinished, old = (out.with_name(out.name + suffix) for suffix in (".unfinished", ".old"))
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        yield unfinished
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.rename(old)  # deleted only after the new model has its name
        unfinished.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise WriteError(f"{out} could not be written: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def atomic_file(file: Path) -> Iterator[Path]:
    """Yield a path to write to, as `atomic_path` does. Raises WriteError."""
    try:
        with atomic_path(file) as unfinished:
            yield unfinished
    except OSError as error:
        raise WriteError(f"{file} could not be written: {error}") from error


def save_array(file: Path, rows: NDArray[np.float32]) -> None:
    """Write a .npy file atomically. Raises WriteError."""
    with atomic_file(file) as unfinished, unfinished.open("wb") as stream:
        np.save(stream, rows)
