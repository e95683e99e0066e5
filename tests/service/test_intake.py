"""Bodies within their bounds, by a `receive` that the test holds in its hands."""

import asyncio
import contextlib
import threading

import pytest
from starlette.datastructures import Headers
from starlette.types import Message

from service.errors import DeadlineExceeded, ImageTooLarge, Overloaded, RequestTimeout
from service.http.intake import Intake
from service.inference.budget import Budget

NO_HEADERS = Headers({})


def sized(length: int) -> Headers:
    return Headers({"content-length": str(length)})


class Client:
    """Sends what it is told to, and then nothing."""

    def __init__(self, *parts: bytes) -> None:
        self._messages: list[Message] = [
            {"type": "http.request", "body": part, "more_body": True} for part in parts
        ]

    async def receive(self) -> Message:
        if not self._messages:
            await asyncio.sleep(60)
        return self._messages.pop(0)


def intake(max_bytes: int = 100, timeout_s: float = 30) -> Intake:
    return Intake(max_bytes, 1000, timeout_s, lambda: Overloaded("full"))


def test_a_budget_grants_up_to_its_limit() -> None:
    budget = Budget(10)
    with budget.acquired(6), budget.acquired(4):
        assert not budget.acquire(1)
        assert budget.acquire(0)
    assert budget.acquire(10)
    budget.release(10)
    with budget.acquired(99):  # above the limit, but alone
        assert not budget.acquire(1)
    assert budget.acquire(1)
    assert not budget.acquire(99)


def test_a_waiting_thread_acquires_released_budget() -> None:
    budget, entered = Budget(10), threading.Event()

    def wait() -> None:
        with budget.acquired(5):
            entered.set()

    assert budget.acquire(8)
    waiting = threading.Thread(target=wait)
    waiting.start()
    assert not entered.wait(0.1)
    budget.release(8)
    waiting.join(20)
    assert entered.is_set()
    assert budget.acquire(10)  # the thread released its own amount


async def test_what_no_route_would_take_takes_no_room() -> None:
    entrance, client = intake(), Client()
    with (
        entrance.body(sized(60), client.receive, None),
        pytest.raises(ImageTooLarge),
        entrance.body(sized(1001), client.receive, None),
    ):
        pass


async def test_lengths_that_are_only_stated_keep_nobody_out() -> None:
    """Four idle connections with 256 MB each, of a GB in all, had every upload refused for a minute."""
    entrance = Intake(2**30, 2**28, 30, lambda: Overloaded("full"))
    with contextlib.ExitStack() as idle:
        for _ in range(4):
            idle.enter_context(entrance.body(sized(2**28), Client().receive, None))
        client = Client(b"x" * 10**7)
        with entrance.body(sized(10**7), client.receive, None) as receive:
            assert len((await receive())["body"]) == 10**7


async def test_what_has_come_of_a_stated_length_is_held() -> None:
    mega = 2**20
    entrance, client = Intake(10 * mega, 10 * mega, 30, lambda: Overloaded("full")), Client(bytes(6 * mega))
    with entrance.body(sized(8 * mega), client.receive, None) as receive:
        with entrance.body(sized(8 * mega), client.receive, None):
            pass
        await receive()
        with pytest.raises(Overloaded), entrance.body(sized(5 * mega), client.receive, None):
            pass
        with entrance.body(sized(4 * mega), client.receive, None):
            pass
    with entrance.body(sized(10 * mega), client.receive, None):  # all of it is back
        pass


async def test_what_is_larger_than_all_there_is_gets_in_alone() -> None:
    entrance, client = intake(), Client(b"x" * 60, b"x" * 100)
    with entrance.body(sized(160), client.receive, None) as receive:
        for length in (60, 100):
            assert len((await receive())["body"]) == length


async def test_a_small_length_has_its_room_before_anything_is_read() -> None:
    entrance, client = intake(), Client(b"x" * 60)
    with entrance.body(sized(60), client.receive, None) as receive:
        with pytest.raises(Overloaded), entrance.body(sized(60), client.receive, None):
            pass
        assert len((await receive())["body"]) == 60  # counted once
        with entrance.body(sized(40), client.receive, None):
            pass
    with entrance.body(sized(100), client.receive, None):
        pass


async def test_without_a_length_it_takes_room_as_it_comes() -> None:
    entrance, client = intake(), Client(b"x" * 50, b"x" * 60)
    with entrance.body(sized(30), client.receive, None):
        with entrance.body(NO_HEADERS, client.receive, None) as receive:
            await receive()
            with pytest.raises(Overloaded):
                await receive()
        with entrance.body(sized(70), client.receive, None):  # what was taken is back
            pass


async def test_a_slow_body_ends_at_the_first_of_its_two_limits() -> None:
    loop = asyncio.get_running_loop()
    with intake(timeout_s=0.05).body(NO_HEADERS, Client(b"x").receive, loop.time() + 30) as receive:
        assert (await receive())["body"] == b"x"
        with pytest.raises(RequestTimeout, match=r"within 0\.05 s"):
            await receive()
    late = intake().body(NO_HEADERS, Client().receive, loop.time() + 0.05)
    with late as receive, pytest.raises(DeadlineExceeded):
        await receive()


async def test_after_the_body_it_waits_for_the_client_to_go() -> None:
    messages: list[Message] = [{"type": "http.disconnect"}, {"type": "http.request", "body": b""}]

    async def receive() -> Message:
        await asyncio.sleep(0.1)  # longer than a body may take
        return messages.pop()

    with intake(timeout_s=0.15).body(NO_HEADERS, receive, None) as bounded:
        assert (await bounded())["type"] == "http.request"
        assert (await bounded())["type"] == "http.disconnect"
