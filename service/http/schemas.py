"""OpenAPI schemas of bodies and responses: the routes handle plain values, so FastAPI cannot derive them.

`make fuzz` validates the live service's responses against them.
"""

from collections.abc import Sequence
from typing import Any

from service.errors import MethodNotAllowed, titles_by_status

_STRING = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_VECTOR = {"type": "array", "items": {"type": "number"}}
_SHARES = {"type": "object", "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1}}


def _object(optional: dict[str, Any] | None = None, **required: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": {**required, **(optional or {})}}


def _list_of(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": schema}


_PROBLEM = _object(
    type=_STRING,
    title=_STRING,
    status={"type": "integer", "minimum": 400, "maximum": 599},
    detail=_STRING,
)
# The errors of every route; a documented operation never returns 405.
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": " or ".join(titles),
        "content": {"application/problem+json": {"schema": _PROBLEM}},
    }
    for status, titles in titles_by_status().items()
    if status != MethodNotAllowed.status
}

_CARD = {"dim": {"type": "integer"}, "model": _STRING, "fingerprint": _STRING}
_ERROR = _object(error=_PROBLEM)
_ITEM = {"id": _STRING, "domain": _STRING, "label": _STRING, "payload": {"type": "object"}}
_HITS = _list_of(_object(**_ITEM, score={"type": "number", "minimum": -1.0001, "maximum": 1.0001}))
_GROUPS = _list_of(_object(key=_STRING, hits=_HITS))
_OPENAI_ROW = _object(
    object={"const": "embedding"}, index=_COUNT, embedding={"anyOf": [_VECTOR, {"type": "string"}]}
)
_USAGE = _object(prompt_tokens=_COUNT, total_tokens=_COUNT)
_INDEX = _object(
    backend=_STRING,
    fingerprint=_STRING,
    items=_COUNT,
    indexed_vectors=_COUNT,
    quantization=_STRING,
    ef={"type": ["integer", "null"]},
)

EMBEDDING = _object(embedding=_VECTOR, **_CARD)
EMBEDDINGS = _object(results=_list_of({"oneOf": [_object(embedding=_VECTOR), _ERROR]}), **_CARD)
OPENAI = _object(object={"const": "list"}, data=_list_of(_OPENAI_ROW), model=_STRING, usage=_USAGE)
SEARCH = _object({"groups": _GROUPS}, hits=_HITS, domains=_SHARES, **_CARD)
ITEM = _object(**_ITEM, embedding=_VECTOR)
PUT = _object(id=_STRING, created={"type": "boolean"})
ITEMS = _object(results=_list_of(_object({"error": _PROBLEM}, id={})))
DELETED = _object(deleted={"type": "boolean"})
DOMAINS = _object(domains=_list_of(_object(name=_STRING, items=_COUNT)))
INFO = _object(
    version=_STRING,
    model={"type": "object"},
    models=_list_of({"type": "object"}),
    provider=_STRING,
    precision=_STRING,
    index=_INDEX,
    limits={"type": "object", "additionalProperties": _COUNT},
    settings={"type": "object", "additionalProperties": _COUNT},
)


def response_of(schema: dict[str, Any], binary_types: Sequence[str] = ()) -> dict[int | str, dict[str, Any]]:
    """Return a route's `responses`: JSON, or bytes of another media type if the client accepts it."""
    binary = {media: {"schema": {"type": "string", "format": "binary"}} for media in binary_types}
    return {200: {"content": {"application/json": {"schema": schema}, **binary}}}


_FILE = {"type": "string", "format": "binary"}
_RAW_IMAGE = {media: {"schema": _FILE} for media in ("image/*", "application/octet-stream")}


def body_of(content: dict[str, Any]) -> dict[str, Any]:
    """Return the `openapi_extra` of a route that requires a body."""
    return {"requestBody": {"required": True, "content": content}}


def form(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    """Return the content of a multipart form."""
    schema = {"type": "object", "properties": properties, "required": required}
    return {"multipart/form-data": {"schema": schema}}


def json_body(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a JSON body."""
    return {"application/json": {"schema": schema}}


LINK = {
    "type": "object",
    "required": ["url"],
    "properties": {"url": {"type": "string", "description": "URL of the image"}},
}
IMAGES = {"type": "array", "items": _FILE}
IMAGE = {**_RAW_IMAGE, **form({"image": _FILE}, ["image"])}
IMAGE_BODY = body_of({**IMAGE, **json_body(LINK)})
_IMAGE_AND_PAYLOAD = form({"image": _FILE, "payload": {"type": "string"}}, ["image"])
IMAGE_AND_PAYLOAD_BODY = body_of({**_RAW_IMAGE, **_IMAGE_AND_PAYLOAD, **json_body(LINK)})
