"""`/v1/items`: put pictures into the gallery, read them, take them out."""

import json
from typing import Annotated, Any
from urllib.parse import unquote

import numpy as np
from fastapi import APIRouter, Path, Request
from fastapi import Query as QueryParam
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from service.core import Core
from service.errors import InvalidRequest, ServiceError
from service.http.body import (
    MAX_IMAGES,
    MAX_JSON_BYTES,
    form_of,
    media_type,
    parse_json,
    read_image_and_fields,
    read_json,
)
from service.http.handling import deadline, embed_files, embed_given, json_response, note
from service.http.model_choice import IndexedModel
from service.http.schemas import (
    DELETED,
    IMAGE_AND_PAYLOAD_BODY,
    IMAGES,
    ITEM,
    ITEMS,
    PUT,
    answers,
    body_of,
    form,
    json_body,
)
from service.http.search import DomainName, check_embedding, item_json
from service.index import Item
from service.inference.model import Model
from service.inference.pipeline import Embedded

router = APIRouter()

# The envelope hands ids on percent-encoded, so that slashes and line breaks pass through the routers.
ItemPath = Annotated[str, AfterValidator(unquote), Path(min_length=1, max_length=512)]
Label = Annotated[str, QueryParam(max_length=512)]

_MAX_PAYLOAD_BYTES = 64 * 2**10
_VALUES_BESIDE = 100  # of an item's entry, on average, beside its embedding
_MAX_PAYLOAD_DEPTH = 32
_ITEM = "/v1/items/{item_id}"


class _Described(BaseModel):
    """One entry of the field `items`."""

    model_config = ConfigDict(extra="ignore", strict=True)

    id: str = Field(min_length=1, max_length=512)
    domain: str = Field(pattern="^[a-z0-9_-]{1,64}$")
    label: str = Field(max_length=512)
    payload: Any = {}


_ITEMS_SCHEMA = {"type": "array", "items": _Described.model_json_schema()}
_BULK_BODY = body_of(
    {
        **form(
            {
                "images": IMAGES,
                "items": {"type": "string", "description": "JSON list, in the order of the images"},
            },
            ["images", "items"],
        ),
        **json_body({"type": "object", "required": ["items"], "properties": {"items": _ITEMS_SCHEMA}}),
    }
)


@router.put(_ITEM, openapi_extra=IMAGE_AND_PAYLOAD_BODY, responses=answers(PUT))
async def put_item(
    request: Request, model: IndexedModel, item_id: ItemPath, domain: DomainName, label: Label
) -> Response:
    """Index one picture; the same call again changes nothing."""
    core: Core = request.app.state.core
    given, fields = await read_image_and_fields(request, model.pipeline)
    payload = check_payload(parse_json(fields.get("payload", "{}"), _MAX_PAYLOAD_BYTES))
    async with deadline(request):
        embedded = await embed_given(request, model, given)
        (created,) = await core.index.upsert([Item(item_id, domain, label, embedded.embedding, payload)])
    note(request, embedded)
    return json_response({"id": item_id, "created": created})


@router.post("/v1/items", openapi_extra=_BULK_BODY, responses=answers(ITEMS))
async def post_items(request: Request, model: IndexedModel) -> Response:
    """Index many pictures, by image or by embedding; each has its own result."""
    core: Core = request.app.state.core
    if media_type(request.headers) == "application/json":
        most = MAX_IMAGES * (model.manifest.dim + _VALUES_BESIDE)
        body = await read_json(request, MAX_JSON_BYTES, most)
        entries = _entries(body.get("items") if isinstance(body, dict) else None)
        results = [_described(entry, _given_embedding(entry, model.manifest.dim)) for entry in entries]
    else:
        results = await _from_images(request, core, model)
    good = [result for result in results if isinstance(result, Item)]
    if good:
        await core.index.upsert(good)
    return json_response({"results": [_result_json(result) for result in results]})


@router.get(_ITEM, responses=answers(ITEM))
async def get_item(request: Request, item_id: ItemPath) -> Response:
    """The item, its embedding included."""
    core: Core = request.app.state.core
    item = await core.index.get(item_id)
    return json_response({**item_json(item), "embedding": item.embedding.tolist()})


@router.delete(_ITEM, responses=answers(DELETED))
async def delete_item(request: Request, item_id: ItemPath) -> Response:
    """Whether there was such an item; now there is none."""
    core: Core = request.app.state.core
    return json_response({"deleted": await core.index.delete(item_id)})


async def _from_images(request: Request, core: Core, model: Model) -> list[Item | dict[str, Any]]:
    async with form_of(request, core.settings.max_request_bytes) as fields, deadline(request):
        described, files = fields.get("items"), fields.getlist("images")
        if not isinstance(described, str):
            raise InvalidRequest("multipart field `items` must be there, and be a JSON list")
        entries = _entries(parse_json(described, MAX_IMAGES * _VALUES_BESIDE))
        if len(entries) != len(files):
            raise InvalidRequest(f"{len(files)} images, but {len(entries)} items")
        embedded = await embed_files(request, model, files)
    note(request, *embedded)
    return [
        _described(entry, one.embedding if isinstance(one, Embedded) else one)
        for entry, one in zip(entries, embedded, strict=True)
    ]


def check_payload(value: Any) -> dict[str, Any]:
    """A payload that comes back as it went in. Raises InvalidRequest.

    The engine cannot read back what is nested more than about 120 deep, not even its own log, and turns
    whole numbers over 64 bits into floats.
    """
    if not isinstance(value, dict):
        raise InvalidRequest("`payload` must be a JSON object")
    try:
        size_bytes = len(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
    except ValueError as error:
        raise InvalidRequest("`payload` has a number that is not finite") from error
    if size_bytes > _MAX_PAYLOAD_BYTES:
        raise InvalidRequest("`payload` is too long", limit=_MAX_PAYLOAD_BYTES, got=size_bytes)
    level: list[Any] = [value]
    for _ in range(_MAX_PAYLOAD_DEPTH):
        if any(type(part) is int and not -(2**63) <= part < 2**64 for part in level):
            raise InvalidRequest("`payload` has a whole number that does not fit 64 bits")
        inner = [
            part.values() if isinstance(part, dict) else part
            for part in level
            if isinstance(part, dict | list)
        ]
        level = [part for parts in inner for part in parts]
    if level:
        raise InvalidRequest("`payload` is nested too deep", limit=_MAX_PAYLOAD_DEPTH)
    return value


def _entries(value: Any) -> list[Any]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_IMAGES:
        raise InvalidRequest(f"`items` must be a list of 1 to {MAX_IMAGES}")
    return value


def _given_embedding(entry: Any, dim: int) -> NDArray[np.float32] | ServiceError:
    try:
        return check_embedding(entry.get("embedding") if isinstance(entry, dict) else None, dim)
    except ServiceError as error:
        return error


def _described(entry: Any, embedding: NDArray[np.float32] | ServiceError) -> Item | dict[str, Any]:
    made = embedding if isinstance(embedding, ServiceError) else _item(entry, embedding)
    if isinstance(made, Item):
        return made
    given = entry.get("id") if isinstance(entry, dict) else None
    return {"id": given if isinstance(given, str) else None, "error": made.problem()}


def _item(entry: Any, embedding: NDArray[np.float32]) -> Item | InvalidRequest:
    try:
        said = _Described.model_validate(entry)
        payload = check_payload(said.payload)
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        return InvalidRequest("; ".join(faults))
    except InvalidRequest as error:
        return error
    return Item(said.id, said.domain, said.label, embedding, payload)


def _result_json(result: Item | dict[str, Any]) -> dict[str, Any]:
    return {"id": result.id} if isinstance(result, Item) else result
