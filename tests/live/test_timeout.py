"""The longest that a request may take: kept, and forgotten with the request."""

import asyncio
import json
import weakref
from collections.abc import Awaitable, Callable
from contextvars import ContextVar

import pytest
import uvloop
from starlette.types import Message, Receive, Scope, Send

from service.http.timeout import Deadline, Timeout

HTTP = {"type": "http"}


async def nothing() -> Message:
    await asyncio.sleep(60)
    return {"type": "http.disconnect"}


async def answered(timeout_s: float, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await Timeout(app, timeout_s)(HTTP, nothing, send)
    return sent


async def ok(_: Scope, __: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def test_what_is_not_done_in_time_gets_a_problem() -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(60)
        await ok(scope, receive, send)

    start, body = await answered(0.05, slow)
    assert start["status"] == 504
    assert json.loads(body["body"])["type"] == "deadline-exceeded"


async def test_the_clients_deadline_is_for_every_route() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.1)
        await ok(scope, receive, send)

    now = asyncio.get_running_loop().time()
    for deadline in (now + 0.05, now + 60, None):
        await Deadline(slow)({**HTTP, "state": {"deadline": deadline}}, nothing, send)
    assert [message["status"] for message in sent if "status" in message] == [504, 200, 200]


async def test_an_answer_that_has_begun_may_take_its_time() -> None:
    async def long(scope: Scope, receive: Receive, send: Send) -> None:
        await ok(scope, receive, send)
        await asyncio.sleep(0.1)
        await send({"type": "http.response.body"})

    assert [message["type"] for message in await answered(0.05, long)] == [
        "http.response.start",
        "http.response.body",
    ]


async def test_a_timeout_of_the_app_stays_its_own() -> None:
    async def fails(_: Scope, __: Receive, ___: Send) -> None:
        raise TimeoutError("another")

    with pytest.raises(TimeoutError, match="another"):
        await answered(60, fails)


def test_nothing_of_a_request_outlives_it() -> None:
    class Something:
        pass

    held: ContextVar[Something] = ContextVar("held")

    async def request() -> "weakref.ref[Something]":
        something = Something()
        held.set(something)
        await answered(600, ok)
        return weakref.ref(something)

    async def both() -> None:
        left = await asyncio.create_task(request())  # with a context of its own, as uvicorn does
        await asyncio.sleep(0)
        assert left() is None

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(both())
