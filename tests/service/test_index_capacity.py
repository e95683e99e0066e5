"""The index has one thread and a bounded queue: calls above the limit are refused."""

import asyncio
import contextlib
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.core import Core
from service.errors import Overloaded
from service.http.app import create_app
from service.http.envelope import Envelope
from service.index import Item
from service.index.edge import EdgeIndex
from service.settings import Settings
from tests.support.indexes import occupied, worker_of


class Held(EdgeIndex):
    """Counts only once `gate` is set."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, 8, "model-a")
        self.gate = threading.Event()

    def count(self) -> int:
        assert self.gate.wait(20)
        return super().count()


@pytest.fixture
def index(tmp_path: Path) -> Held:
    return Held(tmp_path / "items")


async def test_calls_above_the_limit_are_refused_and_counted(index: Held) -> None:
    refused: list[int] = []
    worker = await worker_of(index, "model-a", 3, lambda: refused.append(1))
    waiting = [asyncio.create_task(worker.counts()) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as error:
        await worker.domains()
    assert error.value.members == {"limit": 3, "retry_after_s": 1}
    assert refused == [1]
    waiting[2].cancel()  # its client disconnected, so its slot is free
    await asyncio.wait([waiting[2]])
    admitted = asyncio.create_task(worker.domains())
    await asyncio.sleep(0)
    index.gate.set()
    assert await asyncio.gather(*waiting[:2], admitted) == [(0, 0), (0, 0), {}]
    assert await worker.domains() == {}
    await worker.close()


async def test_a_disconnect_does_not_cancel_a_write(index: Held) -> None:
    worker = await worker_of(index, "model-a", 3)
    item = Item("a", "d", "l", np.eye(8, dtype=np.float32)[0])
    counting = asyncio.create_task(worker.counts())  # keeps the thread busy
    writing = asyncio.create_task(worker.upsert([item]))
    await asyncio.sleep(0)
    writing.cancel()
    await asyncio.wait([writing])
    index.gate.set()
    await counting
    assert await worker.domains() == {"d": 1}
    await worker.close()


async def test_the_items_are_counted_every_few_seconds_at_most(tmp_path: Path) -> None:
    core = Core(Settings(data_dir=tmp_path / "index"))
    await core.start()
    assert await core.item_counts() == {}
    await core.index.upsert([Item("a", "d", "l", np.eye(64, dtype=np.float32)[0])])
    assert await core.item_counts() == {}
    assert await core.item_counts(max_age_s=0) == {"d": 1}
    await core.close()


async def test_the_number_of_items_is_no_metric_before_it_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    core = Core(Settings(data_dir=tmp_path / "index"))
    await core.start()
    transport = httpx.ASGITransport(Envelope(create_app(core), core))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        async with occupied(core.index):
            scrapes = [await client.get("/metrics") for _ in range(2)]  # one waits in vain, one does not wait
        assert [("uie_index" in scrape.text, scrape.status_code) for scrape in scrapes] == [(False, 200)] * 2
        await core.item_counts(max_age_s=0)
        assert "uie_index_items 0.0\n" in (await client.get("/metrics")).text
    await core.close()


async def test_concurrent_scrapes_share_a_count(tmp_path: Path) -> None:
    core = Core(Settings(data_dir=tmp_path / "index"))
    await core.start()
    await core.index.upsert([Item("a", "d", "l", np.eye(64, dtype=np.float32)[0])])
    assert await asyncio.gather(*(core.item_counts() for _ in range(2))) == [{"d": 1}] * 2
    async with occupied(core.index):
        assert await core.item_counts(max_age_s=0) == {"d": 1}  # waits in vain
        writing = asyncio.create_task(core.index.delete("a"))
        counting = core._counting
    assert await writing
    assert counting
    await counting  # its result is kept for the next scrape
    assert await core.item_counts() == {"d": 1}
    assert await core.item_counts(max_age_s=0) == {}
    await core.close()


async def test_items_of_an_admitted_request_wait(index: Held) -> None:
    worker = await worker_of(index, "model-a", 1)
    waiting = asyncio.create_task(worker.counts())
    await asyncio.sleep(0)
    item = Item("a", "d", "l", np.full(8, 8**-0.5, dtype=np.float32))
    with pytest.raises(Overloaded):
        await worker.upsert([item])
    admitted = asyncio.create_task(worker.upsert([item], contextlib.nullcontext()))
    await asyncio.sleep(0)
    index.gate.set()
    assert await admitted == [True]
    await waiting
    await worker.close()
