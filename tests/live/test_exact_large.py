"""Exact search over 200,000 vectors with duplicates and ties equals NumPy's, to 1e-9."""

from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.datasets.dataset import Record
from benchmarks.scoring.measures import Judge
from benchmarks.targets.process import ServiceProcess, running_service
from tests.support.waiting import LIMIT_S

ITEMS, QUERIES, DOMAINS, CLASSES, K = 200_000, 200, 4, 1000, 10
PER_REQUEST = 1000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    folder = tmp_path_factory.mktemp("large")
    with running_service(folder / "log", data_dir=str(folder / "index")) as service:
        yield service


@pytest.fixture(scope="module")
def rows() -> NDArray[np.float32]:
    """(ITEMS, 64), unit norm: clusters; a fifth are copies of other rows, the first hundred are equal."""
    rng = np.random.default_rng(5)
    centres = rng.normal(size=(CLASSES, 64))
    values = centres[rng.integers(0, CLASSES, ITEMS)] + 0.7 * rng.normal(size=(ITEMS, 64))
    copies = rng.choice(ITEMS, ITEMS // 5, replace=False)
    values[copies] = values[rng.integers(0, ITEMS, ITEMS // 5)]
    values[:100] = values[0]
    units: NDArray[np.float32] = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    return units


def record(row: int) -> Record:
    domain = f"d{row % DOMAINS}"
    return Record(f"{domain}/test/{row:07d}", domain, "", (row // 7 % CLASSES,))


def test_live_exact_search_equals_numpy(large: ServiceProcess, rows: NDArray[np.float32]) -> None:
    records = [record(row) for row in range(ITEMS)]
    with httpx.Client(base_url=large.url, timeout=LIMIT_S) as http:
        for start in range(0, ITEMS, PER_REQUEST):
            items = [
                {"id": item.id, "domain": item.domain, "label": "x", "embedding": rows[row].tolist()}
                for row, item in enumerate(records[start : start + PER_REQUEST], start=start)
            ]
            results = http.post("/v1/items", json={"items": items}).raise_for_status().json()["results"]
            assert not [result for result in results if "error" in result]
        queries = [0, 50, *np.random.default_rng(6).integers(0, ITEMS, QUERIES - 2).tolist()]
        hits_by_query = []
        for row in queries:
            params = {"k": K, "exact": "true", "exclude": records[row].id}
            body = {"embedding": rows[row].tolist()}
            hits_by_query.append(
                http.post("/v1/search", params=params, json=body).raise_for_status().json()["hits"]
            )

    wide = rows.astype(np.float64)
    ids = np.array([item.id for item in records])
    judge = Judge(records)
    service_scores, numpy_scores = [], []
    for row, hits in zip(queries, hits_by_query, strict=True):
        scores = wide @ wide[row]
        scores[row] = -np.inf
        near = np.argpartition(-scores, 500)[:500]  # more than the largest group of equal vectors
        best = sorted(near.tolist(), key=lambda at: (-scores[at], ids[at]))[:K]
        assert [hit["score"] for hit in hits] == pytest.approx(scores[best].clip(-1, 1), abs=1e-9)
        service_scores.append(judge.score(records[row], [hit["id"] for hit in hits]))
        numpy_scores.append(judge.score(records[row], [str(ids[at]) for at in best]))
    for measure in ("r_at_1", "mmp_at_5"):
        actual, expected = (
            np.mean([getattr(score, measure) for score in scores])
            for scores in (service_scores, numpy_scores)
        )
        assert actual == pytest.approx(expected, abs=1e-9)
    # Of a hundred equal vectors, those with the smallest ids come first.
    first = [hit["id"] for hit in hits_by_query[1]]
    assert first == sorted(item.id for item in records[:100] if item.id != records[50].id)[:K]
