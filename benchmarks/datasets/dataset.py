"""A data set in UnED's layout: `data/info_files/<domain>/<split>.json` and `data/images/...`.

An info file is a JSON list of `{"path", "class_id"}`; `class_id` is an int or a list of ints, local to
its domain. If a domain has a split `index`, that is its gallery; otherwise the test queries are the gallery.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from benchmarks.errors import DataError

Split = Literal["test", "val"]
# About 1,000 queries each, for 1/8 of UnED's mean: the standard error is 1.5 points already.
_COMPLETE = frozenset({"met", "gldv2"})


@dataclass(frozen=True, slots=True)
class Record:
    """One row of an info file."""

    id: str  # "<domain>/<split>/<row>": sorts in the order of the rows
    domain: str
    path: str  # relative to data/images
    class_ids: tuple[int, ...]


@dataclass(frozen=True)
class Dataset:
    """A folder in UnED's layout. Info files are read on demand."""

    root: Path
    present_only: bool = False  # leave out rows whose image is missing

    def __post_init__(self) -> None:
        if not self._info.is_dir():
            raise DataError(
                f"{self.root} is not a data set: {self._info} does not exist; "
                "`make demo` builds Octet, `benchmarks folder` builds a data set from your images"
            )

    @cached_property
    def domains(self) -> list[str]:
        """Domains in alphabetical order."""
        return sorted(folder.name for folder in self._info.iterdir() if folder.is_dir())

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the content from `dataset.json`, or else a hash of the info files."""
        if self.present_only:
            digest = hashlib.sha256(replace(self, present_only=False).fingerprint.encode())
            for file in sorted(self._info.rglob("*.json")):
                for record in self.records(file.parent.name, file.stem):
                    digest.update(f"{record.id}\0".encode())
            return digest.hexdigest()
        if "fingerprint" in self.card:
            return str(self.card["fingerprint"])
        digest = hashlib.sha256()
        for file in sorted(self._info.rglob("*.json")):
            digest.update(f"{file.relative_to(self._info)}\0".encode() + file.read_bytes())
        return digest.hexdigest()

    @property
    def left_out(self) -> dict[str, str]:
        """Domains that could not be built, with the reason."""
        return dict(self.card.get("left_out", {}))

    def splits(self, domain: str) -> list[str]:
        """Names of the domain's info files in alphabetical order."""
        return sorted(file.stem for file in (self._info / domain).glob("*.json"))

    def gallery_split(self, domain: str, split: str = "test") -> str:
        """Split that is the gallery of `split`: `index` or `small_index` if it exists, or itself."""
        index = {"test": "index", "val": "small_index"}[split]
        return index if self._file(domain, index).exists() else split

    def records(self, domain: str, split: str) -> list[Record]:
        """Rows of one info file, in its order. Raises DataError."""
        file = self._file(domain, split)
        try:
            rows = json.loads(file.read_text())
            records = [_record(domain, split, row, entry) for row, entry in enumerate(rows)]
        except FileNotFoundError as error:
            raise DataError(f"{file} does not exist") from error
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{file} is not a list of {{path, class_id}}: {error!r}") from error
        if not self.present_only:
            return records
        return [record for record in records if self.image(record).is_file()]

    def gallery(self, domain: str, split: Split = "test") -> list[Record]:
        """Items of the domain in the merged index of `split`."""
        return self.records(domain, self.gallery_split(domain, split))

    def queries(self, domain: str, split: Split = "test") -> list[Record]:
        """Queries of the domain."""
        return self.records(domain, split)

    def alternating_queries(self) -> Iterator[Record]:
        """Cycle endlessly through the test queries, alternating between domains. Raises DataError."""
        rounds = itertools.zip_longest(*(self.queries(domain) for domain in self.domains))
        queries = [query for of_round in rounds for query in of_round if query is not None]
        if not queries:
            raise DataError(f"{self.root} has no test images")
        return itertools.cycle(queries)

    def encoded_images(self, count: int) -> list[bytes]:
        """Encoded images of the first `count` queries of `alternating_queries`. Raises DataError."""
        return [self.read(query) for query in itertools.islice(self.alternating_queries(), count)]

    def read(self, record: Record) -> bytes:
        """Encoded image. Raises DataError."""
        file = self.image(record)
        try:
            return file.read_bytes()
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}") from error

    def image(self, record: Record) -> Path:
        """File of the image, even if an unzip tool escaped its name."""
        images = self.root / "data" / "images"
        file = images / record.path
        if (record.path.isascii() and "#" not in record.path) or file.exists():
            return file
        alternatives = (images / path for path in _spellings(record.path))
        return next((alternative for alternative in alternatives if alternative.exists()), file)

    def label(self, record: Record) -> str:
        """Name of the record's class, or its class ids if the data set has no names."""
        names = self.card.get("domains", {}).get(record.domain, {}).get("labels")
        return ",".join(names[class_id] if names else str(class_id) for class_id in record.class_ids)

    @property
    def _info(self) -> Path:
        return self.root / "data" / "info_files"

    @cached_property
    def card(self) -> dict[str, Any]:
        """Content of `dataset.json`, which this package writes for the data sets it builds; else empty."""
        file = self.root / "dataset.json"
        if not file.exists():
            return {}
        try:
            card = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise DataError(f"{file} cannot be read: {error}") from error
        if not isinstance(card, dict):
            raise DataError(f"{file} is not a JSON object")
        return card

    def _file(self, domain: str, split: str) -> Path:
        return self._info / domain / f"{split}.json"


def _record(domain: str, split: str, row: int, entry: dict[str, Any]) -> Record:
    path, class_ids = entry["path"], entry["class_id"]
    if not isinstance(path, str):
        raise TypeError(f"{path!r} is not a path")
    class_ids = class_ids if isinstance(class_ids, list) else [class_ids]
    return Record(f"{domain}/{split}/{row:07d}", domain, path, tuple(map(int, class_ids)))


def _spellings(path: str) -> Iterator[str]:
    """Names as unzip tools without Unicode escape them, `#U4e2d` for a character, and unescaped."""

    def escaped(match: re.Match[str]) -> str:
        code = ord(match.group())
        return f"#U{code:04x}" if code < 0x10000 else f"#L{code:06x}"

    lower = re.sub(r"[^\x00-\x7f]", escaped, path)
    yield lower
    yield re.sub(r"#[UL][0-9a-f]+", lambda match: f"{match.group()[:2]}{match.group()[2:].upper()}", lower)
    yield re.sub(
        r"#U([0-9a-fA-F]{4})|#L(0[0-9a-fA-F]{5}|10[0-9a-fA-F]{4})",
        lambda match: chr(int(match.group(1) or match.group(2), 16)),
        path,
    )


def subset(queries: Mapping[str, Sequence[Record]], per_domain: int, seed: int) -> dict[str, list[Record]]:
    """Select at most `per_domain` queries of each domain, in the order of their rows; all of met and gldv2.

    Queries are selected by a hash of the seed and the id, so the selection does not depend on other domains,
    and a smaller subset is part of a larger one.
    """
    return {
        domain: list(records) if domain in _COMPLETE else _sample(records, per_domain, seed)
        for domain, records in queries.items()
    }


def _sample(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    def rank(row: int) -> bytes:
        return hashlib.sha256(f"{seed}\0{records[row].id}".encode()).digest()

    return [records[row] for row in sorted(sorted(range(len(records)), key=rank)[:count])]
