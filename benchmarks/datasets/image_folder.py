"""A folder `<domain>/<class>/<picture>` of one's own, laid out as UnED is.

Pictures stay where they are: `data/images` is a link to the folder.
"""

import hashlib
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.datasets.check import decodes
from benchmarks.datasets.splits import Split, split_classes
from benchmarks.errors import DataError

_NAME = re.compile(r"[a-z0-9_-]{1,64}")  # what the service's API takes as a domain
_NAMED = 5
_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}


@dataclass(frozen=True)
class FolderDomain:
    """Pictures by class, and how the classes were split."""

    classes: dict[str, list[str]]  # paths relative to the folder
    split: Split

    @property
    def singles(self) -> int:
        """Classes of one picture, which cannot be queries."""
        return sum(len(paths) == 1 for paths in self.classes.values())

    def count(self, names: tuple[str, ...]) -> int:
        """Pictures of these classes."""
        return sum(len(self.classes[name]) for name in names)


def lay_out(pictures: Path, out: Path) -> dict[str, FolderDomain]:
    """Write `out/data/info_files/<domain>/<split>.json` and `out/dataset.json`; returns what was found.

    Train, validation and test have classes of their own in each domain. A class of one picture trains
    and is never a query. Raises DataError, and then writes nothing.
    """
    if not pictures.is_dir():
        raise DataError(f"{pictures} is not a folder")
    if out.exists():
        raise DataError(f"{out} exists already and is left alone: remove it, or name another --out")
    for folder in _folders(pictures):
        if not _NAME.fullmatch(folder.name):
            raise DataError(
                f"{folder}: the folder's name is the domain's, which the service takes as 1 to 64 of "
                "a-z, 0-9, _ and - only: rename it"
            )
    domains = {folder.name: _domain(folder) for folder in _folders(pictures)}
    if not domains:
        raise DataError(f"{pictures} has no folders: expected <domain>/<class>/<picture>")
    paths = [path for one in domains.values() for of in one.classes.values() for path in of]
    if broken := _broken([pictures / path for path in paths]):
        named = ", ".join(map(str, broken[:_NAMED]))
        raise DataError(f"{len(broken)} pictures cannot be read; remove or replace them. The first: {named}")
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        _write(domains, pictures, unfinished)
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return domains


def _broken(files: list[Path]) -> list[Path]:
    """Training would stop at the first of them."""
    with ThreadPoolExecutor() as pool:
        return [file for file, good in zip(files, pool.map(decodes, files), strict=True) if not good]


def _domain(folder: Path) -> FolderDomain:
    classes = {}
    for one in _folders(folder):
        files = sorted(file for file in one.rglob("*") if file.suffix.lower() in _PICTURES)
        if files:
            classes[one.name] = [str(file.relative_to(folder.parent)) for file in files]
    pairs = [name for name, paths in classes.items() if len(paths) > 1]
    if not classes and any(file.suffix.lower() in _PICTURES for file in folder.iterdir()):
        raise DataError(f"{folder} holds pictures, not class folders: expected <domain>/<class>/<picture>")
    if len(pairs) < 3:
        raise DataError(
            f"{folder}: {len(pairs)} classes with two pictures or more; "
            "three are needed, one each to train, validate and test"
        )
    split = split_classes(folder.name, pairs)
    singles = sorted(set(classes) - set(pairs))
    return FolderDomain(classes, Split((*split.train, *singles), split.val, split.test))


def _folders(of: Path) -> list[Path]:
    return sorted(one for one in of.iterdir() if one.is_dir() and not one.name.startswith("."))


def _write(domains: dict[str, FolderDomain], pictures: Path, out: Path) -> None:
    images = out / "data" / "images"
    images.parent.mkdir(parents=True)
    images.symlink_to(pictures.resolve(), target_is_directory=True)
    digest = hashlib.sha256()
    for name, domain in domains.items():
        numbers = {label: number for number, label in enumerate(domain.split.labels)}
        folder = out / "data" / "info_files" / name
        folder.mkdir(parents=True)
        for split in ("train", "val", "test"):
            rows = [
                {"path": path, "class_id": numbers[label]}
                for label in getattr(domain.split, split)
                for path in domain.classes[label]
            ]
            (folder / f"{split}.json").write_text(json.dumps(rows))
            for row in rows:
                content = hashlib.sha256((pictures / str(row["path"])).read_bytes()).hexdigest()
                digest.update(f"{split}\0{row['path']}\0{row['class_id']}\0{content}\0".encode())
    card = {
        "fingerprint": digest.hexdigest(),
        "domains": {name: {"labels": list(domain.split.labels)} for name, domain in domains.items()},
    }
    (out / "dataset.json").write_text(json.dumps(card, indent=1))
