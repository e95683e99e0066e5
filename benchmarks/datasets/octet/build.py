"""Octet's build: fetch missing packages, build missing domains, report domains that are left out."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from rich.console import Console

from benchmarks.datasets.octet.archives import read_archive
from benchmarks.datasets.octet.card import OctetSummary, load_built, save, summarise
from benchmarks.datasets.octet.domain_writer import build_domain
from benchmarks.datasets.octet.domains import DOMAINS, Domain
from benchmarks.datasets.octet.fetch import fetch_all
from benchmarks.datasets.octet.sources import SOURCES, Source
from benchmarks.errors import SourceUnavailable
from benchmarks.progress import progress_bar


def build_octet(
    out: Path, domains: Sequence[Domain] = DOMAINS, sources: Sequence[Source] = SOURCES, *, console: Console
) -> OctetSummary:
    """Build the domains that `out` lacks. Domains with unavailable sources are left out and reported."""
    by_name = {source.name: source for source in sources}
    built = load_built(out, domains, {name: source.sha256 for name, source in by_name.items()})
    pending = [domain for domain in domains if domain.name not in built]
    if not pending:
        return summarise(built, {})
    needed = {name: by_name[name] for domain in pending for name in domain.sources}
    files, missing = fetch_all(needed.values(), (out / "downloads").resolve(), console=console)
    left_out = {domain.name: "the build was interrupted before this domain" for domain in pending}
    cache = _ArchiveCache(out, needed, files, missing)
    with progress_bar(console) as progress:
        for number, domain in enumerate(pending):
            task = progress.add_task(domain.name, total=None)
            try:
                archives = cache.read(domain.sources)
            except SourceUnavailable as error:
                left_out[domain.name] = str(error)
                progress.remove_task(task)
                console.print(f"left out: {domain.name} ({error})", style="yellow", markup=False)
            else:
                images = domain.extract(archives)
                built[domain.name] = build_domain(out, domain, images, partial(progress.update, task))
                del left_out[domain.name]
            save(out, built, left_out, domains, sources)
            cache.keep_only({name for later in pending[number + 1 :] for name in later.sources})
    return summarise(built, left_out)


class _ArchiveCache:
    """Archives that are read once and stay in memory while a later domain needs them."""

    def __init__(
        self, out: Path, sources: dict[str, Source], files: dict[str, Path], missing: dict[str, str]
    ) -> None:
        self._out, self._sources, self._files, self._missing = out, sources, files, missing
        self._archives: dict[str, dict[str, bytes]] = {}

    def read(self, names: Sequence[str]) -> dict[str, dict[str, bytes]]:
        """Members by source. Raises SourceUnavailable if one of the sources is missing."""
        for name in names:
            if name in self._missing:
                raise SourceUnavailable(self._missing[name])
        for name in names:
            if name not in self._archives:
                source = self._sources[name]
                self._archives[name] = read_archive(self._files[name], source)
                self._copy_licences(source)
        return {name: self._archives[name] for name in names}

    def _copy_licences(self, source: Source) -> None:
        folder = self._out / "licences" / source.slug
        folder.mkdir(parents=True, exist_ok=True)
        for member, content in self._archives[source.name].items():
            name = PurePosixPath(member).name
            if name in ("LICENSE", "README.md", "copyright"):
                (folder / name).write_bytes(content)

    def keep_only(self, names: set[str]) -> None:
        """Drop the archives of all other sources."""
        self._archives = {name: members for name, members in self._archives.items() if name in names}
