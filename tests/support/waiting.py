"""Waiting for a condition. The limit is far beyond what a busy machine needs: only a hang reaches it."""

import asyncio
import time
from collections.abc import Callable

LIMIT_S = 300


async def until(condition: Callable[[], bool]) -> None:
    """Waits in a coroutine, for a condition that another task or thread makes true."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110 (the condition has no event)
            await asyncio.sleep(0.001)


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits in the calling thread."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.01)
