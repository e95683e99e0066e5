"""What each call of the client sends, and what it makes of the answer."""

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
class Item:
    """One item as it is indexed."""

    id: str
    domain: str
    label: str
    payload: dict[str, Any]
    embedding: Vector  # (dim,), unit norm


@dataclass(frozen=True)
class NewItem:
    """One item for `put_many`."""

    id: str
    what: bytes | Vector  # an encoded image, or an embedding of the served model
    domain: str
    label: str
    payload: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """A search's hits, best first, and each domain's share of them."""

    hits: list[Hit]
    domains: dict[str, float]


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request, and what to make of its answer."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    arguments: dict[str, Any] = field(default_factory=dict)  # of httpx's `request`


def _raw(image: bytes) -> dict[str, Any]:
    return {"content": image, "headers": {"Content-Type": "application/octet-stream"}}


def _of(model: str | None) -> dict[str, Any]:
    return {"params": {"model": model}} if model else {}


def embed(image: bytes, model: str | None = None) -> Call[Vector]:
    """An encoded image to its embedding: float32 (dim,), unit norm. `model`: one of several served."""
    arguments = {**_raw(image), **_of(model)}
    arguments["headers"]["Accept"] = "application/octet-stream"
    return Call("POST", "/v1/embed", lambda answer: np.frombuffer(answer.content, "<f4"), arguments)


def embed_many(images: Sequence[bytes], model: str | None = None) -> Call[list[Vector | Problem]]:
    """Up to 1,000 encoded images, each to its embedding or to what is wrong with it, in order."""

    def read(answer: httpx.Response) -> list[Vector | Problem]:
        results = answer.json()["results"]
        return [
            Problem(one["error"]) if "error" in one else np.asarray(one["embedding"], dtype=np.float32)
            for one in results
        ]

    files = [("images", (str(place), image)) for place, image in enumerate(images)]
    return Call("POST", "/v1/embed/batch", read, {"files": files, **_of(model)})


def search(
    query: bytes | Vector | str,
    k: int = 10,
    domains: Sequence[str] = (),
    min_score: float = -1,
    exact: bool = False,
    exclude: Sequence[str] = (),
) -> Call[Found]:
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
    return Call("POST", "/v1/search", read, {"params": params, **arguments})


def _hit(said: dict[str, Any]) -> Hit:
    return Hit(said["id"], said["domain"], said["label"], said["score"], said["payload"])


def put(
    id: str,  # noqa: A002 (the contract's word)
    image: bytes,
    domain: str,
    label: str,
    payload: Mapping[str, Any] | None = None,
) -> Call[bool]:
    """Index an encoded image, or replace the item of this id. Whether the id is new."""
    body = {"files": {"image": image}, "data": {"payload": json.dumps(payload)}} if payload else _raw(image)
    arguments = {"params": {"domain": domain, "label": label}, **body}
    return Call("PUT", _item(id), lambda answer: bool(answer.json()["created"]), arguments)


def put_many(items: Sequence[NewItem]) -> Call[list[Problem | None]]:
    """Index up to 1,000 items; of each None, or what is wrong with it. Raises ValueError for a mixture."""
    rows = [
        {"id": one.id, "domain": one.domain, "label": one.label, "payload": dict(one.payload)}
        for one in items
    ]
    images = [one.what for one in items if isinstance(one.what, bytes)]
    vectors = [one.what for one in items if not isinstance(one.what, bytes)]
    if images and vectors:
        raise ValueError("images, or embeddings: one request takes no mixture")
    if images:
        files = [("images", (str(place), image)) for place, image in enumerate(images)]
        arguments: dict[str, Any] = {"files": files, "data": {"items": json.dumps(rows)}}
    else:
        given = [{**row, "embedding": vector.tolist()} for row, vector in zip(rows, vectors, strict=True)]
        arguments = {"json": {"items": given}}

    def read(answer: httpx.Response) -> list[Problem | None]:
        return [Problem(one["error"]) if "error" in one else None for one in answer.json()["results"]]

    return Call("POST", "/v1/items", read, arguments)


def get(id: str) -> Call[Item]:  # noqa: A002
    """The item of this id."""

    def read(answer: httpx.Response) -> Item:
        said = answer.json()
        embedding = np.asarray(said["embedding"], dtype=np.float32)
        return Item(said["id"], said["domain"], said["label"], said["payload"], embedding)

    return Call("GET", _item(id), read)


def domains() -> Call[dict[str, int]]:
    """How many items each domain has."""
    return Call(
        "GET", "/v1/domains", lambda answer: {one["name"]: one["items"] for one in answer.json()["domains"]}
    )


def delete(id: str) -> Call[bool]:  # noqa: A002
    """Take an item out. Whether there was one."""
    return Call("DELETE", _item(id), lambda answer: bool(answer.json()["deleted"]))


def info() -> Call[dict[str, Any]]:
    """The model's card, what is active, the index and the limits."""
    return Call("GET", "/v1/info", lambda answer: dict(answer.json()))


def _item(name: str) -> str:
    return f"/v1/items/{quote(name, safe='')}"
