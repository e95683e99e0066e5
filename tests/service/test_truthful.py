"""Answers about stored vectors, after a wrong golden image, and about the index and the model."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from starlette.datastructures import Headers
from starlette.types import Message

from service.client import AsyncClient
from service.core import Core
from service.errors import NotReady
from service.http.app import create_app
from service.http.envelope import Envelope, RequestState
from service.http.handling import Embedder
from service.http.limits import Body, Intake
from service.index import Item
from service.index.edge import EdgeIndex, build_graph
from service.inference.encoder import Encoder
from service.manifest import load_manifest
from service.metrics import IndexItems
from service.settings import Settings
from tests.support.batcher import until
from tests.support.images import encode, noise
from tests.support.live import problem_of

VECTOR = np.full(64, 1 / 8, dtype=np.float32)
IMAGE = encode(noise(1))


async def receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


@asynccontextmanager
async def started(data_dir: Path, **settings: Any) -> AsyncIterator[tuple[Core, httpx.AsyncBaseTransport]]:
    core = Core(Settings(data_dir=data_dir, **settings))
    await core.start()
    yield core, httpx.ASGITransport(Envelope(create_app(core), core))
    await core.close()


async def test_another_models_vectors_have_the_fingerprint_of_their_index(tmp_path: Path) -> None:
    index = EdgeIndex(tmp_path / "items", 64, "another model")
    index.upsert([Item("a", "d", "l", VECTOR)])
    index.close()
    async with (
        started(tmp_path) as (core, transport),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        for method, path in (("GET", "/v1/items/a"), ("GET", "/v1/domains"), ("DELETE", "/v1/items/a")):
            response = await client.request(method, path)
            assert response.status_code == 200, response.text
            assert response.headers["X-Model-Fingerprint"] == "another model"
        embedded = await client.post("/v1/embed", content=IMAGE)
        assert embedded.headers["X-Model-Fingerprint"] == core.manifest.fingerprint
        # The index is checked before the body, which is no image, is read.
        for method, path, body in (
            ("POST", "/v1/search", {"content": b"x"}),
            ("POST", "/v1/search", {"json": {"id": "a"}}),
            ("POST", "/v1/search", {"json": {"embedding": VECTOR.tolist()}}),
            ("PUT", "/v1/items/b?domain=d&label=l", {"content": b"x"}),
            ("POST", "/v1/items", {"json": {"items": 1}}),
        ):
            assert problem_of(await client.request(method, path, **body)) == (409, "fingerprint-mismatch")


async def test_the_cache_keeps_nothing_from_a_wrong_golden_image(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with started(tmp_path, cache_items=9, golden_interval_s=0.3) as (core, _):
        model, right = core.model(), core.model().encoder.encode
        expected = (await model.pipeline.embed(IMAGE)).embedding
        model.pipeline.discard()
        model.pipeline.batcher._encode = lambda pixels: np.roll(right(pixels), 1, axis=1)
        wrong = await model.pipeline.embed(IMAGE)
        state = RequestState("r", "POST", "", Body(Intake(1, 1, 1, core.too_many_bytes), Headers(), receive))
        embedder = Embedder(core, state, model)  # of a request that takes longer than the next check
        assert float(wrong.embedding @ expected) < 0.9
        await until(lambda: not model.golden.matches)
        await model.pipeline.embed(encode(noise(2)))  # as of a request that was admitted before
        with pytest.raises(NotReady):
            await embedder.embed(IMAGE)
        model.pipeline.batcher._encode = right
        await until(lambda: model.golden.matches)
        again = await model.pipeline.embed(IMAGE)
        assert again.cache == "miss"
        np.testing.assert_allclose(again.embedding, expected, atol=1e-5)
        assert (await model.pipeline.embed(encode(noise(2)))).cache == "miss"
    intervals = re.findall(r"indexed --from (\S+) --to (\S+)`", caplog.text)
    assert len(intervals) == 2  # when the check fails, and when it succeeds again
    assert intervals[0][0] == intervals[1][0] < intervals[0][1] < intervals[1][1]


async def test_responses_are_counted_while_the_golden_image_is_wrong(tmp_path: Path) -> None:
    async with (
        started(tmp_path) as (core, transport),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        core.model().golden.matches = False
        assert (await client.get("/v1/info")).status_code == 503
        series = {
            (sample.labels["route"], sample.labels["status"]): sample.value
            for metric in core.metrics._requests.collect()
            for sample in metric.samples
            if sample.name.endswith("_total")
        }
        assert series["other", "503"] == 1


def test_the_domains_are_counted_exactly_in_every_state_of_the_index(tmp_path: Path) -> None:
    rng, expected = np.random.default_rng(0), dict[str, str]()
    index = EdgeIndex(tmp_path / "items", 64, "m")
    for round_number in range(6):
        ids = [f"{n}" for n in rng.integers(0, 3000, 1500)]
        items = {i: Item(i, f"d{rng.integers(0, 40)}", "l", VECTOR) for i in ids}
        index.upsert(list(items.values()))  # new items, and items that move to another domain
        expected |= {item.id: item.domain for item in items.values()}
        gone = [f"{n}" for n in rng.integers(0, 3000, 300)]
        index.delete(gone)
        expected = {i: domain for i, domain in expected.items() if i not in gone}
        assert index.domains() == dict(sorted(Counter(expected.values()).items()))
        if round_number in (2, 4):
            index.close()
            if round_number == 4:
                build_graph(tmp_path / "items", 64, "none", 1)
            index = EdgeIndex(tmp_path / "items", 64, "m")
            assert index.domains() == dict(sorted(Counter(expected.values()).items()))
    index.close()


async def test_domains_are_paged(tmp_path: Path) -> None:
    async with started(tmp_path) as (core, transport):
        items = [Item(f"{n}", f"d{n:05}", "l", VECTOR) for n in range(12_000)]
        for start in range(0, len(items), 1000):
            await core.index.upsert(items[start : start + 1000])
        async with AsyncClient("http://localhost", transport=transport) as client:
            assert await client.domains() == {item.domain: 1 for item in items}
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            first = (await http.get("/v1/domains")).json()
            assert (len(first["domains"]), first["next"]) == (1000, "d00999")
            last = (await http.get("/v1/domains", params={"after": "d11997", "limit": 2})).json()
            assert last == {"domains": [{"name": f"d{n}", "items": 1} for n in (11998, 11999)]}


def test_the_largest_domains_have_a_series() -> None:
    counts = {f"d{n}": n for n in range(1, 101)}
    metrics = {metric.name: metric.samples for metric in IndexItems(counts).collect()}
    assert [sample.value for sample in metrics["uie_index_items"]] == [5050]
    assert [sample.value for sample in metrics["uie_index_domains"]] == [100]
    largest = {sample.labels["domain"]: sample.value for sample in metrics["uie_index_domain_items"]}
    assert largest == {f"d{n}": n for n in range(81, 101)}


async def test_a_fixed_batch_is_respected_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, other = Settings().model_folders[0], tmp_path / "other"
    graph = onnx.load(folder / "model.onnx")
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(graph, tmp_path / "model.onnx")
    shutil.copytree(folder, other)
    renamed = load_manifest(folder).model_copy(update={"name": "other"})
    (other / "manifest.json").write_text(renamed.model_dump_json())

    def fixed(model: Path, *arguments: Any) -> Encoder:
        return Encoder(model if model == other else tmp_path, *arguments)

    models = (str(folder), str(other))
    core = Core(Settings(model=models, data_dir=tmp_path / "index", max_batch=8), fixed)
    await core.start()
    embedded = await asyncio.gather(*(core.model().pipeline.embed(encode(noise(n))) for n in range(6)))
    transport = httpx.ASGITransport(Envelope(create_app(core), core))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        info = (await client.get("/v1/info")).json()
        assert (info["batch"], info["limits"]["max_batch"]) == (1, 1)
        batches = [(model["batch"], model["max_batch"]) for model in info["models"]]
        assert batches == [(1, 1), ("dynamic", 8)]
    await core.close()
    assert len(embedded) == 6
    assert "fixed batch of 1" in caplog.text
    assert "inference failed" not in caplog.text


@pytest.mark.integration
def test_the_command_lists_the_items_of_an_interval(tmp_path: Path) -> None:
    fingerprint = load_manifest(Settings().model_folders[0]).fingerprint
    index = EdgeIndex(tmp_path / "items", 64, fingerprint)
    index.upsert([Item("a\n1", "d", "l", VECTOR)])
    index.close()

    def listed(*arguments: str) -> list[Any]:
        command = [sys.executable, "-m", "service", "indexed", *arguments]
        environment = {**os.environ, "UIE_DATA_DIR": str(tmp_path)}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return [json.loads(line) for line in result.stdout.splitlines()]

    [item] = listed("--from", "2026-01-01", "--to", "2999-01-01T00:00:00+02:00")
    assert (item["id"], item["domain"]) == ("a\n1", "d")
    assert listed("--from", item["indexed_at"], "--to", item["indexed_at"]) == [item]
    assert listed("--from", "2025-01-01", "--to", "2025-12-31T23:59:59") == []
