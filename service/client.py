"""A typed client: `Client`, and `AsyncClient` with the same methods.

    with Client("http://127.0.0.1:3000") as client:
        hits = client.search(Path("shoe.jpg").read_bytes(), k=5).hits

Both retry if the service is overloaded (429) or not ready (503), and send the remaining time as the
deadline. Errors of single images of `embed_many` or items of `put_many` are returned in the list, and are
not retried.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, Generic, ParamSpec, Self, TypeVar, overload

import httpx

from service import calls
from service.calls import Call, Hit, Item, NewItem, Problem, SearchResult, Vector

__all__ = ["AsyncClient", "Client", "Hit", "Item", "NewItem", "Problem", "SearchResult", "Vector"]

T = TypeVar("T")
P = ParamSpec("P")
Transport = httpx.BaseTransport | None
AsyncTransport = httpx.AsyncBaseTransport | None

_RETRIED = (429, 503)
_FIRST_WAIT_S = 0.1
_MAX_DEADLINE_MS = 9_999_999  # that the service accepts


class _Method(Generic[P, T]):
    """A call as a method: it blocks on `Client`, and is awaited on `AsyncClient`."""

    def __init__(self, build: Callable[P, Call[T]]) -> None:
        self._build = build

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: "Client", owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: "AsyncClient", owner: type) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, client: "Client | AsyncClient | None", owner: type) -> object:
        if client is None:
            return self

        @wraps(self._build)
        def method(*args: P.args, **kwargs: P.kwargs) -> object:
            return client._send(self._build(*args, **kwargs))

        return method


class _Methods:
    embed = _Method(calls.embed)
    embed_many = _Method(calls.embed_many)
    search = _Method(calls.search)
    put = _Method(calls.put)
    put_many = _Method(calls.put_many)
    get = _Method(calls.get)
    delete = _Method(calls.delete)
    domains = _Method(calls.domains)
    info = _Method(calls.info)


class Client(_Methods):
    """Blocking client. Every method raises Problem, or httpx.TransportError if there is no response."""

    def __init__(
        self, url: str, key: str | None = None, timeout_s: float = 60, transport: Transport = None
    ) -> None:
        """`timeout_s` limits a call with all its retries."""
        self._http = httpx.Client(base_url=url, headers=_headers(key), transport=transport)
        self._timeout_s = timeout_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def _send(self, call: Call[T]) -> T:
        retries = _Retries(self._timeout_s)
        while True:
            response = self._http.request(call.method, call.path, **retries.arguments(call))
            wait_s = retries.wait_s(response)
            if wait_s is None:
                return _result(call, response)
            time.sleep(wait_s)


class AsyncClient(_Methods):
    """Client for asyncio, with the same methods and errors."""

    def __init__(
        self, url: str, key: str | None = None, timeout_s: float = 60, transport: AsyncTransport = None
    ) -> None:
        """`timeout_s` limits a call with all its retries."""
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(key), transport=transport)
        self._timeout_s = timeout_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def _send(self, call: Call[T]) -> T:
        retries = _Retries(self._timeout_s)
        while True:
            response = await self._http.request(call.method, call.path, **retries.arguments(call))
            wait_s = retries.wait_s(response)
            if wait_s is None:
                return _result(call, response)
            await asyncio.sleep(wait_s)


class _Retries:
    """The deadline and the back-off of a call."""

    def __init__(self, timeout_s: float) -> None:
        self._ends = time.monotonic() + timeout_s
        self._wait_s = _FIRST_WAIT_S

    def arguments(self, call: Call[T]) -> dict[str, Any]:
        """Return httpx's arguments, with the remaining time as timeout and deadline."""
        left_s = max(0.001, self._ends - time.monotonic())
        deadline_ms = int(min(_MAX_DEADLINE_MS, max(1, left_s * 1e3)))
        headers = {**call.arguments.get("headers", {}), "X-Deadline-Ms": str(deadline_ms)}
        return {**call.arguments, "headers": headers, "timeout": left_s}

    def wait_s(self, response: httpx.Response) -> float | None:
        """Return the seconds to wait before a retry, or None if this response is final."""
        if response.status_code not in _RETRIED:
            return None
        retry_after = response.headers.get("retry-after", "")
        wait_s = max(self._wait_s, float(retry_after) if retry_after.isdecimal() else 0)
        wait_s *= random.uniform(1, 1.5)  # noqa: S311 (jitter)
        self._wait_s *= 2
        return wait_s if time.monotonic() + wait_s < self._ends else None


def _result(call: Call[T], response: httpx.Response) -> T:
    if response.is_success:
        return call.read(response)
    try:
        members = response.json()
    except ValueError:  # not JSON: a proxy's page
        members = None
    if not isinstance(members, dict) or "type" not in members:
        members = {"type": "", "detail": response.text[:200]}
    raise Problem({**members, "status": response.status_code})


def _headers(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}
