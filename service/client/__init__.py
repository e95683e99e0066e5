"""A typed client: `Client`, and `AsyncClient` with the same methods.

    with Client("http://127.0.0.1:3000") as client:
        hits = client.search(Path("shoe.jpg").read_bytes(), k=5).hits

Both retry if the service is overloaded (429) or not ready (503), and send the remaining time as the
deadline. Of `embed_many` and `put_many` they also retry the images or items that were refused for such a
reason, and only these. Other errors of single ones are returned in the list.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Generic, ParamSpec, Self, TypeVar, overload

import httpx

from service.client import calls
from service.client.calls import Call, Hit, Item, NewItem, Problem, SearchResult, Vector
from service.client.deadline import limit_every_step
from service.client.retries import Retries

__all__ = ["AsyncClient", "Client", "Hit", "Item", "NewItem", "Problem", "SearchResult", "Vector"]

T = TypeVar("T")
P = ParamSpec("P")
Transport = httpx.BaseTransport | None
AsyncTransport = httpx.AsyncBaseTransport | None


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
        """`timeout_s` limits a call with all its retries and pages."""
        self._http = httpx.Client(base_url=url, headers=_headers(key), transport=transport)
        self._timeout_s = timeout_s
        self._deadline = limit_every_step(self._http)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def _send(self, call: Call[T]) -> T:
        retries = Retries(call, self._timeout_s)
        self._deadline.ends = retries.ends
        while True:
            try:
                response = self._http.request(**retries.arguments())
            except httpx.TransportError as error:
                return retries.partial_result(error)
            wait_s = retries.wait_s(response)
            if wait_s is None:
                return retries.result(response)
            time.sleep(wait_s)


class AsyncClient(_Methods):
    """Client for asyncio, with the same methods and errors."""

    def __init__(
        self, url: str, key: str | None = None, timeout_s: float = 60, transport: AsyncTransport = None
    ) -> None:
        """`timeout_s` limits a call with all its retries and pages."""
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(key), transport=transport)
        self._timeout_s = timeout_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def _send(self, call: Call[T]) -> T:
        retries = Retries(call, self._timeout_s)
        while True:
            try:
                async with asyncio.timeout(retries.left_s):
                    response = await self._http.request(**retries.arguments())
            except (httpx.TransportError, TimeoutError) as error:
                return retries.partial_result(error)
            wait_s = retries.wait_s(response)
            if wait_s is None:
                return retries.result(response)
            await asyncio.sleep(wait_s)


def _headers(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}
