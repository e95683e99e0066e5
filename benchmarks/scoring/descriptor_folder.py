"""A folder of descriptors against a data set: which domains are scored, the scores, and how fast it went."""

import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import DataError
from benchmarks.progress import progress_bar
from benchmarks.scoring.evaluation import Described, Scores, SelfExclusion, score, unit
from benchmarks.scoring.measures import MEASURES, DomainScore, mean_over_domains
from benchmarks.scoring.relevance import Labels
from benchmarks.stats.intervals import interval_of, resample

_BLOCK = 65_536  # rows checked together
_SIDE = 1536  # of the matrices whose product says what the machine can do
_TRIES = 2


@dataclass(frozen=True)
class Speed:
    """Of float32 products."""

    gflop_per_s: float
    gflop_per_cpu_s: float  # the same where others use the cores too


@dataclass(frozen=True)
class Scored:
    """What `score_folder` found."""

    scores: Scores
    left_out: dict[str, str]  # domain: why
    speed: Speed  # of the products that an exact search takes, over the time of search and scoring
    peak: Speed  # of a large product on every core, measured before and after


def score_folder(
    data: Dataset, folder: Path, split: str, self_exclusion: SelfExclusion, console: Console
) -> Scored:
    """Score `folder/<domain>/<split>.npy` of all domains that have it. Raises DataError."""
    domains, left_out = _present(data, folder, split)
    queries, gallery, own = {}, {}, {}
    for domain in domains:
        where = data.gallery_split(domain, split)
        queries[domain] = _read(data, folder, domain, split)
        gallery[domain] = queries[domain] if where == split else _read(data, folder, domain, where)
        rows = len(queries[domain].labels)
        own[domain] = np.arange(rows) if where == split else np.full(rows, -1)
    dim = _common_dim(queries, gallery)
    count = sum(len(one.labels) for one in queries.values())
    peak = _peak()
    with progress_bar(console) as progress:
        bar = progress.add_task("scoring the queries", total=count)
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        scores = score(queries, gallery, own, self_exclusion, lambda done: progress.advance(bar, done))
        speed = _speed(
            2.0 * dim * count * sum(len(one.labels) for one in gallery.values()), start_s, start_cpu_s
        )
        progress.update(bar, completed=count)
    return Scored(scores, left_out, speed, max(peak, _peak(), key=lambda one: one.gflop_per_s))


def rounded(scores: Scores) -> Scores:
    """Each domain's values to 3 decimals, as the reference has them before it averages."""

    def of(one: Mapping[str, DomainScore]) -> dict[str, DomainScore]:
        return {
            domain: replace(row, r_at_1=round(row.r_at_1, 3), mmp_at_5=round(row.mmp_at_5, 3))
            for domain, row in one.items()
        }

    return Scores(of(scores.merged), of(scores.separate))


def to_json(scores: Scores) -> dict[str, dict[str, Any]]:
    """`{"merged": {"<domain>": {...}, ..., "mean": {...}}, "separate": {...}}`, shares in [0, 1]."""
    names = ("R@1", "mMP@5", "queries", "without_match")
    return {
        setting: {
            **{domain: {name: row.to_json()[name] for name in names} for domain, row in rows.items()},
            "mean": mean_over_domains(rows),
        }
        for setting, rows in (("merged", scores.merged), ("separate", scores.separate))
    }


def intervals(scores: Scores) -> dict[str, dict[str, Any]]:
    """In the shape of `to_json`: 95 % of each measure, the queries resampled; never rounded."""
    return {"merged": _intervals(scores.merged), "separate": _intervals(scores.separate)}


def _intervals(rows: Mapping[str, DomainScore]) -> dict[str, dict[str, list[float | None]]]:
    resampled = resample({domain: row.values for domain, row in rows.items()})
    return {
        name: {measure: interval_of(means[:, column]).to_json() for column, measure in enumerate(MEASURES)}
        for name, means in (*resampled.domains.items(), ("mean", resampled.mean))
    }


def print_scores(scores: Scores, console: Console) -> None:
    """One line a domain, merged beside separate, in percent."""
    table = Table("domain", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("queries", "gallery", "R@1", "mMP@5", "separate R@1", "mMP@5", "no match", "failed"):
        table.add_column(name, justify="right", no_wrap=True)
    for domain, row in scores.merged.items():
        measured = _percent(row.to_json(), scores.separate[domain].to_json())
        counts = (f"{row.queries:,}", f"{row.gallery:,}")
        table.add_row(domain, *counts, *measured, f"{row.without_match:,}", f"{row.failed:,}")
    table.add_section()
    rows = scores.merged.values()
    totals = [
        f"{sum(getattr(row, name) for row in rows):,}"
        for name in ("queries", "gallery", "without_match", "failed")
    ]
    means = _percent(mean_over_domains(scores.merged), mean_over_domains(scores.separate))
    table.add_row("mean", *totals[:2], *means, *totals[2:])
    console.print(table)
    of_mean = resample({domain: row.values for domain, row in scores.merged.items()}).mean
    spans = {name: interval_of(of_mean[:, column]) for column, name in enumerate(MEASURES)}
    words = (f"{name} [{100 * one.low:.1f}, {100 * one.high:.1f}]" for name, one in spans.items())
    console.print(f"mean, merged gallery, 95 %: {', '.join(words)}", highlight=False)


def _percent(*measured: Mapping[str, float]) -> list[str]:
    return [f"{one[name] * 100:.1f}" for one in measured for name in ("R@1", "mMP@5")]


def _present(data: Dataset, folder: Path, split: str) -> tuple[list[str], dict[str, str]]:
    """Domains with query descriptors of the split; of the data set's others, why they are left out."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    present, left_out = [], {}
    for domain in data.domains:
        if not (folder / domain / f"{split}.npy").exists():
            left_out[domain] = f"{folder} has no {domain}/{split}.npy"
        elif not data.records(domain, split):
            left_out[domain] = f"no {split} queries"
        else:
            present.append(domain)
    if unknown := sorted({file.parent.name for file in folder.glob(f"*/{split}.npy")} - set(data.domains)):
        raise DataError(f"{folder} has descriptors of {', '.join(unknown)}, which {data.root} does not know")
    if not present:
        raise DataError(f"{folder} has no <domain>/{split}.npy of {data.root}'s domains with queries")
    return present, left_out


def _read(data: Dataset, folder: Path, domain: str, split: str) -> Described:
    labels = Labels.of(record.class_ids for record in data.records(domain, split))
    return Described(read_vectors(folder, domain, split, len(labels)), labels)


def _common_dim(queries: Mapping[str, Described], gallery: Mapping[str, Described]) -> int:
    dims = {
        f"{domain}'s {side}": int(one.rows.shape[1])
        for side, of in (("queries", queries), ("gallery", gallery))
        for domain, one in of.items()
    }
    first, dim = next(iter(dims.items()))
    for name, other in dims.items():
        if other != dim:
            raise DataError(f"{first} have {dim} dimensions, {name} {other}: all must agree")
    return dim


def _peak() -> Speed:
    """The best of a few large float32 products, one on each core at once, as the search has them."""
    cores = len(os.sched_getaffinity(0))
    side = np.ones((_SIDE, _SIDE), dtype=np.float32)
    tries = []
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(cores) as pool:
        for _ in range(_TRIES):
            start_s, start_cpu_s = time.perf_counter(), time.process_time()
            list(pool.map(lambda _: side @ side, range(cores)))
            tries.append(_speed(2.0 * cores * _SIDE**3, start_s, start_cpu_s))
    return max(tries, key=lambda one: one.gflop_per_s)


def _speed(flop: float, start_s: float, start_cpu_s: float) -> Speed:
    spent_s, spent_cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    return Speed(flop / spent_s / 1e9, flop / spent_cpu_s / 1e9)


def read_vectors(folder: Path, domain: str, split: str, count: int) -> NDArray[np.float32]:
    """float32 (count, D) of unit norm; zeros stay zeros. Raises DataError, naming the file."""
    file = folder / domain / f"{split}.npy"
    try:
        rows = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{file} does not exist") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{file} is not a NumPy array: {error}") from error
    if not isinstance(rows, np.ndarray) or rows.dtype != np.float32 or rows.ndim != 2 or not rows.shape[1]:
        found = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else "an archive of arrays"
        raise DataError(f"{file} holds {found}, not float32 (N, D)")
    if len(rows) != count:
        raise DataError(f"{file} has {len(rows):,} rows, but {domain}/{split}.json has {count:,}")
    for start in range(0, count, _BLOCK):
        bad = ~np.isfinite(rows[start : start + _BLOCK]).all(axis=1)
        if bad.any():
            raise DataError(f"{file} holds NaN or infinity, first in row {start + int(bad.argmax()):,}")
    return unit(rows)
