"""The time limit of requests and disconnects: work is cancelled, and released with the request."""

import asyncio
import weakref
from contextvars import ContextVar

import pytest
import uvloop
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import DeadlineExceeded
from service.http.limits import MAX_REQUEST_S, Exchange

HTTP = {"type": "http"}
BODY = {"type": "http.request", "body": b"x", "more_body": False}
PART = {**BODY, "more_body": True}
DISCONNECT = {"type": "http.disconnect"}


async def respond(_: Scope, __: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def read_and_respond(scope: Scope, receive: Receive, send: Send) -> None:
    await Request(scope, receive).body()
    await asyncio.sleep(0.2)
    await respond(scope, receive, send)


async def sent_by(
    app: ASGIApp, *messages: Message, within_s: float | None = None, max_s: float = MAX_REQUEST_S
) -> list[str]:
    """Run an exchange with a client that sends `messages`; return the types of the response's messages."""
    incoming, sent = list(messages), list[str]()

    async def receive() -> Message:
        if not incoming:
            await asyncio.Event().wait()
        return incoming.pop(0)

    async def send(message: Message) -> None:
        sent.append(message["type"])

    deadline = None if within_s is None else asyncio.get_running_loop().time() + within_s
    await Exchange(app, receive, send, deadline).run(HTTP, max_s)
    return sent


@pytest.mark.parametrize(
    ("limits", "detail"),
    [
        ({"within_s": 0.05}, "deadline"),
        ({"max_s": 0.05}, r"within 0\.05 s"),
        ({"within_s": 0.05, "max_s": 60}, "deadline"),
        ({"within_s": 60, "max_s": 0.05}, r"within 0\.05 s"),
    ],
)
async def test_no_response_before_the_deadline_is_an_error(limits: dict[str, float], detail: str) -> None:
    for messages in ([BODY], [PART], []):
        with pytest.raises(DeadlineExceeded, match=detail):
            await sent_by(read_and_respond, *messages, **limits)


@pytest.mark.parametrize("within_s", [None, 60])
async def test_a_response_before_the_deadline_is_sent(within_s: float | None) -> None:
    assert await sent_by(read_and_respond, BODY, within_s=within_s) == ["http.response.start"]


@pytest.mark.parametrize("messages", [[BODY, DISCONNECT], [DISCONNECT], [PART, DISCONNECT]])
async def test_the_work_of_a_disconnected_client_is_cancelled(messages: list[Message]) -> None:
    cancelled = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await read_and_respond(scope, receive, send)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    with pytest.raises(ClientDisconnect):
        await sent_by(app, *messages)
    assert cancelled


@pytest.mark.parametrize("messages", [[], [BODY, DISCONNECT]])
async def test_a_response_that_has_started_is_not_cut_off(messages: list[Message]) -> None:
    async def long(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(scope, receive, send)
        if messages:
            assert (await receive())["type"] == "http.request"
            assert (await receive())["type"] == "http.disconnect"
        await asyncio.sleep(0.1)
        await send({"type": "http.response.body"})

    sent = await sent_by(long, *messages, within_s=0.05)
    assert sent == ["http.response.start", "http.response.body"]


async def test_a_timeout_error_of_the_app_is_not_replaced() -> None:
    async def fails(_: Scope, __: Receive, ___: Send) -> None:
        raise TimeoutError("another")

    with pytest.raises(TimeoutError, match="another"):
        await sent_by(fails)


def test_no_object_of_a_request_outlives_it() -> None:
    class Resource:
        pass

    held: ContextVar[Resource] = ContextVar("held")

    async def request() -> "weakref.ref[Resource]":
        resource = Resource()
        held.set(resource)
        await sent_by(respond, within_s=600)
        return weakref.ref(resource)

    async def run() -> None:
        reference = await asyncio.create_task(request())  # in a separate context, as in uvicorn
        await asyncio.sleep(0)
        assert reference() is None

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
