"""Reading the two package formats: plain files of a `.tgz` (npm) or a `.deb` (Debian), each in one pass."""

import re
import shutil
import subprocess
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO, cast

from benchmarks.datasets.octet.sources import Registry, Source
from benchmarks.errors import DataError, SourceUnavailable


def read_archive(path: Path, source: Source) -> dict[str, bytes]:
    """Content by member name of the plain files that `source.wanted` matches; links are never followed."""
    if source.registry is Registry.NPM:
        with path.open("rb") as package:
            return _read_tar(package, source)
    if shutil.which("dpkg-deb") is None:
        raise SourceUnavailable(f"{source.name}: dpkg-deb is not installed")
    command = ["dpkg-deb", "--fsys-tarfile", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        stream = cast("IO[bytes]", process.stdout)
        members = _read_tar(stream, source)
        stream.read()  # the padding behind the end mark: unread, it would make dpkg-deb fail
    if process.returncode:
        raise DataError(f"{source.name}: dpkg-deb cannot read {path.name} (exit status {process.returncode})")
    return members


def _read_tar(stream: IO[bytes], source: Source) -> dict[str, bytes]:
    wanted = re.compile(source.wanted)
    members: dict[str, bytes] = {}
    try:
        # "r|*": what dpkg-deb writes cannot be sought in.
        with tarfile.open(fileobj=stream, mode="r|*") as tar:
            for member in tar:
                # Debian's names start with "./"; nothing is ever written under a member's name.
                name = str(PurePosixPath(member.name))
                content = tar.extractfile(member) if member.isfile() and wanted.fullmatch(name) else None
                if content is not None:
                    members[name] = content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{source.name}: the archive cannot be read: {error}") from error
    if not members:
        raise DataError(f"{source.name}: no member matches {source.wanted!r}")
    return members
