"""What OpenAPI says of the bodies that the routes read themselves."""

from typing import Any

_FILE = {"type": "string", "format": "binary"}
_RAW_IMAGE = {media: {"schema": _FILE} for media in ("image/*", "application/octet-stream")}


def body_of(content: dict[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of a route whose body is required."""
    return {"requestBody": {"required": True, "content": content}}


def form(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    """A multipart form."""
    schema = {"type": "object", "properties": properties, "required": required}
    return {"multipart/form-data": {"schema": schema}}


def json_body(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON body."""
    return {"application/json": {"schema": schema}}


LINK = {
    "type": "object",
    "required": ["url"],
    "properties": {"url": {"type": "string", "description": "Where the image is"}},
}
IMAGES = {"type": "array", "items": _FILE}
IMAGE = {**_RAW_IMAGE, **form({"image": _FILE}, ["image"])}
IMAGE_BODY = body_of({**IMAGE, **json_body(LINK)})
_IMAGE_AND_PAYLOAD = form({"image": _FILE, "payload": {"type": "string"}}, ["image"])
IMAGE_AND_PAYLOAD_BODY = body_of({**_RAW_IMAGE, **_IMAGE_AND_PAYLOAD, **json_body(LINK)})
