"""Descriptors of whole splits by ONNX Runtime, in the layout that `benchmarks score` reads.

`<domain>/<split>.npy` is float32 (N, D), rows in the info file's order. `embed.json` says which model and
data made each file, so that an interrupted run goes on where it was and never mixes two models.
"""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.datasets.dataset import Dataset, Record
from benchmarks.progress import progress_bar
from benchmarks.scoring.measures import DomainScore
from model_export.descriptors.evaluation import evaluate, require_queries
from model_export.descriptors.images import pictures_stamp, read_pixels, require_images
from model_export.errors import SourceError
from model_export.folders import whole_file
from service.inference.encoder import Encoder
from service.manifest import Preprocessing

CORES = len(os.sched_getaffinity(0))
_BATCH = 16


@dataclass(frozen=True)
class Embedded:
    """What a run of `embed_splits` did, in images."""

    embedded: int
    kept: int  # were there from an earlier run
    missing: int  # rows of zeros


def splits_for(data: Dataset, split: str) -> list[tuple[str, str]]:
    """(domain, split) of all queries and of the galleries that they search."""
    pairs = [(domain, split) for domain in data.domains]
    if split in ("test", "val"):
        pairs += [(domain, data.gallery_split(domain, split)) for domain in data.domains]
    return list(dict.fromkeys(pairs))


def embed_splits(
    encoder: Encoder, data: Dataset, split: str, out: Path, allow_missing: bool, console: Console
) -> Embedded:
    """Write `out/<domain>/<split>.npy` for all that scoring `split` needs.

    Raises SourceError where images are missing or broken, unless `allow_missing`: then their rows are
    zeros, which `score` counts as failed queries and as gallery items that nothing finds.
    """
    if out.exists() and not out.is_dir():
        raise SourceError(f"{out} is a file, not a folder: it is left alone")
    said = {"model": encoder.manifest.fingerprint, "data": data.fingerprint}
    pairs = splits_for(data, split)
    if not allow_missing:
        require_images(data, pairs)
    done = _done(out)
    card = {pair: {**said, "pictures": pictures_stamp(data, *pair)} for pair in pairs}
    kept = [
        pair
        for pair in pairs
        if done.get(_key(*pair)) == {**card[pair], "missing": 0} and _npy(out, *pair).exists()
    ]
    counts = {pair: len(data.records(*pair)) for pair in pairs}
    zeros = 0
    with progress_bar(console) as progress:
        for pair in (one for one in pairs if one not in kept):
            task = progress.add_task(" ".join(pair), total=counts[pair])
            rows = np.empty((counts[pair], encoder.manifest.dim), dtype=np.float32)
            for start, block in embedded(encoder, data, data.records(*pair), allow_missing):
                rows[start : start + len(block)] = block
                progress.advance(task, len(block))
            zero = int((~rows.any(axis=1)).sum())
            with whole_file(_npy(out, *pair)) as file, file.open("wb") as stream:
                np.save(stream, rows)
            done[_key(*pair)] = {**card[pair], "missing": zero}
            with whole_file(out / "embed.json") as file:
                file.write_text(json.dumps(done, indent=1) + "\n")
            zeros += zero
    were_there = sum(counts[pair] for pair in kept)
    return Embedded(sum(counts.values()) - were_there, were_there, zeros)


def embedded(
    encoder: Encoder, data: Dataset, records: Sequence[Record], allow_missing: bool = False
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Blocks of embeddings with the row that each starts at; the next is decoded meanwhile."""
    preprocessing = encoder.manifest.preprocessing
    starts = list(range(0, len(records), _BATCH))
    with ThreadPoolExecutor() as pool:

        def decoding(start: int) -> list[Future[NDArray[np.uint8] | None]]:
            batch = records[start : start + _BATCH]
            return [pool.submit(_read, data.image(one), preprocessing, allow_missing) for one in batch]

        coming = decoding(0)
        for start in starts:
            pixels = [future.result() for future in coming]
            coming = decoding(start + _BATCH)
            there = [row for row, one in enumerate(pixels) if one is not None]
            rows = np.zeros((len(pixels), encoder.manifest.dim), dtype=np.float32)
            if there:
                rows[there] = encoder.encode(np.stack([one for one in pixels if one is not None]))
            yield start, rows


def score_split(
    encoder: Encoder, data: Dataset, split: str, name: str, console: Console
) -> dict[str, DomainScore]:
    """R@1 and mMP@5 of each domain that has queries, over their merged index. Raises SourceError."""
    domains = require_queries(data, split)
    with progress_bar(console) as progress:

        def embed(domain: str, part: str) -> NDArray[np.float32]:
            records = data.records(domain, part)
            task = progress.add_task(f"{name}: {domain} {part}", total=len(records))
            blocks = [np.empty((0, encoder.manifest.dim), dtype=np.float32)]
            for _, block in embedded(encoder, data, records):
                blocks.append(block)
                progress.advance(task, len(block))
            return np.concatenate(blocks)

        return evaluate(data, domains, split, embed).domains


def _read(file: Path, preprocessing: Preprocessing, allow_missing: bool) -> NDArray[np.uint8] | None:
    try:
        return read_pixels(file, preprocessing)
    except SourceError:
        if not allow_missing:
            raise
        return None


def _key(domain: str, split: str) -> str:
    return f"{domain}/{split}"


def _npy(out: Path, domain: str, split: str) -> Path:
    return out / domain / f"{split}.npy"


def _done(out: Path) -> dict[str, dict[str, Any]]:
    """`embed.json`; one that cannot be read vouches for nothing."""
    try:
        return dict(json.loads((out / "embed.json").read_text()))
    except (OSError, ValueError):
        return {}
