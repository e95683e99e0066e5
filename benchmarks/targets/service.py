"""Control calls to this service, through its own HTTP client. Measured requests go through `http.py`."""

from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import httpx

from benchmarks.errors import TargetError
from service.client import AsyncClient, Item, NewItem, Problem

T = TypeVar("T")

_TIMEOUT_S = 300


class Service:
    """This service under a base URL. Every method raises TargetError."""

    def __init__(self, client: AsyncClient, url: str) -> None:
        self._client = client
        self._url = url

    async def domains(self) -> dict[str, int]:
        """Return the number of items in each domain."""
        counts = await self._result("GET /v1/domains", self._client.domains())
        if not all(isinstance(items, int) for items in counts.values()):
            raise self._foreign("GET /v1/domains", counts)
        return counts

    async def info(self) -> dict[str, Any]:
        """Return `/v1/info`, which names at least the model and the fingerprints of model and index."""
        info = await self._result("GET /v1/info", self._client.info())
        match info:
            case {"model": {"name": str(), "fingerprint": str()}, "index": {"fingerprint": str()}}:
                return info
        raise self._foreign("GET /v1/info", info)

    async def item(self, item_id: str) -> Item | None:
        """Return the item, or None if it does not exist."""

        async def found() -> Item | None:
            try:
                return await self._client.get(item_id)
            except Problem as problem:
                if problem.status == 404:
                    return None
                raise

        return await self._result("GET /v1/items", found())

    async def delete(self, item_id: str) -> None:
        """Delete the item if it exists."""
        await self._result("DELETE /v1/items", self._client.delete(item_id))

    async def upload(self, items: Sequence[NewItem]) -> None:
        """Index items in bulk; the first one that is rejected raises TargetError."""
        problems = await self._result("POST /v1/items", self._client.put_many(items))
        for item, problem in zip(items, problems, strict=True):
            if problem:
                raise TargetError(f"{item.id} was rejected: {problem.members.get('detail')}")

    async def _result(self, call: str, result: Awaitable[T]) -> T:
        try:
            return await result
        except Problem as problem:
            raise TargetError(
                f"{call} failed ({problem.status}): {problem.members.get('detail')}"
            ) from problem
        except httpx.ConnectError as error:
            address = httpx.URL(self._url).netloc.decode()
            raise TargetError(f"{call} failed (no answer): nothing answers at {address}: {error}") from error
        except httpx.TransportError as error:
            raise TargetError(f"{call} failed (no answer): {type(error).__name__}: {error}") from error
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise self._foreign(call, repr(error)) from error

    def _foreign(self, call: str, content: object) -> TargetError:
        summary = " ".join(str(content)[:200].split())
        return TargetError(f"{self._url} is not this service: {call} gave an unexpected response: {summary}")


@asynccontextmanager
async def connect(url: str, key: str | None = None, timeout_s: float = _TIMEOUT_S) -> AsyncIterator[Service]:
    """Open the service; `timeout_s` limits one call, with its retries of 429 and 503. Raises TargetError."""
    url = url.rstrip("/")
    try:
        client = AsyncClient(url, key, timeout_s)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise TargetError(f"{url} is not a valid URL, or the key is not ASCII: {error}") from error
    async with client:
        yield Service(client, url)


async def info_of(url: str, key: str | None = None) -> dict[str, Any]:
    """Return `/v1/info` of this service. Raises TargetError."""
    async with connect(url, key) as service:
        return await service.info()
