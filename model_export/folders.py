"""Writing whole: a folder or file has its name only once everything is in it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model_export.errors import SourceError, WriteError


@contextmanager
def whole_model_folder(out: Path) -> Iterator[Path]:
    """A folder of another name that becomes `out` when the block ends well, and goes when it does not.

    Raises SourceError where `out` exists and is no model folder, WriteError where writing fails.
    """
    if out.exists() and not (out / "manifest.json").exists():
        raise SourceError(f"{out} exists and is not a model folder: it is left alone")
    unfinished = out.with_name(out.name + ".unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        yield unfinished
        _replace(out, unfinished)
    except OSError as error:
        raise WriteError(f"{out} could not be written: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def whole_file(out: Path) -> Iterator[Path]:
    """The same for one file; folders above it are made. Raises WriteError."""
    unfinished = out.with_name(f"{out.name}.{os.getpid()}.unfinished")  # two processes may write the same
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        unfinished.replace(out)
    except OSError as error:
        raise WriteError(f"{out} could not be written: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _replace(out: Path, finished: Path) -> None:
    """The old model goes when the new one is in its place, and not before."""
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    finished.rename(out)
    shutil.rmtree(old, ignore_errors=True)
