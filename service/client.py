"""A typed client, for callers in Python: `Client`, and `AsyncClient` with the same methods.

    with Client("http://127.0.0.1:3000") as client:
        hits = client.search(Path("shoe.jpg").read_bytes(), k=5).hits

Both wait and try again where the service answers that it is full (429) or not ready (503), and tell it
how long they will. What fails for single images of `embed_many`, or items of `put_many`, is in their lists,
and is not tried again.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from service import calls
from service.calls import Call, Found, Hit, Item, NewItem, Problem, Vector

__all__ = ["AsyncClient", "Client", "Found", "Hit", "Item", "NewItem", "Problem", "Vector"]

T = TypeVar("T")
P = ParamSpec("P")

_TRIED_AGAIN = (429, 503)
_FIRST_WAIT_S = 0.1
_LONGEST_MS = 9_999_999  # that the service takes as a deadline


def _sync(make: Callable[P, Call[T]]) -> Callable[Concatenate["Client", P], T]:
    @wraps(make)
    def method(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._send(make(*args, **kwargs))

    return method


def _async(make: Callable[P, Call[T]]) -> Callable[Concatenate["AsyncClient", P], Awaitable[T]]:
    @wraps(make)
    async def method(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._send(make(*args, **kwargs))

    return method


class _Patience:
    """How long one call goes on trying."""

    def __init__(self, timeout_s: float) -> None:
        self._ends = time.monotonic() + timeout_s
        self._wait_s = _FIRST_WAIT_S

    def arguments(self, call: Call[T]) -> dict[str, Any]:
        """httpx's, with the time that is left."""
        left_s = max(0.001, self._ends - time.monotonic())
        headers = {
            **call.arguments.get("headers", {}),
            "X-Deadline-Ms": str(int(min(_LONGEST_MS, max(1, left_s * 1e3)))),
        }
        return {**call.arguments, "headers": headers, "timeout": left_s}

    def wait_s(self, answer: httpx.Response) -> float | None:
        """How long to wait before the next try; None where this answer is the last."""
        if answer.status_code not in _TRIED_AGAIN:
            return None
        asked = answer.headers.get("retry-after", "")
        wait_s = max(self._wait_s, float(asked) if asked.isdecimal() else 0)
        wait_s *= random.uniform(1, 1.5)  # noqa: S311 (so that not all come back at once)
        self._wait_s *= 2
        return wait_s if time.monotonic() + wait_s < self._ends else None


def _result(call: Call[T], answer: httpx.Response) -> T:
    if answer.is_success:
        return call.read(answer)
    try:
        members = answer.json()
    except ValueError:  # a proxy's page
        members = None
    if not isinstance(members, dict) or "type" not in members:
        members = {"type": "", "detail": answer.text[:200]}
    raise Problem({**members, "status": answer.status_code})


def _connection(url: str, key: str | None) -> dict[str, Any]:
    return {"base_url": url, "headers": {"Authorization": f"Bearer {key}"} if key else {}}


class Client:
    """Blocking. Every method raises Problem, or httpx's TransportError where there is no answer."""

    def __init__(self, url: str, key: str | None = None, timeout_s: float = 60) -> None:
        """`timeout_s` is for one call with all its tries."""
        self._http = httpx.Client(**_connection(url, key))
        self._timeout_s = timeout_s

    embed = _sync(calls.embed)
    embed_many = _sync(calls.embed_many)
    search = _sync(calls.search)
    put = _sync(calls.put)
    put_many = _sync(calls.put_many)
    get = _sync(calls.get)
    delete = _sync(calls.delete)
    domains = _sync(calls.domains)
    info = _sync(calls.info)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def _send(self, call: Call[T]) -> T:
        patience = _Patience(self._timeout_s)
        while True:
            answer = self._http.request(call.method, call.path, **patience.arguments(call))
            wait_s = patience.wait_s(answer)
            if wait_s is None:
                return _result(call, answer)
            time.sleep(wait_s)


class AsyncClient:
    """The same for asyncio."""

    def __init__(self, url: str, key: str | None = None, timeout_s: float = 60) -> None:
        """`timeout_s` is for one call with all its tries."""
        self._http = httpx.AsyncClient(**_connection(url, key))
        self._timeout_s = timeout_s

    embed = _async(calls.embed)
    embed_many = _async(calls.embed_many)
    search = _async(calls.search)
    put = _async(calls.put)
    put_many = _async(calls.put_many)
    get = _async(calls.get)
    delete = _async(calls.delete)
    domains = _async(calls.domains)
    info = _async(calls.info)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def _send(self, call: Call[T]) -> T:
        patience = _Patience(self._timeout_s)
        while True:
            answer = await self._http.request(call.method, call.path, **patience.arguments(call))
            wait_s = patience.wait_s(answer)
            if wait_s is None:
                return _result(call, answer)
            await asyncio.sleep(wait_s)
