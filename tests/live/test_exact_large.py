"""200,000 vectors with duplicates and ties through the live service: exact search is NumPy's, to 1e-9."""

from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.datasets.dataset import Record
from benchmarks.scoring.measures import Judge
from benchmarks.targets.process import ServiceProcess, running_service

ITEMS, QUERIES, DOMAINS, CLASSES, K = 200_000, 200, 4, 1000, 10
PER_REQUEST = 1000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    folder = tmp_path_factory.mktemp("large")
    with running_service(folder / "log", data_dir=str(folder / "index")) as service:
        yield service


@pytest.fixture(scope="module")
def rows() -> NDArray[np.float32]:
    """(ITEMS, 64), unit norm: clusters, a fifth of them copies of others, a hundred of one and the same."""
    rng = np.random.default_rng(5)
    centres = rng.normal(size=(CLASSES, 64))
    made = centres[rng.integers(0, CLASSES, ITEMS)] + 0.7 * rng.normal(size=(ITEMS, 64))
    copies = rng.choice(ITEMS, ITEMS // 5, replace=False)
    made[copies] = made[rng.integers(0, ITEMS, ITEMS // 5)]
    made[:100] = made[0]
    units: NDArray[np.float32] = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)
    return units


def record(row: int) -> Record:
    domain = f"d{row % DOMAINS}"
    return Record(f"{domain}/test/{row:07d}", domain, "", (row // 7 % CLASSES,))


def test_live_exact_search_equals_numpy(large: ServiceProcess, rows: NDArray[np.float32]) -> None:
    records = [record(row) for row in range(ITEMS)]
    with httpx.Client(base_url=large.url, timeout=120) as http:
        for start in range(0, ITEMS, PER_REQUEST):
            items = [
                {"id": one.id, "domain": one.domain, "label": "x", "embedding": rows[at].tolist()}
                for at, one in enumerate(records[start : start + PER_REQUEST], start=start)
            ]
            results = http.post("/v1/items", json={"items": items}).raise_for_status().json()["results"]
            assert not [one for one in results if "error" in one]
        asked = [0, 50, *np.random.default_rng(6).integers(0, ITEMS, QUERIES - 2).tolist()]
        found = []
        for row in asked:
            params = {"k": K, "exact": "true", "exclude": records[row].id}
            body = {"embedding": rows[row].tolist()}
            found.append(http.post("/v1/search", params=params, json=body).raise_for_status().json()["hits"])

    wide = rows.astype(np.float64)
    in_order = np.array([one.id for one in records])
    judge = Judge(records)
    of_service, of_numpy = [], []
    for row, hits in zip(asked, found, strict=True):
        scores = wide @ wide[row]
        scores[row] = -np.inf
        near = np.argpartition(-scores, 500)[:500]  # more than any group of equals here
        best = sorted(near.tolist(), key=lambda at: (-scores[at], in_order[at]))[:K]
        assert [hit["score"] for hit in hits] == pytest.approx(scores[best].clip(-1, 1), abs=1e-9)
        of_service.append(judge.score(records[row], [hit["id"] for hit in hits]))
        of_numpy.append(judge.score(records[row], [str(in_order[at]) for at in best]))
    for measure in ("r_at_1", "mmp_at_5"):
        ours, theirs = (np.mean([getattr(one, measure) for one in some]) for some in (of_service, of_numpy))
        assert ours == pytest.approx(theirs, abs=1e-9)
    # Among a hundred equals, those with the smallest ids.
    first = [hit["id"] for hit in found[1]]
    assert first == sorted(one.id for one in records[:100] if one.id != records[50].id)[:K]
