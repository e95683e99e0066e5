"""`/v1/items`: index images, read and delete items."""

import asyncio
import json
from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import unquote

import msgspec
from fastapi import APIRouter, Path, Request
from fastapi import Query as QueryParam
from pydantic import AfterValidator, BaseModel, Field, ValidationError
from starlette.responses import Response

from service.errors import InvalidRequest, NotReady, ServiceError
from service.http import schemas
from service.http.body import MAX_JSON_BYTES, media_type, read_body, read_form
from service.http.handling import (
    Embedder,
    IndexDep,
    IndexEmbedderDep,
    faults_of,
    json_response,
    rows_response,
)
from service.http.parsing import MAX_IMAGES, RowsObject, parse_json, parse_rows
from service.http.schemas import response_of
from service.http.search import DomainName, ItemId, check_embedding, check_id
from service.index import Item
from service.inference.work import Embedded

router = APIRouter()

# The envelope leaves ids percent-encoded, so that slashes and line breaks pass through the routers.
ItemPath = Annotated[
    str, AfterValidator(unquote), AfterValidator(check_id), Path(min_length=1, max_length=512)
]
Label = Annotated[str, QueryParam(max_length=512)]

_MAX_PAYLOAD_BYTES = 64 * 2**10
_MAX_PAYLOAD_VALUES = 2**16
_MAX_ENTRY_VALUES = 100  # of an item on average, without its embedding
_MAX_PAYLOAD_DEPTH = 32
_ITEM = "/v1/items/{item_id}"


class _Entry(BaseModel, extra="ignore", strict=True):
    """An entry of the field `items`, without its embedding."""

    id: ItemId
    domain: DomainName
    label: str = Field(max_length=512)
    payload: Any = None


_ENCODED_ITEMS = {"type": "string", "description": "JSON list, in the order of the images"}
_BULK_BODY = schemas.body_of(
    {
        schemas.FORM: schemas.object_of(images=schemas.IMAGES, items=_ENCODED_ITEMS),
        schemas.JSON: schemas.object_of(
            items=schemas.list_of(schemas.with_embedding(_Entry.model_json_schema()))
        ),
    }
)


@router.put(_ITEM, openapi_extra=schemas.PUT_BODY, responses=response_of(schemas.PUT))
async def put_item(
    request: Request, embedder: IndexEmbedderDep, item_id: ItemPath, domain: DomainName, label: Label
) -> Response:
    """Index one image. Idempotent."""
    image, fields = await embedder.read_image_and_fields(request, "payload")
    payload = check_payload(parse_json(fields.get("payload") or b"{}", _MAX_PAYLOAD_VALUES))
    item = Item(item_id, domain, label, (await embedder.embed(image)).embedding, payload)
    (created,) = await embedder.core.index.upsert([item], check=embedder.check_golden)
    return json_response({"id": item_id, "created": created})


@router.post("/v1/items", openapi_extra=_BULK_BODY, responses=response_of(schemas.ITEMS))
async def post_items(request: Request, embedder: IndexEmbedderDep) -> Response:
    """Index many images or embeddings. Each has its own result."""
    dim = embedder.model.manifest.dim
    embedded: Sequence[Embedded | ServiceError | None]
    index = embedder.core.index
    index.check_capacity()
    if media_type(request.headers) == "application/json":
        embedder.state.body.admit_bulk()  # its items need no inference
        body, max_values = await read_body(request, MAX_JSON_BYTES), MAX_IMAGES * (dim + _MAX_ENTRY_VALUES)
        entries = await asyncio.to_thread(parse_rows, body, max_values, RowsObject)
        embedded = [None] * len(entries)
    else:
        entries, embedded = await _read_form(request, embedder)
    results = await asyncio.to_thread(
        lambda: [_item(entry, dim, image) for entry, image in zip(entries, embedded, strict=True)]
    )
    items = [result for result in results if isinstance(result, Item)]
    if items:
        try:
            await index.upsert(items, embedder.state.body.transfer(), embedder.check_golden)
        except NotReady:
            results = embedder.checked(results)
    pairs = list(zip(entries, results, strict=True))
    return await rows_response("results", pairs, lambda pair: _result_json(*pair))


@router.get(_ITEM, responses=response_of(schemas.ITEM))
async def get_item(index: IndexDep, item_id: ItemPath) -> Response:
    """Return the item with its embedding."""
    item = await index.get(item_id)
    return json_response({**item.fields(), "embedding": item.embedding.tolist()})


@router.delete(_ITEM, responses=response_of(schemas.DELETED))
async def delete_item(index: IndexDep, item_id: ItemPath) -> Response:
    """Delete the item. `deleted` is false if it did not exist."""
    return json_response({"deleted": await index.delete(item_id)})


async def _read_form(request: Request, embedder: Embedder) -> tuple[list[Any], list[Embedded | ServiceError]]:
    embedder.admit_bulk()
    max_bytes = embedder.core.settings.max_request_bytes
    form = await read_form(request, max_bytes, images=MAX_IMAGES, items=1)
    items, files = form.get("items"), form.getlist("images")
    if not isinstance(items, bytes):
        raise InvalidRequest("multipart field `items` is required, and must be a JSON list")
    entries = await asyncio.to_thread(parse_rows, items, MAX_IMAGES * _MAX_ENTRY_VALUES, list[msgspec.Raw])
    if len(entries) != len(files):
        raise InvalidRequest(f"{len(files)} images, but {len(entries)} items")
    return entries, await embedder.embed_files(files)


def check_payload(value: Any) -> dict[str, Any]:
    """Return a payload that the index stores without loss; null is an empty one. Raises InvalidRequest.

    The engine cannot read back values nested more than about 120 levels deep, not even from its own log,
    and converts integers over 64 bits to floats.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest("`payload` must be a JSON object")
    try:
        size_bytes = len(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
    except ValueError as error:
        raise InvalidRequest("`payload` has a number that is not finite") from error
    if size_bytes > _MAX_PAYLOAD_BYTES:
        raise InvalidRequest("`payload` has too many bytes", limit=_MAX_PAYLOAD_BYTES, got=size_bytes)
    level: list[Any] = [value]
    for _ in range(_MAX_PAYLOAD_DEPTH + 1):  # the values in the deepest object or list, too
        if any(type(part) is int and not -(2**63) <= part < 2**64 for part in level):
            raise InvalidRequest("`payload` has an integer that does not fit 64 bits")
        inner = [
            part.values() if isinstance(part, dict) else part
            for part in level
            if isinstance(part, dict | list)
        ]
        if not inner:
            return value
        level = [part for parts in inner for part in parts]
    raise InvalidRequest("`payload` is nested too deeply", limit=_MAX_PAYLOAD_DEPTH)


def _item(entry: Any, dim: int, embedded: Embedded | ServiceError | None) -> Item | ServiceError:
    """Return the item of an entry, with the embedding of its image, or else its own."""
    if isinstance(embedded, ServiceError):
        return embedded
    if isinstance(entry, ServiceError):
        return entry
    try:
        members = entry if isinstance(entry, dict) else {}
        names = [*_Entry.model_fields, *([] if embedded else ["embedding"])]
        present = {name for name, value in members.items() if value is not None}
        if unknown := ", ".join(sorted(present.difference(names)))[:200]:
            return InvalidRequest(f"unknown member: {unknown}; an item has {', '.join(names)}")
        embedding = embedded.embedding if embedded else check_embedding(members.get("embedding"), dim)
        fields = _Entry.model_validate(entry)
        payload = check_payload(fields.payload)
    except ValidationError as error:
        return InvalidRequest(faults_of(error.errors()))
    except ServiceError as error:
        return error
    return Item(fields.id, fields.domain, fields.label, embedding, payload)


def _result_json(entry: Any, result: Item | ServiceError) -> dict[str, Any]:
    if isinstance(result, Item):
        return {"id": result.id}
    item_id = entry.get("id") if isinstance(entry, dict) else None
    return {"id": item_id if isinstance(item_id, str) else None, "error": result.problem()}
