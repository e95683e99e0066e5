"""Measured requests, sent with aiohttp. Control calls go through `service.py`."""

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from yarl import URL

_TIMEOUT_S = 300
_MEDIA_TYPE = "application/octet-stream"
# A metric of Server-Timing, `decode;dur=1.5`; a description may precede or follow the duration.
_STAGE = re.compile(r"([\w-]+)(?:;[^,;]*)*?;\s*dur=(\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class Response:
    """A response; `status` is 0 if there was none."""

    status: int
    body: Any
    server_ms: dict[str, float]  # by stage, from Server-Timing
    cache: str  # X-Cache: hit, miss or coalesced; empty if the service has no cache

    @property
    def detail(self) -> str:
        """The description of an error."""
        detail = self.body.get("detail", self.body) if isinstance(self.body, dict) else self.body
        try:
            return str(detail)
        except RecursionError:  # the JSON parser accepts deeper nesting than repr
            return "JSON that is nested too deep"


def session_for(key: str | None, connections: int = 0) -> aiohttp.ClientSession:
    """Open a session with at most `connections` connections (0: no limit); `key` is the bearer key."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections),
        timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S),
        headers={"Authorization": f"Bearer {key}"} if key else {},
    )


def raw(content: bytes) -> dict[str, Any]:
    """Return the arguments of `send` for an image as the body."""
    return {"data": content, "headers": {"Content-Type": _MEDIA_TYPE}}


def multipart(field: str, contents: Sequence[bytes]) -> dict[str, Any]:
    """Return the arguments of `send` for images in a form."""
    form = aiohttp.FormData()
    for number, content in enumerate(contents):
        form.add_field(field, content, filename=str(number), content_type=_MEDIA_TYPE)
    return {"data": form}


async def send(session: aiohttp.ClientSession, method: str, url: str, **body: Any) -> Response:
    """Send one request. Failures are returned as a Response with status 0, not raised."""
    try:
        async with session.request(method, URL(url, encoded=True), **body) as response:
            content = _json(await response.read())
            stages = _STAGE.findall(response.headers.get("Server-Timing", ""))
            server_ms = {stage: float(ms) for stage, ms in stages}
            return Response(response.status, content, server_ms, response.headers.get("X-Cache", ""))
    except TimeoutError:
        reason = f"timed out after {_TIMEOUT_S} s"
    except aiohttp.ClientConnectorError as error:
        reason = f"nothing answers at {error.host}:{error.port}: {error.strerror}"
    except aiohttp.InvalidURL:
        reason = f"{url} is not a valid URL: it must begin with http:// or https://"
    except aiohttp.ClientError as error:
        reason = f"{type(error).__name__}: {error}"
    return Response(0, {"detail": reason}, {}, "")


async def post_all(
    url: str, bodies: Iterable[dict[str, Any]], concurrency: int, check: Callable[[Response], None]
) -> list[tuple[Response, float]]:
    """Send all bodies in a closed loop; returns the responses with their latencies in ms."""
    waiting, results = iter(bodies), list[tuple[Response, float]]()

    async def worker() -> None:
        for body in waiting:
            start = time.perf_counter()
            response = await send(session, "POST", url, **body)
            results.append((response, (time.perf_counter() - start) * 1e3))
            check(response)

    async with session_for(None, concurrency) as session:
        await asyncio.gather(*(worker() for _ in range(concurrency)))
    return results


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # an HTML page of a proxy, plain text, or JSON nested too deep
        return {"detail": body[:200].decode(errors="replace")}
