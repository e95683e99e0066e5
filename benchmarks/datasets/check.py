"""Is a data set whole? Its info files' rows, where UnED says how many; its pictures, there and decodable."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from benchmarks.datasets.dataset import Dataset
from benchmarks.datasets.uned import DOMAINS, INFO_FILES
from benchmarks.progress import progress_bar

_BATCH = 1024  # pictures handed to the threads at a time
_NAMED = 20  # of each kind, in JSON


@dataclass(frozen=True)
class DomainCheck:
    """What was found of one domain."""

    rows: dict[str, int]  # by split
    expected: dict[str, int]  # by split; empty where nobody says how many there must be
    images: int  # each once, whatever splits it is in
    missing: list[str]  # paths as the info files have them
    undecodable: list[str]

    @property
    def miscounted(self) -> list[str]:
        """Splits whose rows are not as many as there must be."""
        return [split for split, rows in self.expected.items() if self.rows.get(split) != rows]

    @property
    def whole(self) -> bool:
        """Nothing is wrong."""
        return not (self.miscounted or self.missing or self.undecodable)

    def to_json(self) -> dict[str, Any]:
        """Counts, and the first few pictures that something is wrong with."""
        return {
            "whole": self.whole,
            "rows": self.rows,
            "expected": self.expected,
            "images": self.images,
            "missing": len(self.missing),
            "undecodable": len(self.undecodable),
            "first_missing": self.missing[:_NAMED],
            "first_undecodable": self.undecodable[:_NAMED],
        }


def check(data: Dataset, decode: bool, console: Console) -> dict[str, DomainCheck]:
    """By domain, UnED's that have no info files included. Raises DataError where an info file is malformed.

    Without `decode`, only whether the pictures are there.
    """
    expected = {domain: source.rows for domain, source in DOMAINS.items()} if _is_uned(data) else {}
    with progress_bar(console) as progress:
        return {
            domain: _check_domain(data, domain, expected.get(domain, {}), decode, progress)
            for domain in sorted({*data.domains, *expected})
        }


def decodes(file: Path) -> bool:
    """Whether Pillow reads all of it."""
    try:
        with Image.open(file) as image:
            image.load()
    except Exception:  # Pillow's decoders raise nearly anything
        return False
    return True


def print_checks(checks: dict[str, DomainCheck], console: Console) -> None:
    """A line a domain, then what is wrong and what to fetch."""
    table = Table("domain", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("rows", "pictures", "missing", "undecodable"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("whole")
    for domain, one in checks.items():
        counts = (sum(one.rows.values()), one.images, len(one.missing), len(one.undecodable))
        table.add_row(Text(domain), *(f"{count:,}" for count in counts), "yes" if one.whole else "no")
    console.print(table)
    for domain, one in checks.items():
        for line in _complaints(domain, one):
            console.print(f"{domain}: {line}", markup=False, highlight=False, soft_wrap=True)
    if any(one.miscounted for one in checks.values()):
        console.print(INFO_FILES, highlight=False, soft_wrap=True)


def _is_uned(data: Dataset) -> bool:
    """What a builder of ours made has a card, and may have a domain of that name."""
    return not data.has_card and not DOMAINS.keys().isdisjoint(data.domains)


def _check_domain(
    data: Dataset, domain: str, expected: dict[str, int], decode: bool, progress: Progress
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
                good = pool.map(decodes, [file_of[path] for path in present])
                undecodable += [path for path, read in zip(present, good, strict=True) if not read]
            progress.advance(bar, len(batch))
    return DomainCheck(rows, expected, len(paths), missing, undecodable)


def _complaints(domain: str, one: DomainCheck) -> list[str]:
    """What is wrong, and what to fetch."""
    wrong = [
        f"{split}.json has {one.rows[split]:,} rows, not {one.expected[split]:,}"
        if split in one.rows
        else f"there is no {split}.json ({one.expected[split]:,} rows)"
        for split in one.miscounted
    ]
    for what, paths in (("missing", one.missing), ("undecodable", one.undecodable)):
        if paths:
            wrong.append(f"{len(paths):,} pictures {what}, the first {paths[0]}")
    lines = ["; ".join(wrong)] if wrong else []
    if one.expected and (one.missing or one.undecodable or not one.images):
        source = DOMAINS[domain]
        lines.append(f"fetch {source.fetch}; to data/images: {source.folders}")
    return lines
