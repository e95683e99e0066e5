"""A data set in UnED's layout from a folder `<domain>/<class>/<image>`.

The images are not copied: `data/images` is a link to the folder.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.datasets.check import decodes
from benchmarks.datasets.splits import SPLITS, Split, split_classes
from benchmarks.errors import DataError
from benchmarks.tables import count

_DOMAIN_NAME = re.compile(r"[a-z0-9_-]{1,64}")  # as the service's API accepts it
_LISTED = 5
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}


@dataclass(frozen=True)
class FolderDomain:
    """Images of one domain by class, and its split."""

    classes: dict[str, list[str]]  # paths relative to the folder
    split: Split

    @property
    def singles(self) -> int:
        """Number of classes with a single image, which cannot be queries."""
        return sum(len(paths) == 1 for paths in self.classes.values())


def write_dataset(images: Path, out: Path) -> dict[str, FolderDomain]:
    """Write `out/data/info_files/<domain>/<split>.json` and `out/dataset.json`; return the domains.

    Train, validation and test have different classes. A class with a single image is in train. Raises
    DataError, in which case nothing is written.
    """
    if not images.is_dir():
        raise DataError(f"{images} is not a folder")
    if out.exists():
        raise DataError(f"{out} already exists and is left alone: remove it, or choose another --out")
    folders = _subfolders(images)
    for folder in folders:
        if not _DOMAIN_NAME.fullmatch(folder.name):
            raise DataError(
                f"{folder}: a folder's name is the name of a domain, which has a-z, 0-9, _ and - only, "
                "up to 64 characters: rename the folder"
            )
    domains = {folder.name: _read_domain(folder) for folder in folders}
    if not domains:
        raise DataError(f"{images} has no folders: expected <domain>/<class>/<image>")
    # Training would stop at the first image that cannot be decoded.
    files = [
        images / path for domain in domains.values() for paths in domain.classes.values() for path in paths
    ]
    with ThreadPoolExecutor() as pool:
        broken = [str(file) for file, good in zip(files, pool.map(decodes, files), strict=True) if not good]
    if broken:
        listed = ", ".join(broken[:_LISTED])
        broken_images = count(len(broken), "image")
        raise DataError(f"{broken_images} cannot be read. Remove or replace them; the first: {listed}")
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        _write(domains, images, unfinished)
        unfinished.rename(out)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return domains


def skipped_files(images: Path, domains: Mapping[str, FolderDomain]) -> list[Path]:
    """Return the files of the folder that are not in the data set, without hidden ones."""
    classes = (paths for domain in domains.values() for paths in domain.classes.values())
    files = (file.relative_to(images) for file in images.rglob("*") if file.is_file())
    visible = {file for file in files if not any(part.startswith(".") for part in file.parts)}
    return sorted(visible.difference(*(map(Path, paths) for paths in classes)))


def _read_domain(folder: Path) -> FolderDomain:
    classes = {}
    for subfolder in _subfolders(folder):
        if files := sorted(file for file in subfolder.rglob("*") if _is_image(file)):
            classes[subfolder.name] = [str(file.relative_to(folder.parent)) for file in files]
    if not classes and any(map(_is_image, folder.iterdir())):
        raise DataError(f"{folder} holds images, not class folders: expected <domain>/<class>/<image>")
    queryable = [name for name, paths in classes.items() if len(paths) > 1]
    if len(queryable) < 3:
        raise DataError(
            f"{folder}: {count(len(queryable), 'class', 'classes')} with two or more images; "
            "at least three are required, one each for train, validation and test"
        )
    split = split_classes(folder.name, queryable)
    singles = sorted(set(classes) - set(queryable))
    return FolderDomain(classes, Split((*split.train, *singles), split.val, split.test))


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in _SUFFIXES


def _subfolders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _write(domains: dict[str, FolderDomain], images: Path, out: Path) -> None:
    link = out / "data" / "images"
    link.parent.mkdir(parents=True)
    link.symlink_to(images.resolve(), target_is_directory=True)
    digest = hashlib.sha256()
    for name, domain in domains.items():
        class_ids = {label: class_id for class_id, label in enumerate(domain.split.labels)}
        folder = out / "data" / "info_files" / name
        folder.mkdir(parents=True)
        for split in SPLITS:
            rows = [
                {"path": path, "class_id": class_ids[label]}
                for label in getattr(domain.split, split)
                for path in domain.classes[label]
            ]
            (folder / f"{split}.json").write_text(json.dumps(rows))
            for row in rows:
                content = hashlib.sha256((images / str(row["path"])).read_bytes()).hexdigest()
                digest.update(f"{split}\0{row['path']}\0{row['class_id']}\0{content}\0".encode())
    card = {
        "fingerprint": digest.hexdigest(),
        "domains": {name: _card(domain) for name, domain in domains.items()},
    }
    (out / "dataset.json").write_text(json.dumps(card, indent=1))


def _card(domain: FolderDomain) -> dict[str, Any]:
    """Return a domain's entry of dataset.json, as Octet has it."""
    images = {
        split: sum(len(domain.classes[label]) for label in getattr(domain.split, split)) for split in SPLITS
    }
    counts = {"splits": {split: {"images": count} for split, count in images.items()}}
    return {"labels": list(domain.split.labels), "counts": counts}
