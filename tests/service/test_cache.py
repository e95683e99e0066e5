"""The cache, with a computation that can be held up: its result counts its runs for the same bytes."""

import asyncio
from collections import Counter

import pytest

from service.errors import UndecodableImage
from service.inference.cache import Cache


class Compute:
    def __init__(self, held: bool = False) -> None:
        self.runs: Counter[bytes] = Counter()
        self.cancelled = 0
        self.gate = asyncio.Event()
        if not held:
            self.gate.set()

    async def __call__(self, data: bytes) -> int:
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.runs[data] += 1
        if data == b"bad":
            raise UndecodableImage("bad")
        return self.runs[data]


async def test_equal_bytes_are_computed_once() -> None:
    cache, compute = Cache[int](9), Compute()
    assert await cache.get(b"a", compute) == (1, "miss")
    assert await cache.get(b"a", compute) == (1, "hit")
    assert await cache.get(b"b", compute) == (1, "miss")


async def test_the_least_recently_used_result_is_dropped() -> None:
    cache, compute = Cache[int](2), Compute()
    for data in (b"a", b"b", b"a", b"c"):
        await cache.get(data, compute)
    assert len(cache) == 2
    assert await cache.get(b"a", compute) == (1, "hit")
    assert await cache.get(b"b", compute) == (2, "miss")


async def test_concurrent_requests_share_one_computation() -> None:
    cache, compute = Cache[int](9), Compute(held=True)
    waiting = [asyncio.create_task(cache.get(b"a", compute)) for _ in range(3)]
    await asyncio.sleep(0)
    compute.gate.set()
    assert await asyncio.gather(*waiting) == [(1, "miss"), (1, "coalesced"), (1, "coalesced")]


async def test_cancelling_one_request_does_not_affect_the_others() -> None:
    cache, compute = Cache[int](9), Compute(held=True)
    first, second = (asyncio.create_task(cache.get(b"a", compute)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    compute.gate.set()
    assert await second == (1, "coalesced")
    assert (compute.cancelled, compute.runs[b"a"]) == (0, 1)


async def test_cancelling_the_last_request_cancels_the_computation() -> None:
    cache, compute = Cache[int](9), Compute(held=True)
    first = asyncio.create_task(cache.get(b"a", compute))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.wait([first])
    second = asyncio.create_task(cache.get(b"a", compute))
    await asyncio.sleep(0.01)
    assert compute.cancelled == 1
    compute.gate.set()
    assert await second == (1, "miss")


async def test_errors_are_shared_but_not_kept() -> None:
    cache, compute = Cache[int](9), Compute(held=True)
    waiting = [asyncio.create_task(cache.get(b"bad", compute)) for _ in range(2)]
    await asyncio.sleep(0)
    compute.gate.set()
    for request in waiting:
        with pytest.raises(UndecodableImage):
            await request
    with pytest.raises(UndecodableImage):
        await cache.get(b"bad", compute)
    assert compute.runs[b"bad"] == 2
    assert len(cache) == 0
