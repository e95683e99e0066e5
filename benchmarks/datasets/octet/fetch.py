"""Downloads of packages by name, version and hash, from where npm and apt-get are configured to look."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from benchmarks.datasets.octet.apt import Apt
from benchmarks.datasets.octet.sources import Source
from benchmarks.datasets.octet.tools import OnBytes, only_file, run_command
from benchmarks.errors import SourceUnavailable


def fetch_all(
    sources: Iterable[Source], downloads: Path, *, console: Console
) -> tuple[dict[str, Path], dict[str, str]]:
    """Fetch packages: (file by source name, reason by name of each unavailable source)."""
    sources = list(sources)
    downloads.mkdir(parents=True, exist_ok=True)
    for leftover in downloads.glob(".partial-*"):  # left by a killed process
        shutil.rmtree(leftover)
    files: dict[str, Path] = {}
    missing: dict[str, str] = {}
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with (
        tempfile.TemporaryDirectory(prefix=".partial-apt-", dir=downloads) as apt_folder,
        Progress(TextColumn("{task.description}"), *columns, console=console) as progress,
    ):
        apt = Apt(Path(apt_folder))
        task = progress.add_task("", total=sum(source.size_bytes for source in sources))
        done_bytes = 0
        for number, source in enumerate(sources, 1):
            progress.update(task, description=f"source {number}/{len(sources)} {source.name}")

            def on_bytes(n_bytes: int, before: int = done_bytes, most: int = source.size_bytes) -> None:
                progress.update(task, completed=before + min(n_bytes, most))

            try:
                files[source.name] = fetch(source, downloads, apt, on_bytes)
            except SourceUnavailable as error:
                missing[source.name] = str(error)
            done_bytes += source.size_bytes
            progress.update(task, completed=done_bytes)
    return files, missing


def fetch(source: Source, downloads: Path, apt: Apt, on_bytes: OnBytes) -> Path:
    """Return the verified file, downloaded if necessary. Raises SourceUnavailable."""
    target = downloads / source.file_name
    if target.is_file() and sha256_of(target) == source.sha256:
        return target
    # In the same file system, so that the verified file can be renamed to its final name.
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=downloads) as name:
        folder = Path(name)
        try:
            if source.registry == "npm":
                fetched = _npm_pack(source, folder, on_bytes)
            else:
                fetched = apt.download(source.name, source.version, folder, on_bytes)
        except SourceUnavailable as error:
            raise SourceUnavailable(f"{source.name} {source.version}: {error}") from error
        sha256 = sha256_of(fetched)
        if sha256 != source.sha256:
            raise SourceUnavailable(
                f"{source.name} {source.version}: sha256 is {sha256}, expected {source.sha256}"
            )
        fetched.replace(target)
    return target


def sha256_of(path: Path) -> str:
    """Hash of a file in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _npm_pack(source: Source, folder: Path, on_bytes: OnBytes) -> Path:
    # A private cache: its growth is the progress, and the user's cache does not grow by 150 MB.
    options = ["--cache", str(folder / "cache"), "--fetch-retries", "1", "--fetch-retry-mintimeout", "1000"]
    run_command(["npm", "pack", f"{source.name}@{source.version}", *options], folder, on_bytes)
    return only_file(folder, "*.tgz")
