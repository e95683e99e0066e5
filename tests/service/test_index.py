"""Both back ends against the same expectations, and durability of acknowledged writes after kill -9."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import QdrantClient

from service.errors import FingerprintMismatch, IndexUnavailable, StartupError, UnknownDomain, UnknownItem
from service.index import IndexWorker, Item, Query, VectorIndex
from service.index.base import point_id
from service.index.edge import EdgeIndex
from service.index.planner import search
from service.index.server import ServerIndex
from tests.support.images import unit
from tests.support.indexes import SERVER_URL, delete_collection, server_index, worker_of

DIM = 8

# The in-memory server warns about features that it lacks.
pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect|Local mode performs exact")


def in_memory_server(fingerprint: str = "model-a", client: QdrantClient | None = None) -> ServerIndex:
    """A ServerIndex on qdrant-client's in-memory server."""
    return ServerIndex(client or QdrantClient(":memory:"), "items", DIM, fingerprint)


@pytest.fixture(params=["edge", "stand-in", *(["server"] if SERVER_URL else [])])
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VectorIndex]:
    index: VectorIndex
    match request.param:
        case "edge":
            index = EdgeIndex(tmp_path / "items", DIM, "model-a")
        case "stand-in":
            index = in_memory_server()
        case _:
            index = server_index(DIM, "model-a")
    yield index
    if request.param == "server":
        delete_collection(index)
    index.close()


def vectors(count: int, seed: int = 0) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    return unit(np.random.default_rng(seed).normal(size=(count, DIM)))


def items(count: int) -> list[Item]:
    rows = vectors(count)
    return [Item(f"id/{n}", f"domain{n % 3}", f"label{n % 5}", rows[n], {"n": n}) for n in range(count)]


def test_an_item_is_returned_unchanged(index: VectorIndex) -> None:
    odd = Item('é/\n\0"?#%2F', "art", "", vectors(1)[0], {"deep": {"list": [1, 2.5, None, True, "x"]}})
    index.upsert([odd])
    item = index.get(odd.id)
    assert item is not None
    assert (item.id, item.domain, item.label, item.payload) == (odd.id, "art", "", odd.payload)
    np.testing.assert_array_equal(item.embedding, odd.embedding)  # bit for bit
    assert index.get("unknown") is None


def test_items_are_found_by_the_time_of_their_last_write(index: VectorIndex) -> None:
    gallery, before = items(1005), datetime.now(UTC)  # more than one page
    index.upsert(gallery[:3])
    middle = datetime.now(UTC)
    index.upsert(gallery[2:])
    assert {i.id for i in index.indexed(before, middle)} == {"id/0", "id/1"}
    assert sorted(i.id for i in index.indexed(middle, datetime.now(UTC))) == sorted(i.id for i in gallery[2:])


def test_upsert_replaces(index: VectorIndex) -> None:
    old, new = items(2)
    index.upsert([old])
    index.upsert([Item(old.id, "other", "l", new.embedding)])
    item = index.get(old.id)
    assert item is not None
    assert (item.domain, item.payload) == ("other", {})
    assert index.count() == 1
    assert index.domains() == {"other": 1}


def test_counts_and_deletes(index: VectorIndex) -> None:
    index.upsert(items(10))
    assert index.count() == 10
    assert index.domains() == {"domain0": 4, "domain1": 3, "domain2": 3}
    assert index.upsert(items(3)) == {"id/0", "id/1", "id/2"}
    assert index.delete(["id/1", "nothing"]) == {"id/1"}
    assert index.count() == 9
    assert index.get("id/1") is None
    assert index.fingerprint == "model-a"


@pytest.mark.parametrize("exact", [True, False])
def test_search_agrees_with_numpy(index: VectorIndex, exact: bool) -> None:
    gallery = items(300)
    index.upsert(gallery)
    for query in vectors(5, seed=1):
        scores = np.stack([item.embedding for item in gallery]).astype(np.float64) @ query.astype(np.float64)
        best = np.argsort(-scores)[:10]
        hits = search(index, Query(query, 10, exact=exact))
        assert [hit.item.id for hit in hits] == [gallery[n].id for n in best]
        np.testing.assert_allclose([hit.score for hit in hits], scores[best], rtol=0, atol=1e-12)


def test_search_within_domains_and_with_excluded_ids(index: VectorIndex) -> None:
    gallery = items(60)
    index.upsert(gallery)
    query = gallery[0].embedding
    in_domains = search(index, Query(query, 60, domains=("domain1", "domain2")))
    assert {hit.item.domain for hit in in_domains} == {"domain1", "domain2"}
    assert len(in_domains) == 40
    not_excluded = search(index, Query(query, 60, exclude=("id/0", "id/5", "unknown")))
    assert {hit.item.id for hit in not_excluded} == {item.id for item in gallery} - {"id/0", "id/5"}
    assert search(index, Query(query, 3, domains=("nothing",))) == []


def test_ties_are_sorted_by_id_even_beyond_the_last_hit(index: VectorIndex) -> None:
    row = vectors(1)[0]
    index.upsert([Item(f"same-{n:03d}", "a", "x", row) for n in range(100)])
    index.upsert([Item("other", "a", "x", -row)])
    hits = search(index, Query(row, 5))
    assert [hit.item.id for hit in hits] == [f"same-{n:03d}" for n in range(5)]
    assert all(hit.score == pytest.approx(1, abs=1e-6) and hit.score <= 1 for hit in hits)


def test_search_in_an_empty_index(index: VectorIndex) -> None:
    assert search(index, Query(vectors(1)[0], 5)) == []


def test_point_ids_are_stable() -> None:
    """Data on disk depends on them."""
    assert point_id("cat.jpg") == "0a8465d4-a8de-5622-8fa6-3c0806d15c17"
    assert point_id("cat.jpg") != point_id("cat.jpg ")


def test_edge_reopens_an_existing_index(tmp_path: Path) -> None:
    first = EdgeIndex(tmp_path / "items", DIM, "model-a")
    first.upsert(items(20))
    first.close()
    second = EdgeIndex(tmp_path / "items", DIM, "model-b")
    assert second.count() == 20
    assert second.fingerprint == "model-a"
    assert second.indexed_vectors() == 0  # the serving process never builds a graph
    second.close()


def test_edge_can_be_opened_by_one_process_only(tmp_path: Path) -> None:
    first = EdgeIndex(tmp_path / "items", DIM, "model-a")
    with pytest.raises(StartupError, match="cannot open"):
        EdgeIndex(tmp_path / "items", DIM, "model-a")
    first.close()


def test_edge_recovers_from_an_interrupted_creation(tmp_path: Path) -> None:
    (tmp_path / "items" / "shard.new" / "segments").mkdir(parents=True)
    index = EdgeIndex(tmp_path / "items", DIM, "model-a")
    assert index.count() == 0
    index.close()


WRITER = """
import sys
from pathlib import Path
import numpy as np
from service.index.base import Item
from service.index.edge import EdgeIndex
index = EdgeIndex(Path(sys.argv[1]), 8, "model-a")
row = np.eye(8, dtype=np.float32)
n = 0
while True:
    index.upsert([Item(str(n), "d", "l", row[n % 8], {"n": n})])
    print(n, flush=True)
    n += 1
"""


def test_acknowledged_writes_survive_kill_9(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    acknowledged = 0
    for round_ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "items")],
            cwd=root,
            stdout=subprocess.PIPE,
            text=True,
        ) as writer:
            assert writer.stdout is not None
            for line in writer.stdout:
                acknowledged = max(acknowledged, int(line))
                if acknowledged >= 200 * (round_ + 1):
                    break
            os.kill(writer.pid, signal.SIGKILL)
            acknowledged = max([acknowledged, *(int(line) for line in writer.stdout if line.endswith("\n"))])
    index = EdgeIndex(tmp_path / "items", DIM, "model-a")
    missing = [n for n in range(acknowledged + 1) if index.get(str(n)) is None]
    assert not missing
    index.close()


@pytest.fixture
async def worker(index: VectorIndex) -> IndexWorker:
    return await worker_of(index, "model-a")


async def test_the_worker_reports_new_ids(worker: IndexWorker) -> None:
    first, second, third = items(3)
    assert await worker.upsert([first, second]) == [True, True]
    assert await worker.upsert([second, third]) == [False, True]
    assert (await worker.counts())[0] == 3
    assert await worker.delete(first.id)
    assert not await worker.delete(first.id)
    with pytest.raises(UnknownItem):
        await worker.get(first.id)


async def test_of_equal_ids_in_one_call_the_last_counts(worker: IndexWorker) -> None:
    first, second = items(2)
    assert await worker.upsert([first, Item(first.id, "late", "l", second.embedding)]) == [True, True]
    assert (await worker.get(first.id)).domain == "late"


async def test_the_worker_refuses_unknown_domains(worker: IndexWorker) -> None:
    await worker.upsert(items(3))
    with pytest.raises(UnknownDomain) as refusal:
        await worker.search(Query(vectors(1)[0], 3, domains=("domain0", "nothing")))
    assert json.loads(json.dumps(refusal.value.problem()))["domains"] == ["nothing"]


def test_a_search_among_many_equal_images_is_bounded(index: VectorIndex) -> None:
    row = vectors(1)[0]
    index.upsert([Item(f"same-{n:05d}", "a", "x", row) for n in range(3000)])
    hits = search(index, Query(row, 5))
    assert len(hits) == 5
    assert {hit.score for hit in hits} == {hits[0].score}


async def test_a_domain_whose_items_are_all_excluded_is_known(worker: IndexWorker) -> None:
    first, second = items(2)
    await worker.upsert([first, second])
    assert await worker.search(Query(first.embedding, 3, domains=(first.domain,), exclude=(first.id,))) == []
    assert (await worker.counts())[0] == 2


async def test_an_index_of_another_model_is_neither_searched_nor_written(index: VectorIndex) -> None:
    worker = await worker_of(index, "model-b")
    with pytest.raises(FingerprintMismatch):
        await worker.search(Query(vectors(1)[0], 3))
    with pytest.raises(FingerprintMismatch):
        await worker.upsert(items(1))
    assert await worker.domains() == {}


async def test_an_engine_failure_is_an_unavailable_index(tmp_path: Path) -> None:
    index = EdgeIndex(tmp_path / "items", DIM, "model-a")
    worker = await worker_of(index, "model-a")
    index.close()
    with pytest.raises(IndexUnavailable):
        await worker.search(Query(vectors(1)[0], 3))
