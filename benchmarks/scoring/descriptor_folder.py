"""Scores of a folder of descriptors, and the speed of the search."""

import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from threadpoolctl import threadpool_limits

from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import DataError
from benchmarks.progress import progress_bar
from benchmarks.scoring.evaluation import Scores, SelfExclusion, UnitVectors, score, unit
from benchmarks.scoring.measures import COUNTS, MEASURES, DomainScore, mean_over_domains
from benchmarks.stats.intervals import interval_of, resample
from benchmarks.tables import Table

_BLOCK = 65_536  # rows checked together
_SIDE = 1536  # rows and columns of the matrices whose product gives the machine's peak
_TRIES = 2


@dataclass(frozen=True, order=True)
class Speed:
    """Rate of float32 products."""

    gflop_per_s: float
    gflop_per_cpu_s: float  # comparable between runs on a busy machine


@dataclass(frozen=True)
class FolderScores:
    """Scores of a folder of descriptors."""

    scores: Scores
    left_out: dict[str, str]  # reason by domain
    speed: Speed  # products of an exact search per time of search and scoring
    peak: Speed  # a large product on every core, measured before and after


def score_folder(
    data: Dataset, folder: Path, split: str, self_exclusion: SelfExclusion, console: Console
) -> FolderScores:
    """Score `folder/<domain>/<split>.npy` of all domains that have the file. Raises DataError."""
    domains, left_out = _domains_to_score(data, folder, split)
    queries, gallery, own_rows = {}, {}, {}
    for domain in domains:
        gallery_split = data.gallery_split(domain, split)
        queries[domain] = gallery[domain] = _read(data, folder, domain, split)
        own_rows[domain] = np.arange(len(queries[domain].rows))
        if gallery_split != split:
            gallery[domain] = _read(data, folder, domain, gallery_split)
            own_rows[domain] = np.full(len(queries[domain].rows), -1)
    dim = _common_dim(queries, gallery)
    query_count, gallery_count = (
        sum(len(vectors.rows) for vectors in side.values()) for side in (queries, gallery)
    )
    peak = _peak()
    with progress_bar(console) as progress:
        bar = progress.add_task("scoring the queries", total=query_count)
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        scores = score(queries, gallery, own_rows, self_exclusion, lambda count: progress.advance(bar, count))
        speed = _speed(2.0 * dim * query_count * gallery_count, start_s, start_cpu_s)
        progress.update(bar, completed=query_count)
    return FolderScores(scores, left_out, speed, max(peak, _peak()))


def rounded(scores: Scores) -> Scores:
    """Round each domain's means to 3 decimals, as the reference does before it averages them."""
    return scores.map(
        lambda rows: {
            domain: replace(row, r_at_1=round(row.r_at_1, 3), mmp_at_5=round(row.mmp_at_5, 3))
            for domain, row in rows.items()
        }
    )


def to_json(scores: Scores) -> dict[str, dict[str, Any]]:
    """`{"merged": {"<domain>": {...}, ..., "mean": {...}}, "separate": {...}}`, shares in [0, 1]."""
    names = ("R@1", "mMP@5", "queries", "without_match")
    return vars(
        scores.map(
            lambda rows: {
                **{domain: {name: row.to_json()[name] for name in names} for domain, row in rows.items()},
                "mean": mean_over_domains(rows),
            }
        )
    )


def intervals(scores: Scores) -> dict[str, dict[str, Any]]:
    """95 % intervals of each measure in the shape of `to_json`, never rounded."""

    def of_setting(rows: Mapping[str, DomainScore]) -> dict[str, dict[str, list[float | None]]]:
        resampled = resample({domain: row.values for domain, row in rows.items()})
        return {
            name: dict(zip(MEASURES, (interval_of(column).to_json() for column in means.T), strict=True))
            for name, means in (*resampled.domains.items(), ("mean", resampled.mean))
        }

    return vars(scores.map(of_setting))


def print_scores(scores: Scores, console: Console) -> None:
    """Print a table of percentages, one row per domain, and the intervals of the means."""
    columns = ("domain", "queries", "gallery", "R@1", "mMP@5", "separate R@1", "mMP@5", "no match", "failed")

    def cells(name: str, merged: Mapping[str, float], separate: Mapping[str, float]) -> list[str]:
        queries, gallery, without_match, failed = (f"{merged[count]:,}" for count in COUNTS)
        shares = [f"{100 * side[measure]:.1f}" for side in (merged, separate) for measure in MEASURES]
        return [name, queries, gallery, *shares, without_match, failed]

    merged = {domain: row.to_json() for domain, row in scores.merged.items()}
    rows = [cells(domain, row, scores.separate[domain].to_json()) for domain, row in merged.items()]
    totals = {count: sum(row[count] for row in merged.values()) for count in COUNTS}
    means = mean_over_domains(scores.merged), mean_over_domains(scores.separate)
    Table(columns, rows, footer=cells("mean", {**totals, **means[0]}, means[1])).print(console)
    drawn = resample({domain: row.values for domain, row in scores.merged.items()}).mean
    spans = [
        f"{name} [{100 * end.low:.1f}, {100 * end.high:.1f}]"
        for name, end in zip(MEASURES, map(interval_of, drawn.T), strict=True)
    ]
    console.print(f"mean, merged gallery, 95 %: {', '.join(spans)}", highlight=False)


def _domains_to_score(data: Dataset, folder: Path, split: str) -> tuple[list[str], dict[str, str]]:
    """Domains that have queries and their descriptors; by other domain, the reason to leave it out."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    domains, left_out = [], {}
    for domain in data.domains:
        if not (folder / domain / f"{split}.npy").exists():
            left_out[domain] = f"{folder} has no {domain}/{split}.npy"
        elif not data.records(domain, split):
            left_out[domain] = f"no {split} queries"
        else:
            domains.append(domain)
    if unknown := sorted({file.parent.name for file in folder.glob(f"*/{split}.npy")} - set(data.domains)):
        raise DataError(f"{folder} has descriptors of {', '.join(unknown)}, unknown to {data.root}")
    if not domains:
        raise DataError(f"{folder} has no <domain>/{split}.npy for any domain of {data.root} with queries")
    return domains, left_out


def _read(data: Dataset, folder: Path, domain: str, split: str) -> UnitVectors:
    class_ids = [record.class_ids for record in data.records(domain, split)]
    distinct = {of_row: of_row for of_row in class_ids}  # equal tuples are kept once: UnED has millions
    class_ids = [distinct[of_row] for of_row in class_ids]
    return UnitVectors(read_vectors(folder, domain, split, len(class_ids)), class_ids)


def _common_dim(queries: Mapping[str, UnitVectors], gallery: Mapping[str, UnitVectors]) -> int:
    dims = {
        f"{domain}'s {side}": int(vectors.rows.shape[1])
        for side, by_domain in (("queries", queries), ("gallery", gallery))
        for domain, vectors in by_domain.items()
    }
    (first, dim), *others = dims.items()
    for name, other in others:
        if other != dim:
            raise DataError(f"{first} have {dim} dimensions, {name} {other}: all must agree")
    return dim


def _peak() -> Speed:
    """Speed of the fastest of a few large float32 products, one on each core as in the search."""
    cores = len(os.sched_getaffinity(0))
    matrix = np.ones((_SIDE, _SIDE), dtype=np.float32)
    speeds = []
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(cores) as pool:
        for _ in range(_TRIES):
            start_s, start_cpu_s = time.perf_counter(), time.process_time()
            list(pool.map(lambda _: matrix @ matrix, range(cores)))
            speeds.append(_speed(2.0 * cores * _SIDE**3, start_s, start_cpu_s))
    return max(speeds)


def _speed(flop: float, start_s: float, start_cpu_s: float) -> Speed:
    spent_s, spent_cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    return Speed(flop / spent_s / 1e9, flop / spent_cpu_s / 1e9)


def read_vectors(folder: Path, domain: str, split: str, count: int) -> NDArray[np.float32]:
    """Read float32 (count, D) and normalise the rows; zeros stay zeros. Raises DataError."""
    file = folder / domain / f"{split}.npy"
    try:
        rows = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{file} does not exist") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{file} is not a NumPy array: {error}") from error
    if not isinstance(rows, np.ndarray) or rows.dtype != np.float32 or rows.ndim != 2 or not rows.shape[1]:
        content = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else "an archive of arrays"
        raise DataError(f"{file} holds {content}, not float32 (N, D)")
    if len(rows) != count:
        raise DataError(f"{file} has {len(rows):,} rows, but {domain}/{split}.json has {count:,}")
    for start in range(0, count, _BLOCK):
        bad = ~np.isfinite(rows[start : start + _BLOCK]).all(axis=1)
        if bad.any():
            raise DataError(f"{file} holds NaN or infinity, first in row {start + int(bad.argmax()):,}")
    return unit(rows)
