"""The client's calls: each builds a request, and converts the response to its result."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Vector = NDArray[np.float32]

_MAX_IDS_IN_URL = 20


_STANDARD = ("type", "title", "status", "detail")  # of RFC 9457, without `instance`


class Problem(Exception):
    """An error response of the service; `members` is the RFC 9457 problem object."""

    def __init__(self, members: Mapping[str, Any]) -> None:
        others = {name: value for name, value in members.items() if name not in _STANDARD}
        more = f" {others}" if others else ""
        super().__init__(f"{members.get('status')} {members.get('type')}: {members.get('detail')}{more}")
        self.members = dict(members)
        self.status = int(members.get("status", 0))
        self.type = str(members.get("type", ""))


@dataclass(frozen=True)
class Hit:
    """A search result."""

    id: str
    domain: str
    label: str
    score: float  # cosine similarity
    payload: dict[str, Any]


@dataclass(frozen=True)
class Item:
    """An indexed item."""

    id: str
    domain: str
    label: str
    payload: dict[str, Any]
    embedding: Vector  # (dim,), unit norm


@dataclass(frozen=True)
class NewItem:
    """An item for `put_many`."""

    id: str
    content: bytes | Vector  # an encoded image, or an embedding of the served model
    domain: str
    label: str
    payload: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SearchResult:
    """Hits, best first, and the share of each domain among them."""

    hits: list[Hit]
    domains: dict[str, float]


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request, and the conversion of its response."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    arguments: dict[str, Any] = field(default_factory=dict)  # of httpx's `request`
    only: Callable[[list[int]], "Call[T]"] | None = None  # the same call for some rows of a bulk request
    next_page: Callable[[httpx.Response], "Call[T] | None"] | None = None  # the last page's `read` has all


def _raw(image: bytes) -> dict[str, Any]:
    return {"content": _bytes(image), "headers": {"Content-Type": "application/octet-stream"}}


def _bytes(image: object) -> bytes:
    if not isinstance(image, bytes):
        raise TypeError('an image is its encoded bytes, as of Path("shoe.jpg").read_bytes()')
    return image


def _names(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _params(model: str | None) -> dict[str, Any]:
    return {"params": {"model": model}} if model else {}


def embed(image: bytes, model: str | None = None) -> Call[Vector]:
    """Embed an encoded image: float32 (dim,), unit norm. `model` selects one of several served models."""
    arguments = {**_raw(image), **_params(model)}
    arguments["headers"]["Accept"] = "application/octet-stream"
    return Call("POST", "/v1/embed", lambda response: np.frombuffer(response.content, "<f4"), arguments)


def embed_many(images: Sequence[bytes], model: str | None = None) -> Call[list[Vector | Problem]]:
    """Embed up to 1,000 encoded images. Returns an embedding or a Problem for each, in order."""
    arguments = {"files": _files(images), **_params(model)}
    return Call(
        "POST",
        "/v1/embed/batch",
        _results(_vector),
        arguments,
        lambda rows: embed_many([images[row] for row in rows], model),
    )


def search(
    query: bytes | Vector | str,
    k: int = 10,
    domains: str | Sequence[str] = (),
    min_score: float = -1,
    exact: bool = False,
    exclude: str | Sequence[str] = (),
) -> Call[SearchResult]:
    """Find the k nearest items of an encoded image, an embedding, or an indexed item's id.

    `exclude` takes up to 1,000 ids; with an image they must fit a URL.
    """

    def read(response: httpx.Response) -> SearchResult:
        body = response.json()
        hits = [
            Hit(hit["id"], hit["domain"], hit["label"], hit["score"], hit["payload"]) for hit in body["hits"]
        ]
        return SearchResult(hits, body["domains"])

    params: dict[str, Any] = {"k": k, "domain": _names(domains), "min_score": min_score, "exact": exact}
    excluded = {"exclude": _names(exclude)}
    if isinstance(query, bytes):
        return Call("POST", "/v1/search", read, {"params": params | excluded, **_raw(query)})
    body: dict[str, Any] = {"id": query} if isinstance(query, str) else {"embedding": query.tolist()}
    if len(excluded["exclude"]) > _MAX_IDS_IN_URL:
        body |= excluded
    else:
        params |= excluded
    return Call("POST", "/v1/search", read, {"params": params, "json": body})


def put(
    id: str,  # noqa: A002 (the contract's word)
    image: bytes,
    domain: str,
    label: str,
    payload: Mapping[str, Any] | None = None,
) -> Call[bool]:
    """Index an encoded image, or replace the item with this id. Returns True if the id is new."""
    form = {"files": {"image": _bytes(image)}, "data": {"payload": json.dumps(payload)}}
    body = form if payload else _raw(image)
    arguments = {"params": {"domain": domain, "label": label}, **body}
    return Call("PUT", _item_path(id), lambda response: bool(response.json()["created"]), arguments)


def put_many(items: Sequence[NewItem]) -> Call[list[Problem | None]]:
    """Index up to 1,000 items, all with images or all with embeddings. Returns None or a Problem for each."""
    rows = [
        {"id": item.id, "domain": item.domain, "label": item.label, "payload": dict(item.payload)}
        for item in items
    ]
    images = [item.content for item in items if isinstance(item.content, bytes)]
    vectors = [item.content for item in items if not isinstance(item.content, bytes)]
    if images and vectors:
        raise ValueError("a request takes no mixture of images and embeddings")
    if images:
        arguments: dict[str, Any] = {"files": _files(images), "data": {"items": json.dumps(rows)}}
    else:
        rows = [{**row, "embedding": vector.tolist()} for row, vector in zip(rows, vectors, strict=True)]
        arguments = {"json": {"items": rows}}
    return Call(
        "POST",
        "/v1/items",
        _results(lambda _: None),
        arguments,
        lambda rows: put_many([items[row] for row in rows]),
    )


def get(id: str) -> Call[Item]:  # noqa: A002
    """Get the item with this id."""

    def read(response: httpx.Response) -> Item:
        body = response.json()
        return Item(body["id"], body["domain"], body["label"], body["payload"], _vector(body))

    return Call("GET", _item_path(id), read)


def domains() -> Call[dict[str, int]]:
    """Count the items of each domain."""
    counts: dict[str, int] = {}

    def read(response: httpx.Response) -> dict[str, int]:
        counts.update({domain["name"]: domain["items"] for domain in response.json()["domains"]})
        return counts

    def next_page(response: httpx.Response) -> Call[dict[str, int]] | None:
        read(response)
        after = response.json().get("next")
        return None if after is None else page({"params": {"after": after}})

    def page(arguments: dict[str, Any]) -> Call[dict[str, int]]:
        return Call("GET", "/v1/domains", read, arguments, next_page=next_page)

    return page({})


def delete(id: str) -> Call[bool]:  # noqa: A002
    """Remove an item. Returns True if it existed."""
    return Call("DELETE", _item_path(id), lambda response: bool(response.json()["deleted"]))


def info() -> Call[dict[str, Any]]:
    """Get the model card, the active provider and precision, the index and the limits."""
    return Call("GET", "/v1/info", lambda response: dict(response.json()))


def _item_path(name: str) -> str:
    return f"/v1/items/{quote(name, safe='')}"


def _files(images: Sequence[bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", (str(number), _bytes(image))) for number, image in enumerate(images)]


def _results(read: Callable[[dict[str, Any]], T]) -> Callable[[httpx.Response], list[T | Problem]]:
    return lambda response: [
        Problem(row["error"]) if "error" in row else read(row) for row in response.json()["results"]
    ]


def _vector(body: dict[str, Any]) -> Vector:
    return np.asarray(body["embedding"], dtype=np.float32)
