"""The service as the harness knows it: over HTTP, by the contract, and in no other way."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote as _quote

import aiohttp
from yarl import URL

from benchmarks.errors import TargetError

_TIMEOUT_S = 300
_PAUSES_S = (0.25, 0.5, 1.0, 2.0)  # where the service has no room
# A metric of Server-Timing that has a duration; a description may stand on either side of it.
_STAGE = re.compile(r"([\w-]+)(?:;[^,;]*)*?;\s*dur=(\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; `status` 0 means that nothing did."""

    status: int
    body: Any
    server_ms: dict[str, float]  # by stage, from Server-Timing
    cache: str  # X-Cache: hit, miss, coalesced; empty where the service has no cache

    @property
    def detail(self) -> str:
        """What the answer says of itself, where it is an error."""
        return _text(self.body.get("detail", self.body) if isinstance(self.body, dict) else self.body)


class Service:
    """Our service under a base URL."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self.url = url.rstrip("/")

    async def get(self, path: str) -> Any:
        """The JSON of a GET that must succeed. Raises TargetError."""
        answer = await self._ask("GET", path)
        return _must(answer, f"GET {path}")

    async def domains(self) -> dict[str, int]:
        """How many items each domain has. Raises TargetError, also where it is not our service."""
        said = await self.get("/v1/domains")
        rows = said.get("domains") if isinstance(said, dict) else None
        if not isinstance(rows, list):
            raise self._foreign("/v1/domains", said)
        counts: dict[str, int] = {}
        for row in rows:
            match row:
                case {"name": str(name), "items": int(items)}:
                    counts[name] = items
                case _:
                    raise self._foreign("/v1/domains", said)
        return counts

    async def info(self) -> dict[str, Any]:
        """What it says of itself: its model and its index at least, each with a fingerprint. As `domains`."""
        said = await self.get("/v1/info")
        match said:
            case {"model": {"name": str(), "fingerprint": str()}, "index": {"fingerprint": str()}}:
                return dict(said)
        raise self._foreign("/v1/info", said)

    async def item(self, item_id: str) -> dict[str, Any] | None:
        """The item, or None where there is none. Raises TargetError."""
        answer = await self._ask("GET", f"/v1/items/{_quote(item_id, safe='')}")
        return None if answer.status == 404 else dict(_must(answer, "GET /v1/items"))

    async def delete(self, item_id: str) -> None:
        """Gone, if it was there; waits a little where the service has no room. Raises TargetError."""
        path = f"/v1/items/{_quote(item_id, safe='')}"
        answer = await self._ask("DELETE", path)
        for pause_s in _PAUSES_S:
            if answer.status != 429:
                break
            await asyncio.sleep(pause_s)
            answer = await self._ask("DELETE", path)
        _must(answer, "DELETE /v1/items")

    async def upload(self, items: str, images: Sequence[tuple[str, bytes]]) -> list[dict[str, Any]]:
        """Bulk upload: `items` is the JSON list, `images` are (file name, content). Raises TargetError."""
        form = aiohttp.FormData()
        form.add_field("items", items)
        for name, data in images:
            form.add_field("images", data, filename=name, content_type="application/octet-stream")
        answer = await self._ask("POST", "/v1/items", data=form)
        return list(_must(answer, "POST /v1/items")["results"])

    async def embed(self, image: bytes) -> Answer:
        """One embedding. Never raises for what the service does: the answer says it."""
        return await self._ask("POST", "/v1/embed", data=image)

    async def embed_batch(self, images: Sequence[bytes]) -> Answer:
        """Several in one request; as `embed`."""
        form = aiohttp.FormData()
        for number, data in enumerate(images):
            form.add_field("images", data, filename=str(number), content_type="application/octet-stream")
        return await self._ask("POST", "/v1/embed/batch", data=form)

    async def openai(self, model: str, uri: str) -> Answer:
        """One image in OpenAI's shape; this target's URL is the call's own. As `embed`."""
        asked = {"model": model, "input": [uri], "encoding_format": "float", "modality": "image"}
        return await self._ask("POST", "", json=asked)

    def _foreign(self, path: str, said: Any) -> TargetError:
        gave = " ".join(_text(said)[:200].split())
        return TargetError(f"{self.url} is not this service: GET {path} gave {gave}")

    async def _ask(self, method: str, path: str, **body: Any) -> Answer:
        if isinstance(body.get("data"), bytes):
            body["headers"] = {"Content-Type": "application/octet-stream"}
        return await send(self._session, method, self.url + path, **body)


@asynccontextmanager
async def connect(url: str, concurrency: int, key: str | None = None) -> AsyncIterator[Service]:
    """The service with at most `concurrency` connections."""
    async with session_for(key, concurrency) as session:
        yield Service(session, url)


async def info_of(url: str, key: str | None) -> dict[str, Any]:
    """What our service says of itself. Raises TargetError."""
    async with connect(url, 1, key) as service:
        return await service.info()


def session_for(key: str | None, connections: int = 0) -> aiohttp.ClientSession:
    """`connections` at most, 0: as many as there are requests; `key` is the service's bearer key."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections),
        timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S),
        headers={"Authorization": f"Bearer {key}"} if key else {},
    )


async def send(session: aiohttp.ClientSession, method: str, url: str, **body: Any) -> Answer:
    """One request. Never raises for what the service does: the answer says it."""
    try:
        async with session.request(method, URL(url, encoded=True), **body) as response:
            said = _json(await response.read())
            timing = response.headers.get("Server-Timing", "")
            return Answer(response.status, said, _stages(timing), response.headers.get("X-Cache", ""))
    except TimeoutError:
        return Answer(0, {"detail": f"timed out after {_TIMEOUT_S} s"}, {}, "")
    except aiohttp.ClientConnectorError as error:
        why = f"nothing answers at {error.host}:{error.port}: {error.strerror}"
        return Answer(0, {"detail": why}, {}, "")
    except aiohttp.InvalidURL:
        return Answer(0, {"detail": f"{url} is no URL: it begins with http:// or https://"}, {}, "")
    except aiohttp.ClientError as error:
        return Answer(0, {"detail": f"{type(error).__name__}: {error}"}, {}, "")


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # a proxy's page, a server's own 500, or nested too deep
        return {"detail": body[:200].decode(errors="replace")}


def _text(said: Any) -> str:
    try:
        return str(said)
    except RecursionError:  # what could just be read need not be written
        return "JSON that is nested too deep"


def _must(answer: Answer, what: str) -> Any:
    if answer.status == 200:
        return answer.body
    raise TargetError(f"{what} failed ({answer.status or 'no answer'}): {answer.detail}")


def _stages(server_timing: str) -> dict[str, float]:
    """`decode;dur=1.5, infer;dur=9` to milliseconds by stage."""
    return {stage: float(ms) for stage, ms in _STAGE.findall(server_timing)}
