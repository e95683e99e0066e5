"""One domain on disk: its pictures, chosen and named, and UnED's info files beside them."""

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.datasets.octet.domains import Domain, Item
from benchmarks.datasets.splits import Split, split_classes
from benchmarks.errors import DataError

Row = dict[str, str | int]  # {"path", "class_id"}


@dataclass(frozen=True)
class Picture:
    path: str  # relative to data/images
    class_name: str
    source_set: str
    sha256: str
    content: bytes


@dataclass(frozen=True)
class DomainCounts:
    images: int
    classes: int
    splits: dict[str, dict[str, int]]  # split -> {"images", "classes"}
    queries_without_match: int  # test queries whose class has nothing (else) in the test index


@dataclass(frozen=True)
class BuiltDomain:
    counts: DomainCounts
    labels: tuple[str, ...]  # by class id
    fingerprint: str


def build_domain(
    out: Path, domain: Domain, items: Iterable[Item], *, on_images: Callable[[int, int], None]
) -> BuiltDomain:
    """Build in a folder of its own, then move: an interrupted build leaves nothing half done in `data`."""
    pictures = choose(domain, items)
    split = split_classes(domain.name, (picture.class_name for picture in pictures))
    info = info_files(domain, pictures, split)
    staging = out / ".building"
    shutil.rmtree(staging, ignore_errors=True)
    for done, picture in enumerate(pictures):
        target = staging / picture.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(picture.content)
        on_images(done + 1, len(pictures))
    (staging / "info").mkdir()
    for name, rows in info.items():
        (staging / "info" / f"{name}.json").write_text(_as_json(rows))
    for built, final in (
        (staging / domain.name, out / "data" / "images" / domain.name),
        (staging / "info", out / "data" / "info_files" / domain.name),
    ):
        shutil.rmtree(final, ignore_errors=True)
        final.parent.mkdir(parents=True, exist_ok=True)
        built.rename(final)
    shutil.rmtree(staging)
    return BuiltDomain(_counts(info, split), split.labels, _fingerprint(info, pictures))


def choose(domain: Domain, items: Iterable[Item]) -> list[Picture]:
    """Sorted by path; exact duplicates go (the first class by name keeps the picture), then small classes."""
    pictures: dict[str, Picture] = {}
    for item in sorted(items, key=lambda item: (item.class_name, item.source_set, item.file_name)):
        # Same bytes: comparing decoded pixels instead finds no more in any of the sources.
        sha256 = hashlib.sha256(item.content).hexdigest()
        if sha256 not in pictures:
            path = f"{domain.name}/{_safe(item.class_name)}/{_safe(item.file_name)}"
            pictures[sha256] = Picture(path, item.class_name, item.source_set, sha256, item.content)
    n_images = Counter(picture.class_name for picture in pictures.values())
    kept = [picture for picture in pictures.values() if n_images[picture.class_name] >= domain.min_images]
    # Some file systems take upper and lower case for the same.
    if len({picture.path.lower() for picture in kept}) < len(kept):
        raise DataError(f"{domain.name}: two pictures have the same path")
    return sorted(kept, key=lambda picture: picture.path)


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", name).lstrip(".") or "_"


def info_files(domain: Domain, pictures: Sequence[Picture], split: Split) -> dict[str, list[Row]]:
    """Rows of {path, class_id} by split name."""
    class_ids = {name: class_id for class_id, name in enumerate(split.labels)}
    info: dict[str, list[Row]] = {"train": [], "val": [], "test": []}
    if domain.query_set:
        info["index"] = []
    split_of = {
        name: split_name
        for split_name, names in (("train", split.train), ("val", split.val), ("test", split.test))
        for name in names
    }
    for picture in pictures:
        name = split_of[picture.class_name]
        # With two file sets, test holds the queries and index what they are looked up in.
        if name == "test" and domain.query_set and picture.source_set != domain.query_set:
            name = "index"
        info[name].append({"path": picture.path, "class_id": class_ids[picture.class_name]})
    return info


def _counts(info: dict[str, list[Row]], split: Split) -> DomainCounts:
    self_excluded = "index" not in info
    n_index = Counter(row["class_id"] for row in info["test" if self_excluded else "index"])
    return DomainCounts(
        images=sum(len(rows) for rows in info.values()),
        classes=len(split.labels),
        splits={
            name: {"images": len(rows), "classes": len({row["class_id"] for row in rows})}
            for name, rows in info.items()
        },
        queries_without_match=sum(n_index[row["class_id"]] <= self_excluded for row in info["test"]),
    )


def _as_json(rows: list[Row]) -> str:
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"  # one row per line


def _fingerprint(info: dict[str, list[Row]], pictures: Iterable[Picture]) -> str:
    lines = [f"{name} {hashlib.sha256(_as_json(rows).encode()).hexdigest()}\n" for name, rows in info.items()]
    lines += [f"{picture.path} {picture.sha256}\n" for picture in pictures]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
