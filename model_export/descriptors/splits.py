"""Descriptors of whole splits by ONNX Runtime, in the layout that `benchmarks score` reads.

`<domain>/<split>.npy` is float32 (N, D), rows in the info file's order. `embed.json` records the model and
the data of each file, so that an interrupted run resumes and never mixes two models.
"""

import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from benchmarks.datasets.dataset import Dataset, Record
from benchmarks.progress import progress_bar
from benchmarks.scoring.measures import DomainScore
from model_export.descriptors.evaluation import evaluate, require_queries
from model_export.descriptors.images import images_stamp, read_pixels, require_images
from model_export.errors import SourceError
from model_export.folders import atomic_file, save_array
from service.inference.encoder import Encoder
from service.manifest import Preprocessing
from service.process import usable_cpus

CORES = usable_cpus()
_BATCH = 16


@dataclass(frozen=True)
class EmbedCounts:
    """Images of one run of `embed_splits`."""

    embedded: int
    kept: int  # embedded by an earlier run
    missing: int  # rows of zeros


def splits_for(data: Dataset, split: str) -> list[tuple[str, str]]:
    """Return the (domain, split) pairs of all queries and of the galleries they search."""
    pairs = [(domain, split) for domain in data.domains]
    if split in ("test", "val"):
        pairs += [(domain, data.gallery_split(domain, split)) for domain in data.domains]
    return list(dict.fromkeys(pairs))


def embed_splits(
    encoder: Encoder, data: Dataset, split: str, out: Path, allow_missing: bool, console: Console
) -> EmbedCounts:
    """Write `out/<domain>/<split>.npy` for all that scoring `split` needs.

    Raises SourceError if images are missing or broken, unless `allow_missing`: then their rows are zeros,
    which `score` counts as failed queries and as gallery items that are never found.
    """
    if out.exists() and not out.is_dir():
        raise SourceError(f"{out} is a file, not a folder; it is left unchanged")
    pairs = splits_for(data, split)
    if not allow_missing:
        require_images(data, pairs)
    done: dict[str, dict[str, Any]] = {}
    with suppress(OSError, ValueError):  # an unreadable file counts as empty
        done.update(json.loads((out / "embed.json").read_text()))
    # The key "pictures" stays: it is part of the format of embed.json.
    origin = {"model": encoder.manifest.fingerprint, "data": data.fingerprint}
    entries = {pair: {**origin, "pictures": images_stamp(data, *pair)} for pair in pairs}
    files = {pair: out / pair[0] / f"{pair[1]}.npy" for pair in pairs}
    kept = [
        pair
        for pair in pairs
        if done.get("/".join(pair)) == {**entries[pair], "missing": 0} and files[pair].exists()
    ]
    embedded = missing = 0
    with progress_bar(console) as progress:
        for pair in (pair for pair in pairs if pair not in kept):
            rows = _embed(encoder, data, data.records(*pair), progress, " ".join(pair), allow_missing)
            zeros = int((~rows.any(axis=1)).sum())
            save_array(files[pair], rows)
            done["/".join(pair)] = {**entries[pair], "missing": zeros}
            with atomic_file(out / "embed.json") as file:
                file.write_text(json.dumps(done, indent=1) + "\n")
            embedded += len(rows)
            missing += zeros
    return EmbedCounts(embedded, sum(len(data.records(*pair)) for pair in kept), missing)


def _embed(
    encoder: Encoder,
    data: Dataset,
    records: Sequence[Record],
    progress: Progress,
    title: str,
    allow_missing: bool = False,
) -> NDArray[np.float32]:
    """Return embeddings (N, dim) of records, decoding the next batch while one is encoded."""
    rows = np.zeros((len(records), encoder.manifest.dim), dtype=np.float32)
    task = progress.add_task(title, total=len(records))
    with ThreadPoolExecutor() as pool:

        def submit(start: int) -> list[Future[NDArray[np.uint8] | None]]:
            files = [data.image(record) for record in records[start : start + _BATCH]]
            return [pool.submit(_read, file, encoder.manifest.preprocessing, allow_missing) for file in files]

        futures = submit(0)
        for start in range(0, len(records), _BATCH):
            images = [future.result() for future in futures]
            futures = submit(start + _BATCH)
            present = {row: image for row, image in enumerate(images, start) if image is not None}
            if present:
                rows[list(present)] = encoder.encode(np.stack(list(present.values())))
            progress.advance(task, len(images))
    return rows


def score_split(
    encoder: Encoder, data: Dataset, split: str, name: str, console: Console
) -> dict[str, DomainScore]:
    """Score each domain that has queries, over their merged gallery. Raises SourceError."""
    domains = require_queries(data, split)
    with progress_bar(console) as progress:

        def embed(domain: str, part: str) -> NDArray[np.float32]:
            return _embed(encoder, data, data.records(domain, part), progress, f"{name}: {domain} {part}")

        return evaluate(data, domains, split, embed)


def _read(file: Path, preprocessing: Preprocessing, allow_missing: bool) -> NDArray[np.uint8] | None:
    try:
        return read_pixels(file, preprocessing)
    except SourceError:
        if not allow_missing:
            raise
        return None
