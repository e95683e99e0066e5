"""Files that are either complete or absent, and files that are only appended to."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from benchmarks.errors import RunError


def open_to_append(file: Path) -> TextIO:
    """Open a file of lines for appending. Raises OSError.

    An incomplete last line, left by a killed process, is cut off first.
    """
    if file.is_file():
        os.truncate(file, file.read_bytes().rfind(b"\n") + 1)
    return file.open("a", buffering=1)


def complete_lines(file: Path) -> Iterator[str]:
    """Yield the lines of a file, without an incomplete last one; none if the file does not exist."""
    if file.exists():
        with file.open() as stream:
            yield from (line for line in stream if line.endswith("\n"))


@contextmanager
def atomic_path(file: Path) -> Iterator[Path]:
    """Yield a path to write to. It becomes `file` when the block succeeds and is removed when it fails.

    Creates parent folders. Raises OSError.
    """
    unfinished = file.with_name(f"{file.name}.{os.getpid()}.unfinished")  # other processes may write `file`
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def write_atomically(file: Path, content: str | bytes) -> None:
    """Write a file, and its folder, under a temporary name, then rename it. Raises RunError."""
    try:
        with atomic_path(file) as unfinished:
            unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise RunError(f"{file} cannot be written: {error.strerror}; all other files are kept") from error
