"""The HNSW graph and the quantization of an index, compared with exact search."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from qdrant_client import QdrantClient
from rich.console import Console

from benchmarks.targets.process import running_service
from service.errors import SettingsError, StartupError
from service.index import Item, Query
from service.index.edge import EdgeIndex, build_graph
from service.index.optimise import optimise
from service.index.planner import search
from service.index.server import ServerIndex
from service.manifest import Manifest
from service.settings import Quantization, Settings, load_settings
from tests.support.images import unit
from tests.support.live import hits_of
from tests.support.signals import heeding_ctrl_c

ROOT = Path(__file__).parents[2]
DIM = 64
CLUSTERS = 400
FROM_ITEMS = 1000
TIMEOUT_S = 300  # for a command on a busy machine
Rows = NDArray[np.float32]


def clustered(count: int, seed: int) -> Rows:
    """float32 (count, 64), unit norm, around 400 centres: fifty per centre if count is 20,000."""
    centres = unit(np.random.default_rng(0).normal(size=(CLUSTERS, DIM)))
    rng = np.random.default_rng(seed)
    return unit(centres[rng.integers(CLUSTERS, size=count)] + rng.normal(size=(count, DIM)) * 0.15)


def items_of(rows: Rows, first: int = 0) -> list[Item]:
    return [Item(str(n), f"d{n % 4}", "l", row) for n, row in enumerate(rows, first)]


def filled(folder: Path, rows: Rows, quantization: Quantization = "none", fingerprint: str = "m") -> None:
    """Create an index of these rows, and close it."""
    index = EdgeIndex(folder, DIM, fingerprint, quantization)
    for start in range(0, len(rows), 5000):
        index.upsert(items_of(rows[start : start + 5000], start))
    index.close()


def ann_recall(index: EdgeIndex, queries: Rows, nearest: NDArray[np.intp], ef: int | None) -> float:
    """Return the share of `nearest`, row numbers (queries, 10), among the hits."""
    count = 0
    for query, expected in zip(queries, nearest, strict=True):
        hits = search(index, Query(query, 10, ef=ef))
        count += len({int(hit.item.id) for hit in hits} & set(expected.tolist()))
    return count / nearest.size


GALLERY, QUERIES = clustered(20_000, 1), clustered(100, 2)
NEAREST = np.argsort(-(QUERIES.astype(np.float64) @ GALLERY.T.astype(np.float64)), axis=1)[:, :10]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of 20,000 vectors; tests build its graph and its quantization as they need."""
    folder = tmp_path_factory.mktemp("graph") / "items"
    filled(folder, GALLERY)
    return folder


def assert_exact_is_exact(index: EdgeIndex) -> None:
    for query, expected in zip(QUERIES, NEAREST, strict=True):
        hits = search(index, Query(query, 10, exact=True, ef=1))
        assert [int(hit.item.id) for hit in hits] == expected.tolist()


@pytest.mark.integration  # builds a large graph, as the next test does
def test_recall_of_a_graph_rises_with_ef(folder: Path) -> None:
    assert build_graph(folder, DIM, "none", FROM_ITEMS) == (20_000, 20_000)
    index = EdgeIndex(folder, DIM, "m")
    low, medium, high = (ann_recall(index, QUERIES, NEAREST, ef) for ef in (1, 64, 512))
    assert low < medium + 0.01
    assert medium < high + 0.01
    assert low < high  # the graph is searched, not all vectors
    assert high > 0.99
    assert_exact_is_exact(index)
    index.close()


@pytest.mark.integration
@pytest.mark.parametrize("quantization", ["scalar-int8", "turbo-8bit", "turbo-4bit"])
def test_quantized_candidates_are_scored_with_the_stored_vectors(
    folder: Path, quantization: Quantization
) -> None:
    build_graph(folder, DIM, quantization, FROM_ITEMS)
    index = EdgeIndex(folder, DIM, "m", quantization)
    assert index.quantization == quantization
    assert ann_recall(index, QUERIES, NEAREST, 512) >= 0.97
    assert_exact_is_exact(index)
    best = search(index, Query(GALLERY[7], 1))[0]
    assert best.score == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(best.item.embedding, GALLERY[7])  # bit for bit
    index.close()


def test_items_changed_after_the_graph_was_built_are_found_correctly(tmp_path: Path) -> None:
    gallery, later = clustered(2000, 1), clustered(50, 3)
    filled(tmp_path, gallery)
    build_graph(tmp_path, DIM, "scalar-int8", FROM_ITEMS)
    index = EdgeIndex(tmp_path, DIM, "m", "scalar-int8")
    index.upsert(items_of(later, 2000))
    index.upsert([replace(items_of(gallery[:1])[0], domain="moved", embedding=-gallery[0])])
    index.delete(["1"])
    assert (index.count(), index.indexed_vectors()) == (2049, 2000)  # two of them removed from the graph
    for n, row in enumerate(later, 2000):
        assert search(index, Query(row, 1))[0].item.id == str(n)
    assert search(index, Query(-gallery[0], 1))[0].item.domain == "moved"
    assert {hit.item.id for hit in search(index, Query(gallery[1], 20))}.isdisjoint({"0", "1"})
    in_domain = search(index, Query(later[0], 100, domains=("d1",)))
    assert {hit.item.domain for hit in in_domain} == {"d1"}
    assert len(in_domain) == 100
    index.close()
    assert build_graph(tmp_path, DIM, "none", 1) == (2049, 2049)


@pytest.mark.parametrize(("from_items", "in_graph"), [(2000, 2000), (2004, 0)])
def test_small_galleries_get_no_graph(tmp_path: Path, from_items: int, in_graph: int) -> None:
    filled(tmp_path, clustered(2000, 1))
    build_graph(tmp_path, DIM, "none", 1)
    assert build_graph(tmp_path, DIM, "none", from_items) == (2000, in_graph)


def test_an_index_of_another_quantization_is_refused_until_converted(tmp_path: Path) -> None:
    filled(tmp_path, clustered(300, 1), "turbo-8bit")
    with pytest.raises(StartupError, match=r"turbo-8bit.*none.*optimise"):
        EdgeIndex(tmp_path, DIM, "m")
    build_graph(tmp_path, DIM, "none", FROM_ITEMS)
    assert not list(tmp_path.rglob("quantized*"))
    index = EdgeIndex(tmp_path, DIM, "m")
    assert index.count() == 300
    index.close()


def test_an_older_index_has_no_quantization(tmp_path: Path) -> None:
    filled(tmp_path, clustered(10, 1))
    (tmp_path / "index.json").write_text('{"fingerprint": "m"}')
    index = EdgeIndex(tmp_path, DIM, "m")
    assert (index.fingerprint, index.quantization) == ("m", "none")
    index.close()


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect", "ignore:Local mode performs exact")
def test_a_server_keeps_its_quantization() -> None:
    client = QdrantClient(":memory:")
    index = ServerIndex(client, "items", DIM, "m", "scalar-int8")
    gallery = clustered(30, 1)
    index.upsert(items_of(gallery))
    assert search(index, Query(gallery[3], 1, ef=16))[0].item.id == "3"
    assert ServerIndex(client, "items", DIM, "m", "scalar-int8").quantization == "scalar-int8"
    with pytest.raises(StartupError, match=r"scalar-int8.*none"):
        ServerIndex(client, "items", DIM, "m")


def command(data_dir: Path, *options: str) -> subprocess.Popen[str]:
    """Start `python -m service optimise` for scalar-int8."""
    return subprocess.Popen(
        [sys.executable, "-m", "service", "optimise", *options],
        cwd=ROOT,
        env={**os.environ, "UIE_DATA_DIR": str(data_dir), "UIE_INDEX_QUANTIZATION": "scalar-int8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_optimise_refuses_servers_missing_and_open_indexes(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no index"):
        optimise(Settings(data_dir=tmp_path), 1, Console())
    with pytest.raises(SettingsError, match="UIE_QDRANT_URL"):
        optimise(Settings(qdrant_url="http://127.0.0.1:9"), 1, Console())
    index = EdgeIndex(tmp_path / "items", DIM, "m")
    before = (tmp_path / "items/shard/edge_config.json").read_bytes()
    _, errors = command(tmp_path).communicate(timeout=TIMEOUT_S)
    assert errors.splitlines()[-1].startswith("service: cannot optimise the index in")
    assert errors.endswith("another process has it open\n")
    assert (tmp_path / "items/shard/edge_config.json").read_bytes() == before
    index.close()


def test_binary_quantization_is_not_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UIE_INDEX_QUANTIZATION", "binary")
    with pytest.raises(SettingsError, match=r"UIE_INDEX_QUANTIZATION: .*binary"):
        load_settings()


def test_ctrl_c_ends_optimise_and_leaves_a_valid_index(folder: Path) -> None:
    build_graph(folder, DIM, "none", 10**6)
    with heeding_ctrl_c():
        process = command(folder.parent, "--from-items", str(FROM_ITEMS))
    while json.loads((folder / "index.json").read_text())["quantization"] == "none":  # not yet building
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode not in (0, 1)
    index = EdgeIndex(folder, DIM, "m", "scalar-int8")
    assert (index.count(), index.indexed_vectors()) == (20_000, 0)
    assert_exact_is_exact(index)
    index.close()


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest) -> Iterator[httpx.Client]:
    """A service over 2,000 vectors, whose graph the command built."""
    root = tmp_path_factory.mktemp("live-graph")
    filled(root / "items", clustered(2000, 1), "scalar-int8", manifest.fingerprint)
    process = command(root, "--from-items", str(FROM_ITEMS), "--json")
    summary = json.loads(process.communicate(timeout=TIMEOUT_S)[0].splitlines()[-1])
    assert summary.pop("took_s") > 0
    assert summary == {"items": 2000, "indexed_vectors": 2000, "quantization": "scalar-int8"}
    with (
        running_service(
            root / "log", data_dir=str(root), index_quantization="scalar-int8", index_ef="32"
        ) as service,
        httpx.Client(base_url=service.url, timeout=60) as client,
    ):
        yield client


def test_info_reports_how_the_index_is_searched(live: httpx.Client) -> None:
    index = live.get("/v1/info").json()["index"]
    assert {name: index[name] for name in ("items", "indexed_vectors", "quantization", "ef")} == {
        "items": 2000,
        "indexed_vectors": 2000,
        "quantization": "scalar-int8",
        "ef": 32,
    }


def test_ef_can_be_chosen_per_search(live: httpx.Client) -> None:
    query = {"embedding": clustered(1, 2)[0].tolist()}
    exact = hits_of(live.post("/v1/search", json=query, params={"exact": "true", "ef": "1"}))
    for ef in ("1", "512", "4096"):
        hits = hits_of(live.post("/v1/search", json=query, params={"ef": ef}))
        assert len(hits) == 10
        assert len({hit["id"] for hit in hits} & {hit["id"] for hit in exact}) >= 8
