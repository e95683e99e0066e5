"""Control calls to this service, through its own HTTP client. Measured requests go through `http.py`."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx

from benchmarks.errors import TargetError
from service.client import AsyncClient, Item, NewItem, Problem

_TIMEOUT_S = 300  # of one call, with its retries while the service is overloaded
_MAX_PORT = 65_535
PREFLIGHT_S = 10  # of calls that only ask whether and what the service serves


class Service:
    """This service under a base URL. Every method raises TargetError."""

    def __init__(self, client: AsyncClient, url: str) -> None:
        self._client = client
        self._url = url

    async def domains(self) -> dict[str, int]:
        """Return the number of items in each domain."""
        with self._errors("GET /v1/domains"):
            counts = await self._client.domains()
            if not all(isinstance(items, int) for items in counts.values()):
                raise TypeError(str(counts))
        return counts

    async def info(self) -> dict[str, Any]:
        """Return `/v1/info`, which names at least the model and the fingerprints of model and index."""
        with self._errors("GET /v1/info"):
            info = await self._client.info()
            match info:
                case {"model": {"name": str(), "fingerprint": str()}, "index": {"fingerprint": str()}}:
                    return info
            raise TypeError(str(info))

    async def item(self, item_id: str) -> Item | None:
        """Return the item, or None if it does not exist."""
        with self._errors("GET /v1/items"):
            try:
                return await self._client.get(item_id)
            except Problem as problem:
                if problem.status != 404:
                    raise
        return None

    async def delete(self, item_id: str) -> None:
        """Delete the item if it exists."""
        with self._errors("DELETE /v1/items"):
            await self._client.delete(item_id)

    async def upload(self, items: Sequence[NewItem]) -> None:
        """Index items in bulk; the first one that is rejected raises TargetError."""
        with self._errors("POST /v1/items"):
            for item, problem in zip(items, await self._client.put_many(items), strict=True):
                if problem:
                    raise TargetError(f"{item.id} was rejected: {problem.members.get('detail')}")

    @contextmanager
    def _errors(self, call: str) -> Iterator[None]:
        try:
            yield
        except Problem as problem:
            detail = problem.members.get("detail")
            raise TargetError(f"{call} failed ({problem.status}): {detail}") from problem
        except httpx.TransportError as error:
            if isinstance(error, httpx.ConnectError):
                host = httpx.URL(self._url).netloc.decode()
                raise TargetError(
                    f"nothing answers at {host}: start a service there, or pass its --url"
                ) from error
            raise TargetError(f"{call} failed (no answer): {type(error).__name__}: {error}") from error
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            reason = " ".join(str(error)[:200].split())
            raise TargetError(
                f"{self._url} is not this service: {call} gave an unexpected body: {reason}"
            ) from error


@asynccontextmanager
async def connect(url: str, key: str | None = None, timeout_s: float = _TIMEOUT_S) -> AsyncIterator[Service]:
    """Open the service; `timeout_s` limits one call, with its retries of 429 and 503. Raises TargetError."""
    url = url.rstrip("/")
    if key is not None and not (key.isascii() and key.isprintable()):
        raise TargetError("the key has characters that an HTTP header cannot have")
    try:
        # A transport of httpx ignores HTTP_PROXY, as the measured requests do.
        client, port = AsyncClient(url, key, timeout_s, httpx.AsyncHTTPTransport()), httpx.URL(url).port
    except (httpx.InvalidURL, UnicodeError) as error:
        raise TargetError(f"{url} is not a valid URL: {error}") from error
    if port is not None and port > _MAX_PORT:
        raise TargetError(f"{url} is not a valid URL: its port is out of range")
    async with client:
        yield Service(client, url)


async def info_of(url: str, key: str | None = None) -> dict[str, Any]:
    """Return `/v1/info` of this service. Raises TargetError."""
    async with connect(url, key, PREFLIGHT_S) as service:
        return await service.info()
