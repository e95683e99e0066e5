"""A data set in UnED's layout: `data/info_files/<domain>/<split>.json` and `data/images/...`.

An info file is a JSON list of `{"path", "class_id"}`; `class_id` is an int or a list of ints, local to
its domain. A domain with a split `index` searches that one; elsewhere the test queries are the gallery.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from benchmarks.errors import DataError

Split = Literal["test", "val"]


@dataclass(frozen=True, slots=True)
class Record:
    """One row of an info file."""

    id: str  # "<domain>/<split>/<row>": sorting by it keeps the order of the rows
    domain: str
    path: str  # relative to data/images
    class_ids: tuple[int, ...]


@dataclass(frozen=True)
class Dataset:
    """A folder in UnED's layout. Info files are read when asked for."""

    root: Path
    present_only: bool = False  # leave out rows whose picture is not there

    def __post_init__(self) -> None:
        if not self._info.is_dir():
            raise DataError(
                f"{self.root} is not a data set: there is no {self._info}; "
                "`make demo` builds Octet, `benchmarks folder` makes one of your pictures"
            )

    @cached_property
    def domains(self) -> list[str]:
        """By name."""
        return sorted(folder.name for folder in self._info.iterdir() if folder.is_dir())

    @cached_property
    def fingerprint(self) -> str:
        """What the builder said of the content; elsewhere, a hash of the info files."""
        if self.present_only:
            digest = hashlib.sha256(replace(self, present_only=False).fingerprint.encode())
            for file in sorted(self._info.rglob("*.json")):
                for record in self.records(file.parent.name, file.stem):
                    digest.update(f"{record.id}\0".encode())
            return digest.hexdigest()
        if "fingerprint" in self._card:
            return str(self._card["fingerprint"])
        digest = hashlib.sha256()
        for file in sorted(self._info.rglob("*.json")):
            digest.update(f"{file.relative_to(self._info)}\0".encode() + file.read_bytes())
        return digest.hexdigest()

    @property
    def has_card(self) -> bool:
        """Whether a builder of ours made it, and says so in `dataset.json`."""
        return bool(self._card)

    @property
    def left_out(self) -> dict[str, str]:
        """Domains that could not be built here, and why."""
        return dict(self._card.get("left_out", {}))

    def splits(self, domain: str) -> list[str]:
        """The domain's info files, by name."""
        return sorted(file.stem for file in (self._info / domain).glob("*.json"))

    def gallery_split(self, domain: str, split: str = "test") -> str:
        """Where `split` searches: `index` for test, `small_index` for val where there is one, else itself."""
        apart = {"test": "index", "val": "small_index"}[split]
        return apart if self._file(domain, apart).exists() else split

    def records(self, domain: str, split: str) -> list[Record]:
        """The rows of one info file, in its order. Raises DataError."""
        file = self._file(domain, split)
        try:
            rows = json.loads(file.read_text())
            records = [_record(domain, split, row, entry) for row, entry in enumerate(rows)]
        except FileNotFoundError as error:
            raise DataError(f"{file} does not exist") from error
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{file} is not a list of {{path, class_id}}: {error!r}") from error
        return [one for one in records if self.image(one).is_file()] if self.present_only else records

    def gallery(self, domain: str, split: Split = "test") -> list[Record]:
        """The pictures that the domain puts into the merged index of `split`."""
        return self.records(domain, self.gallery_split(domain, split))

    def queries(self, domain: str, split: Split = "test") -> list[Record]:
        """The domain's queries."""
        return self.records(domain, split)

    def in_turn(self) -> Iterator[Record]:
        """The test queries of all domains in turn, for ever. Raises DataError where there are none."""
        turns = itertools.zip_longest(*(self.queries(domain) for domain in self.domains))
        queries = [query for turn in turns for query in turn if query is not None]
        if not queries:
            raise DataError(f"{self.root} has no test pictures")
        return itertools.cycle(queries)

    def pictures_in_turn(self, count: int) -> list[bytes]:
        """The encoded pictures of the first `count` of them. Raises DataError."""
        return [self.image(query).read_bytes() for query in itertools.islice(self.in_turn(), count)]

    def image(self, record: Record) -> Path:
        """The picture's file, also where an unzip tool wrote its name another way."""
        images = self.root / "data" / "images"
        file = images / record.path
        if (record.path.isascii() and "#" not in record.path) or file.exists():
            return file
        others = (images / path for path in _spellings(record.path))
        return next((other for other in others if other.exists()), file)

    def label(self, record: Record) -> str:
        """The class as people read it: its name where the data set has names, else its ids."""
        names = self._card.get("domains", {}).get(record.domain, {}).get("labels")
        return ",".join(names[one] if names else str(one) for one in record.class_ids)

    @property
    def _info(self) -> Path:
        return self.root / "data" / "info_files"

    @cached_property
    def _card(self) -> dict[str, Any]:
        file = self.root / "dataset.json"
        if not file.exists():
            return {}
        try:
            said = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise DataError(f"{file} cannot be read: {error}") from error
        if not isinstance(said, dict):
            raise DataError(f"{file} is not a JSON object")
        return said

    def _file(self, domain: str, split: str) -> Path:
        return self._info / domain / f"{split}.json"


def _record(domain: str, split: str, row: int, entry: dict[str, Any]) -> Record:
    path = entry["path"]
    if not isinstance(path, str):
        raise TypeError(f"{path!r} is no path")
    return Record(f"{domain}/{split}/{row:07d}", domain, path, _class_ids(entry["class_id"]))


def _class_ids(value: int | list[int]) -> tuple[int, ...]:
    return tuple(int(one) for one in value) if isinstance(value, list) else (int(value),)


def _spellings(path: str) -> Iterator[str]:
    """As unzip tools without Unicode write it, `#U4e2d` for one character, and the other way round."""

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
