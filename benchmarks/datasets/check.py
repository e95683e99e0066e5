"""Check of a data set: rows of the info files against UnED's, and images present and decodable."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import Progress

from benchmarks.datasets.dataset import Dataset
from benchmarks.datasets.splits import SPLITS
from benchmarks.datasets.uned import DOMAINS, INFO_FILES, Source
from benchmarks.progress import progress_bar
from benchmarks.tables import Table, count

_BATCH = 1024  # images per step of the progress bar
_LISTED = 20  # paths of each kind in JSON


@dataclass(frozen=True)
class DomainCheck:
    """Result for one domain."""

    rows: dict[str, int]  # by split
    expected: dict[str, int | None]  # rows by split; None: any number
    images: int  # distinct images of all splits
    missing: list[str]  # paths as in the info files
    undecodable: list[str]
    source: Source | None  # of UnED

    @property
    def miscounted(self) -> list[str]:
        """Splits that are missing, or do not have the expected number of rows."""
        return [
            split
            for split, rows in self.expected.items()
            if split not in self.rows or rows not in (None, self.rows[split])
        ]

    @property
    def complete(self) -> bool:
        """True if no problem was found."""
        return not (self.miscounted or self.missing or self.undecodable)

    def to_json(self) -> dict[str, Any]:
        """Counts, and the first few missing or undecodable images."""
        return {
            "whole": self.complete,
            "rows": self.rows,
            "expected": self.expected,
            "images": self.images,
            "missing": len(self.missing),
            "undecodable": len(self.undecodable),
            "first_missing": self.missing[:_LISTED],
            "first_undecodable": self.undecodable[:_LISTED],
        }


def check(data: Dataset, decode: bool, console: Console) -> dict[str, DomainCheck]:
    """Check all domains, including domains of UnED without info files. Raises DataError.

    Without `decode`, images only need to exist.
    """
    # A data set with a card is not UnED: a command of this package built it, with any names of domains.
    is_uned = not data.card and not DOMAINS.keys().isdisjoint(data.domains)
    sources = DOMAINS if is_uned else {}
    expected: dict[str, dict[str, int | None]] = {
        **{domain: {"test": None} for domain in data.domains},
        **{domain: _rows_of(entry) for domain, entry in data.card.get("domains", {}).items()},
        **{domain: dict(source.rows) for domain, source in sources.items()},
    }
    with progress_bar(console) as progress:
        return {
            domain: _check_domain(data, domain, expected[domain], sources.get(domain), decode, progress)
            for domain in sorted(expected)
        }


def decodes(file: Path) -> bool:
    """True if Pillow decodes the entire file."""
    try:
        with Image.open(file) as image:
            image.load()
    except Exception:  # Pillow's decoders raise nearly any exception
        return False
    return True


def print_checks(checks: dict[str, DomainCheck], console: Console) -> None:
    """Print a table of the domains, then their problems."""
    rows = []
    for domain, result in checks.items():
        counts = (sum(result.rows.values()), result.images, len(result.missing), len(result.undecodable))
        rows.append([domain, *(f"{count:,}" for count in counts), "yes" if result.complete else "no"])
    Table(("domain", "rows", "images", "missing", "undecodable", "complete"), rows).print(console)
    for domain, result in checks.items():
        for line in _problems(result):
            console.print(f"{domain}: {line}", markup=False, highlight=False, soft_wrap=True)
    if any(result.miscounted and result.source for result in checks.values()):
        console.print(INFO_FILES, highlight=False, soft_wrap=True)


def _rows_of(entry: dict[str, Any]) -> dict[str, int | None]:
    """Return the rows by split of a domain in dataset.json: older versions wrote no numbers for a folder."""
    splits = entry.get("counts", {}).get("splits", {})
    return {**dict.fromkeys(SPLITS), **{split: counts["images"] for split, counts in splits.items()}}


def _check_domain(
    data: Dataset,
    domain: str,
    expected: dict[str, int | None],
    source: Source | None,
    decode: bool,
    progress: Progress,
) -> DomainCheck:
    rows: dict[str, int] = {}
    file_of: dict[str, Path] = {}
    for split in data.splits(domain):
        records = data.records(domain, split)
        rows[split] = len(records)
        file_of.update({record.path: data.image(record) for record in records})
    bar = progress.add_task(domain, total=len(file_of))
    paths, missing, undecodable = list(file_of), [], []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in range(0, len(paths), _BATCH):
            batch = paths[start : start + _BATCH]
            present = [path for path in batch if file_of[path].is_file()]
            missing += sorted(set(batch) - set(present))
            if decode:
                results = pool.map(decodes, [file_of[path] for path in present])
                undecodable += [path for path, decoded in zip(present, results, strict=True) if not decoded]
            progress.advance(bar, len(batch))
    return DomainCheck(rows, expected, len(paths), missing, undecodable, source)


def _problems(result: DomainCheck) -> list[str]:
    """A line that lists the domain's problems, and a line that names the source of UnED's images."""
    problems = [
        f"{split}.json has {result.rows[split]:,} rows, expected {expected:,}"
        if split in result.rows
        else f"{split}.json is missing" + (f" ({expected:,} rows)" if expected else "")
        for split, expected in result.expected.items()
        if split in result.miscounted
    ]
    for problem, paths in (("missing", result.missing), ("undecodable", result.undecodable)):
        if paths:
            problems.append(f"{count(len(paths), 'image')} {problem}, first: {paths[0]}")
    lines = ["; ".join(problems)] if problems else []
    if (source := result.source) and (result.missing or result.undecodable or not result.images):
        lines.append(f"fetch {source.fetch}; to data/images: {source.folders}")
    return lines
