"""A typed client: `Client`, and `AsyncClient` with the same methods.

    with Client("http://127.0.0.1:3000") as client:
        hits = client.search(Path("shoe.jpg").read_bytes(), k=5).hits

Both retry if the service is overloaded (429) or not ready (503), and send the remaining time as the
deadline. Of `embed_many` and `put_many` they also retry the images or items that were refused for such a
reason, and only these. Other errors of single ones are returned in the list.
"""

import asyncio
import math
import random
import threading
import time
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, Generic, ParamSpec, Self, TypeVar, cast, overload

import httpcore
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
_WRITTEN_BYTES = 2**16  # in one write


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
    info = _Method(calls.info)


class Client(_Methods):
    """Blocking client. Every method raises Problem, or httpx.TransportError if there is no response."""

    def __init__(
        self, url: str, key: str | None = None, timeout_s: float = 60, transport: Transport = None
    ) -> None:
        """`timeout_s` limits a call with all its retries."""
        self._http = httpx.Client(base_url=url, headers=_headers(key), transport=transport)
        self._timeout_s = timeout_s
        self._deadline = _Deadline()
        for each in (self._http._transport, *self._http._mounts.values()):
            if isinstance(each, httpx.HTTPTransport):  # httpx has no parameter for the backend
                each._pool._network_backend = _Backend(self._deadline)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def domains(self) -> dict[str, int]:
        """Count the items of each domain."""
        page = self._send(calls.domains())
        counts = page.counts
        while page.next is not None:
            page = self._send(calls.domains(page.next))
            counts |= page.counts
        return counts

    def _send(self, call: Call[T]) -> T:
        retries = _Retries(call, self._timeout_s)
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
        """`timeout_s` limits a call with all its retries."""
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(key), transport=transport)
        self._timeout_s = timeout_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def domains(self) -> dict[str, int]:
        """Count the items of each domain."""
        page = await self._send(calls.domains())
        counts = page.counts
        while page.next is not None:
            page = await self._send(calls.domains(page.next))
            counts |= page.counts
        return counts

    async def _send(self, call: Call[T]) -> T:
        retries = _Retries(call, self._timeout_s)
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


class _Deadline(threading.local):
    """The end of the call that the current thread makes."""

    ends = math.inf

    def limit(self, timeout_s: float | None, error: type[Exception]) -> float:
        """Return the timeout, or the remaining time if that is less. Raises `error` if there is none."""
        left_s = self.ends - time.monotonic()
        if left_s <= 0:
            raise error("the call did not finish within its timeout")
        return left_s if timeout_s is None else min(timeout_s, left_s)


class _Backend(httpcore.SyncBackend):
    """Limits the sum of all reads and writes of a call: httpx limits each single one."""

    def __init__(self, deadline: _Deadline) -> None:
        self._deadline = deadline

    def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore.NetworkStream:
        """Connect."""
        return _Stream(super().connect_tcp(*args, **kwargs), self._deadline)


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, deadline: _Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.limit(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _WRITTEN_BYTES):
            limit_s = self._deadline.limit(timeout, httpcore.WriteTimeout)
            self._stream.write(buffer[start : start + _WRITTEN_BYTES], limit_s)

    def close(self) -> None:
        self._stream.close()

    def start_tls(self, *args: Any, **kwargs: Any) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(*args, **kwargs), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Retries(Generic[T]):
    """The deadline, the back-off and the results of a call."""

    def __init__(self, call: Call[T], timeout_s: float) -> None:
        self._call = call
        self._remaining = call  # without the rows that have a final result
        self._rows: list[Any] | None = None  # results of a bulk request
        self._refused: list[int] = []
        self.ends = time.monotonic() + timeout_s
        self._wait_s = _FIRST_WAIT_S

    @property
    def left_s(self) -> float:
        """The remaining time."""
        return max(0.001, self.ends - time.monotonic())

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of httpx's `request`, with the remaining time as timeout and deadline."""
        call, left_s = self._remaining, self.left_s
        deadline_ms = int(min(_MAX_DEADLINE_MS, max(1, left_s * 1e3)))
        headers = {**call.arguments.get("headers", {}), "X-Deadline-Ms": str(deadline_ms)}
        target = {"method": call.method, "url": call.path, "timeout": left_s}
        return {**call.arguments, **target, "headers": headers}

    def wait_s(self, response: httpx.Response) -> float | None:
        """Return the seconds to wait before a retry, or None if there is none."""
        if response.is_success and self._call.only:
            self._collect(cast("list[Any]", self._remaining.read(response)))
            if not self._refused:
                return None
            self._remaining = self._call.only(self._refused)
        elif response.status_code not in _RETRIED:
            return None
        retry_after = response.headers.get("retry-after", "")
        wait_s = max(self._wait_s, float(retry_after) if retry_after.isdecimal() else 0)
        wait_s *= random.uniform(1, 1.5)  # noqa: S311 (jitter)
        self._wait_s *= 2
        return wait_s if time.monotonic() + wait_s < self.ends else None

    def _collect(self, results: list[Any]) -> None:
        """Keep the results of the rows that were sent, and the numbers of those that were refused."""
        if self._rows is None:
            self._rows, self._refused = results, list(range(len(results)))
        for row, result in zip(self._refused, results, strict=True):
            self._rows[row] = result
        self._refused = [
            row
            for row in self._refused
            if isinstance(self._rows[row], Problem) and self._rows[row].status in _RETRIED
        ]

    def result(self, response: httpx.Response) -> T:
        """Return the result of the call after its last response."""
        return _result(self._call, response) if self._rows is None else cast("T", self._rows)

    def partial_result(self, error: Exception) -> T:
        """Return the rows that have a result, the others as problems. Raises httpx.TransportError if none."""
        if self._rows is not None:
            return cast("T", self._rows)
        if isinstance(error, TimeoutError):
            raise httpx.ReadTimeout("the call did not finish within its timeout") from error
        raise error


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
