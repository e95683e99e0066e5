"""Files that are either complete or absent, and files that are only appended to."""

import contextlib
import os
from collections.abc import Iterator
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


def write_atomically(file: Path, content: str | bytes) -> None:
    """Write a file, and its folder, under a temporary name, then rename it. Raises RunError."""
    unfinished = file.with_name(f"{file.name}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
        unfinished.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise RunError(f"{file} cannot be written: {error.strerror}; all other files are kept") from error
