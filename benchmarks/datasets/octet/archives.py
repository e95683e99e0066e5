"""Readers of `.tgz` (npm) and `.deb` (Debian) packages, in one pass each."""

import re
import shutil
import subprocess
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO, cast

from benchmarks.datasets.octet.sources import Source
from benchmarks.errors import DataError, SourceUnavailable


def read_archive(path: Path, source: Source) -> dict[str, bytes]:
    """Read the regular files that match `source.wanted`, by member name; links are not followed.

    Raises SourceUnavailable if a tool is missing, DataError if the package cannot be read.
    """
    if source.registry == "npm":
        with path.open("rb") as package:
            return _read_tar(package, source)
    if shutil.which("dpkg-deb") is None:
        raise SourceUnavailable(f"{source.name}: dpkg-deb is not installed")
    command = ["dpkg-deb", "--fsys-tarfile", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        stream = cast("IO[bytes]", process.stdout)
        members = _read_tar(stream, source)
        stream.read()  # the padding after the end mark: dpkg-deb fails if it is not read
    if process.returncode:
        raise DataError(f"{source.name}: dpkg-deb cannot read {path.name} (exit status {process.returncode})")
    return members


def _read_tar(stream: IO[bytes], source: Source) -> dict[str, bytes]:
    wanted = re.compile(source.wanted)
    members: dict[str, bytes] = {}
    try:
        # "r|*": the output of dpkg-deb is not seekable.
        with tarfile.open(fileobj=stream, mode="r|*") as tar:
            for member in tar:
                # Debian's names start with "./". No file is written under a member's name.
                name = str(PurePosixPath(member.name))
                content = tar.extractfile(member) if member.isfile() and wanted.fullmatch(name) else None
                if content is not None:
                    members[name] = content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{source.name}: the archive cannot be read: {error}") from error
    if not members:
        raise DataError(f"{source.name}: no member matches {source.wanted!r}")
    return members
