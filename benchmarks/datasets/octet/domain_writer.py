"""Writer of one domain: selects and names its images, and writes them with UnED's info files."""

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.datasets.octet.domains import Domain, Item
from benchmarks.datasets.splits import Split, split_classes
from benchmarks.errors import DataError

Row = dict[str, str | int]  # {"path", "class_id"}


@dataclass(frozen=True)
class DomainCounts:
    """Sizes of a built domain."""

    images: int
    classes: int
    splits: dict[str, dict[str, int]]  # split -> {"images", "classes"}
    queries_without_match: int  # test queries without another item of their class in the gallery


@dataclass(frozen=True)
class BuiltDomain:
    """Entry of a domain in dataset.json."""

    counts: DomainCounts
    labels: tuple[str, ...]  # by class id
    fingerprint: str


def build_domain(
    out: Path, domain: Domain, items: Iterable[Item], update: Callable[..., object]
) -> BuiltDomain:
    """Write a domain to a staging folder, then move it: an interrupted build leaves nothing in `data`."""
    images = select_images(domain, items)
    split = split_classes(domain.name, (image.class_name for image in images.values()))
    info = info_files(domain, images, split)
    staging = out / ".building"
    shutil.rmtree(staging, ignore_errors=True)
    for done, (path, image) in enumerate(images.items(), 1):
        target = staging / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(image.content)
        update(completed=done, total=len(images))
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
    return BuiltDomain(_counts(info, split), split.labels, _fingerprint(info, images))


def select_images(domain: Domain, items: Iterable[Item]) -> dict[str, Item]:
    """Drop exact duplicates (the first class by name keeps the image) and small classes.

    The keys are paths relative to data/images, in alphabetical order. Raises DataError.
    """
    # Comparing decoded pixels instead of bytes finds no further duplicates in any source.
    distinct: dict[bytes, Item] = {}
    for item in sorted(items, key=lambda item: (item.class_name, item.source_set, item.file_name)):
        distinct.setdefault(item.content, item)
    n_images = Counter(item.class_name for item in distinct.values())
    kept = [item for item in distinct.values() if n_images[item.class_name] >= domain.min_images]
    images = {f"{domain.name}/{_safe(item.class_name)}/{_safe(item.file_name)}": item for item in kept}
    # Some file systems ignore case.
    if len({path.lower() for path in images}) < len(kept):
        raise DataError(f"{domain.name}: two images have the same path")
    return dict(sorted(images.items()))


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", name).lstrip(".") or "_"


def info_files(domain: Domain, images: Mapping[str, Item], split: Split) -> dict[str, list[Row]]:
    """Rows of the info files by split."""
    class_ids = {name: class_id for class_id, name in enumerate(split.labels)}
    info: dict[str, list[Row]] = {"train": [], "val": [], "test": []}
    if domain.query_set:
        info["index"] = []
    split_of = {class_name: name for name, classes in asdict(split).items() for class_name in classes}
    for path, image in images.items():
        name = split_of[image.class_name]
        # If the domain has a query set, its images are the queries and the others are the gallery.
        if name == "test" and domain.query_set and image.source_set != domain.query_set:
            name = "index"
        info[name].append({"path": path, "class_id": class_ids[image.class_name]})
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


def _fingerprint(info: dict[str, list[Row]], images: Mapping[str, Item]) -> str:
    lines = [f"{name} {hashlib.sha256(_as_json(rows).encode()).hexdigest()}\n" for name, rows in info.items()]
    lines += [f"{path} {hashlib.sha256(image.content).hexdigest()}\n" for path, image in images.items()]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
