"""The cache, with work that can be held up: what is made of some bytes is how often it was made."""

import asyncio
from collections import Counter

import pytest

from service.errors import UndecodableImage
from service.inference.cache import Cache


class Work:
    def __init__(self, held: bool = False) -> None:
        self.made: Counter[bytes] = Counter()
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
        self.made[data] += 1
        if data == b"bad":
            raise UndecodableImage("bad")
        return self.made[data]


async def test_the_same_bytes_are_made_once() -> None:
    cache, work = Cache[int](9), Work()
    assert await cache.get(b"a", work) == (1, "miss")
    assert await cache.get(b"a", work) == (1, "hit")
    assert await cache.get(b"b", work) == (1, "miss")


async def test_the_one_not_asked_for_longest_goes() -> None:
    cache, work = Cache[int](2), Work()
    for data in (b"a", b"b", b"a", b"c"):
        await cache.get(data, work)
    assert len(cache) == 2
    assert await cache.get(b"a", work) == (1, "hit")
    assert await cache.get(b"b", work) == (2, "miss")


async def test_who_asks_meanwhile_waits_for_the_same() -> None:
    cache, work = Cache[int](9), Work(held=True)
    asking = [asyncio.create_task(cache.get(b"a", work)) for _ in range(3)]
    await asyncio.sleep(0)
    work.gate.set()
    assert await asyncio.gather(*asking) == [(1, "miss"), (1, "coalesced"), (1, "coalesced")]


async def test_one_who_leaves_takes_nothing_from_the_others() -> None:
    cache, work = Cache[int](9), Work(held=True)
    first, second = (asyncio.create_task(cache.get(b"a", work)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    work.gate.set()
    assert await second == (1, "coalesced")
    assert (work.cancelled, work.made[b"a"]) == (0, 1)


async def test_when_the_last_leaves_the_work_ends_and_nobody_joins_it() -> None:
    cache, work = Cache[int](9), Work(held=True)
    asking = asyncio.create_task(cache.get(b"a", work))
    await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.wait([asking])
    again = asyncio.create_task(cache.get(b"a", work))
    await asyncio.sleep(0.01)
    assert work.cancelled == 1
    work.gate.set()
    assert await again == (1, "miss")


async def test_errors_are_shared_but_not_kept() -> None:
    cache, work = Cache[int](9), Work(held=True)
    asking = [asyncio.create_task(cache.get(b"bad", work)) for _ in range(2)]
    await asyncio.sleep(0)
    work.gate.set()
    for one in asking:
        with pytest.raises(UndecodableImage):
            await one
    with pytest.raises(UndecodableImage):
        await cache.get(b"bad", work)
    assert work.made[b"bad"] == 2
    assert len(cache) == 0
