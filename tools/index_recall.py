"""Print ann_recall of the embedded index by the query's domain and the filter's, on clustered vectors.

Builds an index with a graph in FOLDER unless there is one, deletes a share of its items if requested, and
compares searches at default settings with exact ones by NumPy.

PYTHONPATH=. python tools/index_recall.py FOLDER [--items 200000] [--quantization none] [--queries 10]
    [--k 1,10,100] [--filters 'all;gldv2;gldv2,met'] [--deleted 0.8]
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.index.base import Item, Query
from service.index.edge import EdgeIndex, build_graph
from service.index.planner import search

DIM = 64
# Items of UnED's domains, and items per class as far as it matters for the vectors.
DOMAINS = {
    "cars": (8131, 83),
    "food2k": (9979, 50),
    "gldv2": (761757, 8),
    "inat": (136093, 30),
    "inshop": (12612, 4),
    "met": (397121, 2),
    "rp2k": (10931, 10),
    "sop": (60502, 5),
}
Rows = NDArray[np.float32]


def unit(rows: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Scale rows to unit norm."""
    scaled: NDArray[np.floating[Any]] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return scaled


def clustered(items: int, queries: int, seed: int = 0) -> tuple[Rows, list[str], dict[str, Rows]]:
    """Return vectors and their domains, shuffled, and queries of each domain.

    A domain has a centre, its classes lie around it, and their items around these.
    """
    rng = np.random.default_rng(seed)
    total = sum(size for size, _ in DOMAINS.values())
    counts = {name: max(20, round(items * size / total)) for name, (size, _) in DOMAINS.items()}
    counts["gldv2"] += items - sum(counts.values())
    centres = unit(rng.normal(size=(len(DOMAINS), DIM)))
    rows, names, drawn_queries = [], [], {}
    for centre, (name, (_, per_class)) in zip(centres, DOMAINS.items(), strict=True):
        classes = unit(0.5 * centre + unit(rng.normal(size=(max(5, counts[name] // per_class), DIM))))

        def draw(count: int, classes: NDArray[np.floating[Any]] = classes) -> Rows:
            chosen = classes[rng.integers(len(classes), size=count)]
            return unit(chosen + 0.6 * unit(rng.normal(size=(count, DIM)))).astype(np.float32)

        rows.append(draw(counts[name]))
        names += [name] * counts[name]
        drawn_queries[name] = draw(100)[:queries]  # the items do not depend on the number of queries
    order = rng.permutation(items)
    return np.concatenate(rows)[order], [names[n] for n in order], drawn_queries


def fill(folder: Path, rows: Rows, domains: list[str], quantization: Any, from_items: int) -> None:
    """Create an index of these rows, whose ids are their numbers, with a graph."""
    index = EdgeIndex(folder, DIM, "m", quantization)
    for start in range(0, len(rows), 5000):
        numbers = range(start, min(len(rows), start + 5000))
        index.upsert([Item(f"{n:07}", domains[n], "l", rows[n]) for n in numbers])
    index.close()
    build_graph(folder, DIM, quantization, from_items)


def nearest(rows: Rows, mask: NDArray[np.bool_], query: Rows, k: int) -> set[str]:
    """Return the ids of the k nearest of the rows in `mask`."""
    scores = np.where(mask, rows @ query, -2)
    best = np.argpartition(-scores, k + 8)[: k + 8]
    exact = rows[best].astype(np.float64) @ query.astype(np.float64)
    ranked = best[np.argsort(-np.where(mask[best], exact, -2))][:k]
    return {f"{n:07}" for n in ranked if mask[n]}


def matrix_row(
    index: EdgeIndex,
    rows: Rows,
    mask: NDArray[np.bool_],
    queries: dict[str, Rows],
    filter_: tuple[str, ...],
    k: int,
) -> tuple[dict[str, float], float, int]:
    """Return ann_recall@k by the query's domain, the CPU milliseconds of a search, and the short answers."""
    recalls, cpu_s, short = {}, 0.0, 0
    for name, vectors in queries.items():
        shared = expected = 0
        for vector in vectors:
            truth = nearest(rows, mask, vector, k)
            start = time.process_time()
            hits = search(index, Query(vector, k, filter_))
            cpu_s += time.process_time() - start
            shared += len(truth & {hit.item.id for hit in hits})
            expected += len(truth)
            short += len(hits) < len(truth)
        recalls[name] = shared / expected
    return recalls, cpu_s * 1e3 / sum(map(len, queries.values())), short


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=10, help="of each domain, at most 100")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--k", default="1,10,100")
    parser.add_argument("--filters", default=";".join(["all", *DOMAINS]))
    parser.add_argument("--deleted", type=float, default=0, help="share of the items")
    arguments = parser.parse_args()
    rows, domains, queries = clustered(arguments.items, arguments.queries)
    if not arguments.folder.exists():
        fill(arguments.folder, rows, domains, arguments.quantization, min(40_000, arguments.items))
    index = EdgeIndex(arguments.folder, DIM, "m", arguments.quantization)
    order = np.random.default_rng(1).permutation(arguments.items)
    deleted = order[: round(arguments.deleted * arguments.items)]
    for start in range(0, len(deleted), 5000):
        index.delete([f"{n:07}" for n in deleted[start : start + 5000]])
    alive = np.ones(arguments.items, dtype=bool)
    alive[deleted] = False
    print(f"{index.count():,} items, {index.indexed_vectors():,} vectors in a graph")  # noqa: T201
    print(f"{'filter':14}{'items':>8}{'k':>4} short   CPU ms   min  mean  " + " ".join(queries))  # noqa: T201
    for text in arguments.filters.split(";"):
        filter_ = () if text == "all" else tuple(text.split(","))
        mask = alive & np.isin(domains, filter_) if filter_ else alive
        for k in map(int, arguments.k.split(",")):
            recalls, cpu_ms, short = matrix_row(index, rows, mask, queries, filter_, k)
            values = list(recalls.values())
            by_domain = " ".join(f"{value:.3f}" for value in values)
            print(  # noqa: T201
                f"{text:14.14}{mask.sum():8}{k:4}{short:6}{cpu_ms:9.1f}  {min(values):.3f} "
                f"{np.mean(values):.4f}  {by_domain}",
                flush=True,
            )
    index.close()


if __name__ == "__main__":
    main()
