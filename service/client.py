"""A typed client, for callers in Python: `Client`, and `AsyncClient` with the same methods.

    with Client("http://127.0.0.1:3000") as client:
        hits = client.search(Path("shoe.jpg").read_bytes(), k=5).hits

Both wait and try again where the service answers that it is full (429) or not ready (503), and tell it
how long they will. What fails for single images of `embed_many` is in its list, and is not tried again.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar
from urllib.parse import quote

import httpx
import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
P = ParamSpec("P")
Vector = NDArray[np.float32]

_TRIED_AGAIN = (429, 503)
_FIRST_WAIT_S = 0.1
_LONGEST_MS = 9_999_999  # that the service takes as a deadline


class Problem(Exception):
    """An answer of the service that is an error; `members` is the whole problem object."""

    def __init__(self, members: Mapping[str, Any]) -> None:
        super().__init__(f"{members.get('status')} {members.get('type')}: {members.get('detail')}")
        self.members = dict(members)
        self.status = int(members.get("status", 0))
        self.type = str(members.get("type", ""))


@dataclass(frozen=True)
class Hit:
    """One item that was found."""

    id: str
    domain: str
    label: str
    score: float  # cosine similarity
    payload: dict[str, Any]


@dataclass(frozen=True)
class Found:
    """A search's hits, best first, and each domain's share of them."""

    hits: list[Hit]
    domains: dict[str, float]


@dataclass(frozen=True)
class _Call(Generic[T]):
    """A request, and what to make of its answer."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    arguments: dict[str, Any] = field(default_factory=dict)  # of httpx's `request`


def _raw(image: bytes) -> dict[str, Any]:
    return {"content": image, "headers": {"Content-Type": "application/octet-stream"}}


def _of(model: str | None) -> dict[str, Any]:
    return {"params": {"model": model}} if model else {}


def _embed(image: bytes, model: str | None = None) -> _Call[Vector]:
    """An encoded image to its embedding: float32 (dim,), unit norm. `model`: one of several served."""
    arguments = {**_raw(image), **_of(model)}
    arguments["headers"]["Accept"] = "application/octet-stream"
    return _Call("POST", "/v1/embed", lambda answer: np.frombuffer(answer.content, "<f4"), arguments)


def _embed_many(images: Sequence[bytes], model: str | None = None) -> _Call[list[Vector | Problem]]:
    """Up to 1,000 encoded images, each to its embedding or to what is wrong with it, in order."""

    def read(answer: httpx.Response) -> list[Vector | Problem]:
        results = answer.json()["results"]
        return [
            Problem(one["error"]) if "error" in one else np.asarray(one["embedding"], dtype=np.float32)
            for one in results
        ]

    files = [("images", (str(place), image)) for place, image in enumerate(images)]
    return _Call("POST", "/v1/embed/batch", read, {"files": files, **_of(model)})


def _search(
    query: bytes | Vector | str,
    k: int = 10,
    domains: Sequence[str] = (),
    min_score: float = -1,
    exact: bool = False,
    exclude: Sequence[str] = (),
) -> _Call[Found]:
    """The k nearest items of an encoded image, an embedding, or an indexed item's id."""

    def read(answer: httpx.Response) -> Found:
        said = answer.json()
        return Found([_hit(hit) for hit in said["hits"]], said["domains"])

    params = {
        "k": k,
        "domain": list(domains),
        "min_score": min_score,
        "exact": exact,
        "exclude": list(exclude),
    }
    if isinstance(query, bytes):
        arguments = _raw(query)
    else:
        arguments = {"json": {"id": query} if isinstance(query, str) else {"embedding": query.tolist()}}
    return _Call("POST", "/v1/search", read, {"params": params, **arguments})


def _hit(said: dict[str, Any]) -> Hit:
    return Hit(said["id"], said["domain"], said["label"], said["score"], said["payload"])


def _put(id: str, image: bytes, domain: str, label: str) -> _Call[bool]:  # noqa: A002 (the contract's word)
    """Index an encoded image, or replace the item of this id. Whether the id is new."""
    arguments = {"params": {"domain": domain, "label": label}, **_raw(image)}
    return _Call("PUT", _item(id), lambda answer: bool(answer.json()["created"]), arguments)


def _delete(id: str) -> _Call[bool]:  # noqa: A002
    """Take an item out. Whether there was one."""
    return _Call("DELETE", _item(id), lambda answer: bool(answer.json()["deleted"]))


def _info() -> _Call[dict[str, Any]]:
    """The model's card, what is active, the index and the limits."""
    return _Call("GET", "/v1/info", lambda answer: dict(answer.json()))


def _item(name: str) -> str:
    return f"/v1/items/{quote(name, safe='')}"


def _sync(make: Callable[P, _Call[T]]) -> Callable[Concatenate["Client", P], T]:
    @wraps(make)
    def method(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._send(make(*args, **kwargs))

    return method


def _async(make: Callable[P, _Call[T]]) -> Callable[Concatenate["AsyncClient", P], Awaitable[T]]:
    @wraps(make)
    async def method(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._send(make(*args, **kwargs))

    return method


class _Patience:
    """How long one call goes on trying."""

    def __init__(self, timeout_s: float) -> None:
        self._ends = time.monotonic() + timeout_s
        self._wait_s = _FIRST_WAIT_S

    def arguments(self, call: _Call[T]) -> dict[str, Any]:
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


def _result(call: _Call[T], answer: httpx.Response) -> T:
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

    embed = _sync(_embed)
    embed_many = _sync(_embed_many)
    search = _sync(_search)
    put = _sync(_put)
    delete = _sync(_delete)
    info = _sync(_info)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def _send(self, call: _Call[T]) -> T:
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

    embed = _async(_embed)
    embed_many = _async(_embed_many)
    search = _async(_search)
    put = _async(_put)
    delete = _async(_delete)
    info = _async(_info)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def _send(self, call: _Call[T]) -> T:
        patience = _Patience(self._timeout_s)
        while True:
            answer = await self._http.request(call.method, call.path, **patience.arguments(call))
            wait_s = patience.wait_s(answer)
            if wait_s is None:
                return _result(call, answer)
            await asyncio.sleep(wait_s)
