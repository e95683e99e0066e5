"""Description of a built Octet: dataset.json, LICENCES.md and the summary."""

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.datasets.octet.domain_writer import BuiltDomain, DomainCounts
from benchmarks.datasets.octet.domains import Domain
from benchmarks.datasets.octet.sources import Source
from benchmarks.datasets.splits import SEED
from benchmarks.errors import DataError
from benchmarks.files import write_atomically

_SOURCE_FIELDS = ("registry", "name", "version", "sha256", "licence")
BUILDER_VERSION = 1  # increase it when a change builds another data set from the same sources

NOT_UNED = (
    "Octet is a small stand-in with UnED's layout, assembled from package registries. "
    "It is not UnED, and its numbers do not compare with UnED's."
)


@dataclass(frozen=True)
class OctetSummary:
    """Result of a build."""

    fingerprint: str  # sha256 over the info files and images of all built domains
    domains: dict[str, DomainCounts]
    left_out: dict[str, str]  # reason by domain


def load_built(out: Path, domains: Iterable[Domain], pins: dict[str, str]) -> dict[str, BuiltDomain]:
    """Read the up-to-date domains from dataset.json; `pins` are hashes by source. Raises DataError."""
    path = out / "dataset.json"
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text())
        if (record["builder_version"], record["seed"]) != (BUILDER_VERSION, SEED):
            return {}
        built_from = {source["name"]: source["sha256"] for source in record["sources"]}
        return {
            domain.name: _built_domain(record["domains"][domain.name])
            for domain in domains
            if domain.name in record["domains"]
            and all(built_from.get(source) == pins[source] for source in domain.sources)
            and (out / "data" / "info_files" / domain.name).is_dir()
            and (out / "data" / "images" / domain.name).is_dir()
        }
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is malformed ({error!r}): remove it to build the data set again") from error


def _built_domain(row: dict[str, Any]) -> BuiltDomain:
    return BuiltDomain(DomainCounts(**row["counts"]), tuple(row["labels"]), row["fingerprint"])


def summarise(built: dict[str, BuiltDomain], left_out: dict[str, str]) -> OctetSummary:
    """Summarise a build; `left_out` holds reasons by domain."""
    lines = [f"{name} {row.fingerprint}\n" for name, row in built.items()]
    return OctetSummary(
        fingerprint=hashlib.sha256("".join(sorted(lines)).encode()).hexdigest(),
        domains={name: row.counts for name, row in built.items()},
        left_out=left_out,
    )


def save(
    out: Path,
    built: dict[str, BuiltDomain],
    left_out: dict[str, str],
    domains: Iterable[Domain],
    sources: Iterable[Source],
) -> None:
    """Write dataset.json and LICENCES.md. Raises RunError."""
    users: dict[str, list[str]] = defaultdict(list)
    for domain in domains:
        for name in domain.sources:
            users[name].append(domain.name)
    source_rows = [
        {**{field: getattr(source, field) for field in _SOURCE_FIELDS}, "domains": users[source.name]}
        for source in sources
    ]
    record = {
        "name": "Octet",
        "about": NOT_UNED,
        "builder_version": BUILDER_VERSION,
        "seed": SEED,
        "fingerprint": summarise(built, left_out).fingerprint,
        "left_out": left_out,
        "sources": source_rows,
        "domains": {name: dataclasses.asdict(row) for name, row in built.items()},
    }
    write_atomically(out / "LICENCES.md", _licences(source_rows))
    write_atomically(out / "dataset.json", json.dumps(record, indent=1) + "\n")


def _licences(source_rows: Iterable[dict[str, Any]]) -> str:
    cells = [
        [row["name"], row["version"], row["registry"], ", ".join(row["domains"]), row["licence"]]
        for row in source_rows
    ]
    rows = [f"| {' | '.join(row)} |\n" for row in cells]
    return f"""# Licences of the images in this folder

{NOT_UNED}

The images keep the licences that their packages state. The packages' licence texts, which name authors and
single images, are in `licences/`. Do not add files of this folder to the project's repository.

| package | version | registry | domains | licence |
|---|---|---|---|---|
{"".join(rows)}"""
