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
    """Receives nothing: the client stays connected."""
    await asyncio.Event().wait()
    return {"type": "http.disconnect"}


async def responded(
    timeout_s: float, app: Callable[[Scope, Receive, Send], Awaitable[None]]
) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await Timeout(app, timeout_s)(HTTP, nothing, send)
    return sent


async def ok(_: Scope, __: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def test_an_overdue_request_gets_a_problem() -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()
        await ok(scope, receive, send)

    start, body = await responded(0.05, slow)
    assert start["status"] == 504
    assert json.loads(body["body"])["type"] == "deadline-exceeded"


async def test_the_clients_deadline_applies_to_every_route() -> None:
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


async def test_a_response_that_has_started_is_not_cut_off() -> None:
    async def long(scope: Scope, receive: Receive, send: Send) -> None:
        await ok(scope, receive, send)
        await asyncio.sleep(0.1)
        await send({"type": "http.response.body"})

    assert [message["type"] for message in await responded(0.05, long)] == [
        "http.response.start",
        "http.response.body",
    ]


async def test_a_timeout_error_of_the_app_is_not_replaced() -> None:
    async def fails(_: Scope, __: Receive, ___: Send) -> None:
        raise TimeoutError("another")

    with pytest.raises(TimeoutError, match="another"):
        await responded(600, fails)


def test_no_object_of_a_request_outlives_it() -> None:
    class Resource:
        pass

    held: ContextVar[Resource] = ContextVar("held")

    async def request() -> "weakref.ref[Resource]":
        resource = Resource()
        held.set(resource)
        await responded(600, ok)
        return weakref.ref(resource)

    async def run() -> None:
        reference = await asyncio.create_task(request())  # in a separate context, as in uvicorn
        await asyncio.sleep(0)
        assert reference() is None

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
