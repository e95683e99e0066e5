"""Bodies within their limits, and exchanges that are cancelled, with a `receive` that the test controls."""

import asyncio
import contextlib
from pathlib import Path

import pytest
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from service.core import Core
from service.errors import ImageTooLarge, Overloaded, RequestTimeout
from service.http.envelope import Envelope
from service.http.limits import Body, Intake
from service.inference.budget import Budget
from service.settings import Settings

NO_HEADERS = Headers({})


def sized(length: int) -> Headers:
    return Headers({"content-length": str(length)})


class Client:
    """Sends the given parts of a body, then nothing."""

    def __init__(self, *parts: bytes) -> None:
        self._messages: list[Message] = [
            {"type": "http.request", "body": part, "more_body": True} for part in parts
        ]

    async def receive(self) -> Message:
        if not self._messages:
            await asyncio.Event().wait()
        return self._messages.pop(0)


def intake(max_bytes: int = 100, largest_bytes: int = 1000, timeout_s: float = 30) -> Intake:
    return Intake(max_bytes, largest_bytes, timeout_s, Overloaded)


def test_a_budget_grants_up_to_its_limit() -> None:
    budget = Budget(10)
    assert budget.acquire(6)
    assert budget.acquire(4)
    assert not budget.acquire(1)
    assert budget.acquire(0)
    budget.release(10)
    assert budget.acquire(99)  # above the limit, but alone
    assert not budget.acquire(1)
    budget.release(99)
    assert budget.acquire(1)
    assert not budget.acquire(99)


def test_refused_tickets_are_granted_in_their_order() -> None:
    budget, first, second = Budget(10), object(), object()
    assert budget.acquire(5)
    assert not budget.acquire(9, first)
    assert not budget.acquire(1, second)
    assert not budget.fits(1)
    assert budget.acquire(0)
    budget.withdraw(first)
    assert not budget.fits(1)
    assert budget.acquire(1, second)
    assert budget.acquire(4)


async def test_a_body_above_every_routes_limit_acquires_nothing() -> None:
    entrance, client = intake(), Client()
    with (
        Body(entrance, sized(60), client.receive),
        pytest.raises(ImageTooLarge),
        Body(entrance, sized(1001), client.receive),
    ):
        pass


async def test_stated_lengths_do_not_exhaust_the_budget() -> None:
    """Four idle connections with 256 MB each, of a GB in all, had every upload refused for a minute."""
    entrance = intake(2**30, 2**28)
    with contextlib.ExitStack() as idle:
        for _ in range(4):
            idle.enter_context(Body(entrance, sized(2**28), Client().receive))
        client = Client(b"x" * 10**7)
        with Body(entrance, sized(10**7), client.receive) as body:
            assert len((await body.receive())["body"]) == 10**7


async def test_bytes_that_arrived_are_held() -> None:
    mega = 2**20
    entrance, client = intake(10 * mega, 10 * mega), Client(bytes(6 * mega))
    with Body(entrance, sized(8 * mega), client.receive) as body:
        with Body(entrance, sized(8 * mega), client.receive):
            pass
        await body.receive()
        with pytest.raises(Overloaded), Body(entrance, sized(5 * mega), client.receive):
            pass
        with Body(entrance, sized(4 * mega), client.receive):
            pass
    with Body(entrance, sized(10 * mega), client.receive):  # all of it was released
        pass


async def test_a_body_above_the_budget_is_admitted_alone() -> None:
    entrance, client = intake(), Client(b"x" * 60, b"x" * 100)
    with Body(entrance, sized(160), client.receive) as body:
        for length in (60, 100):
            assert len((await body.receive())["body"]) == length


async def test_a_small_stated_length_is_held_before_it_is_read() -> None:
    entrance, client = intake(), Client(b"x" * 60)
    with Body(entrance, sized(60), client.receive) as body:
        with pytest.raises(Overloaded), Body(entrance, sized(60), client.receive):
            pass
        assert len((await body.receive())["body"]) == 60  # counted once
        with Body(entrance, sized(40), client.receive):
            pass
    with Body(entrance, sized(100), client.receive):
        pass


async def test_a_body_without_a_length_acquires_budget_as_it_arrives() -> None:
    entrance, client = intake(), Client(b"x" * 50, b"x" * 60)
    with Body(entrance, sized(30), client.receive):
        with Body(entrance, NO_HEADERS, client.receive) as body:
            await body.receive()
            with pytest.raises(Overloaded):
                await body.receive()
        with Body(entrance, sized(70), client.receive):  # what it had acquired was released
            pass


async def test_a_bulk_request_acquires_its_body_before_it_is_read() -> None:
    mega = 2**20
    entrance, client = intake(40 * mega, 20 * mega), Client(bytes(8 * mega), bytes(8 * mega))
    with Body(entrance, sized(16 * mega), client.receive) as body:
        body.admit_bulk()
        with Body(
            entrance, sized(5 * mega), client.receive
        ) as other:  # half of the bytes are for bulk requests
            with pytest.raises(Overloaded, match="bulk"):
                other.admit_bulk()
            other.acquire(
                23 * mega
            )  # the other half is for single images, whatever the bulk request declared
            for _ in range(2):  # full, but the bulk request is not refused any more
                assert len((await body.receive())["body"]) == 8 * mega
    with Body(entrance, sized(20 * mega), client.receive) as body:
        body.admit_bulk()


async def test_a_bulk_request_without_a_length_acquires_a_part_and_more_as_it_arrives() -> None:
    mega = 2**20
    entrance = intake(128 * mega, 100 * mega)  # a part is 2 MB, and all of them share 64
    client = Client(bytes(20 * mega), bytes(30 * mega), b"")
    with Body(entrance, sized(40 * mega), client.receive) as other:
        with Body(entrance, NO_HEADERS, client.receive) as body:
            body.admit_bulk()
            await body.receive()
            with pytest.raises(Overloaded, match="bulk"):
                other.admit_bulk()  # 8 MB are free for smaller ones
            with contextlib.ExitStack() as small:
                for length in (2 * mega,) * 20:
                    small.enter_context(Body(entrance, sized(length), client.receive)).admit_bulk()
                with pytest.raises(Overloaded, match="bulk"):  # 50 MB do not fit
                    await body.receive()
        other.admit_bulk()  # all of it was released


async def test_a_bulk_request_without_a_length_that_is_alone_is_not_refused() -> None:
    mega = 2**20
    entrance = intake(32 * mega, 100 * mega)
    client = Client(*[bytes(10 * mega)] * 5)
    with Body(entrance, NO_HEADERS, client.receive) as body:
        body.admit_bulk()
        for _ in range(5):
            assert len((await body.receive())["body"]) == 10 * mega
        with pytest.raises(Overloaded), Body(entrance, sized(1), client.receive):
            pass


async def test_large_bulk_requests_that_arrive_slowly_leave_room_for_small_ones() -> None:
    """Two slow ones without a Content-Length stopped all others for a minute."""
    mega = 2**20
    entrance, silent = intake(1024 * mega, 256 * mega), Client()
    slow = [(NO_HEADERS, 1, 0), (NO_HEADERS, 1.75, 0), (NO_HEADERS, 1, 250), (NO_HEADERS, 1, 100)]
    slow += [(sized(length * mega), 1, 0) for length in (256, 100, 17)]
    with contextlib.ExitStack() as bodies:
        for headers, weight, arrived in slow:
            client = Client(bytes(arrived * mega))
            with contextlib.suppress(Overloaded):
                body = bodies.enter_context(Body(entrance, headers, client.receive, weight))
                body.admit_bulk()
                await body.receive()
        for headers in (sized(16 * mega), NO_HEADERS) * 2:
            bodies.enter_context(Body(entrance, headers, silent.receive)).admit_bulk()


async def test_a_bulk_request_of_weight_acquires_it_before_its_body_is_read() -> None:
    mega = 2**20
    entrance, client = intake(80 * mega, 20 * mega), Client(bytes(20 * mega))
    with (
        Body(entrance, sized(20 * mega), client.receive, weight=1.75) as body,
        Body(entrance, NO_HEADERS, client.receive) as other,
    ):
        body.admit_bulk()
        with contextlib.suppress(Overloaded):
            while True:
                other.acquire(mega)
        assert len((await body.receive())["body"]) == 20 * mega


async def test_bytes_are_released_when_the_response_starts_unless_they_were_transferred() -> None:
    entrance = intake()
    with Body(entrance, sized(60), Client().receive) as body, Body(entrance, sized(40), Client().receive):
        body.release()
        with Body(entrance, sized(60), Client().receive) as other:
            write = other.transfer()
        with pytest.raises(Overloaded), Body(entrance, sized(1), Client().receive):
            pass
        write.close()
    assert entrance.budget.acquire(100)


async def test_a_slow_body_times_out() -> None:
    with Body(intake(timeout_s=0.05), NO_HEADERS, Client(b"x").receive) as body:
        assert (await body.receive())["body"] == b"x"
        with pytest.raises(RequestTimeout, match=r"0\.05 s"):
            await body.receive()


async def test_a_complete_body_does_not_time_out() -> None:
    messages: list[Message] = [{"type": "http.disconnect"}, {"type": "http.request", "body": b""}]

    async def receive() -> Message:
        await asyncio.sleep(0.1)
        return messages.pop()

    with Body(intake(timeout_s=0.15), NO_HEADERS, receive) as body:
        assert (await body.receive())["type"] == "http.request"
        assert (await body.receive())["type"] == "http.disconnect"


async def test_a_disconnected_client_counts_as_499(tmp_path: Path) -> None:
    core = Core(Settings(data_dir=tmp_path))
    await core.start()
    messages: list[Message] = [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": b"x", "more_body": False},
    ]
    statuses = []

    async def app(scope: Scope, receive: Receive, _: Send) -> None:
        assert await Request(scope, receive).body() == b"x"
        await asyncio.Event().wait()

    async def receive() -> Message:
        return messages.pop()

    async def send(message: Message) -> None:
        statuses.append(message.get("status"))

    scope = {"type": "http", "method": "POST", "path": "/v1/embed", "query_string": b"", "headers": []}
    await Envelope(app, core)(scope, receive, send)
    assert statuses[0] == 499
    assert core.metrics._requests.labels("other", "499")._value.get() == 1
    await core.close()
