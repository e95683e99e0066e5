"""OpenAPI schemas of bodies and responses: the routes handle plain values, so FastAPI cannot derive them.

`make fuzz` validates the live service's responses against them.
"""

from typing import Any

from service.errors import MethodNotAllowed, titles_by_status

JSON, FORM, _BYTES = "application/json", "multipart/form-data", "application/octet-stream"
_STRING = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_FILE = {"type": "string", "format": "binary"}
_VECTOR = {"type": "array", "items": {"type": "number"}}
_SHARES = {"type": "object", "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1}}


def object_of(optional: dict[str, Any] | None = None, **required: Any) -> dict[str, Any]:
    """Return the schema of an object with these properties."""
    return {"type": "object", "required": list(required), "properties": {**required, **(optional or {})}}


def list_of(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a list."""
    return {"type": "array", "items": schema}


_PROBLEM = object_of(
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
_ERROR = object_of(error=_PROBLEM)
_ITEM = {"id": _STRING, "domain": _STRING, "label": _STRING, "payload": {"type": "object"}}
_HITS = list_of(object_of(**_ITEM, score={"type": "number", "minimum": -1.0001, "maximum": 1.0001}))
_GROUPS = list_of(object_of(key=_STRING, hits=_HITS))
_OPENAI_ROW = object_of(
    object={"const": "embedding"}, index=_COUNT, embedding={"anyOf": [_VECTOR, {"type": "string"}]}
)
_IMAGE_URI = {
    **_STRING,
    "description": "Data URI, data:image/jpeg;base64,...; or a URL, if UIE_URL_HOSTS is set",
}
_OPENAI_INPUT = {"anyOf": [_IMAGE_URI, object_of(image={**_IMAGE_URI, "description": "Or bare base64"})]}
_MESSAGE = object_of(
    content=list_of(object_of(type={"const": "image_url"}, image_url=object_of(url=_IMAGE_URI)))
)
_MODEL = {"type": ["string", "null"], "description": "Name of a served model; by default the first one"}
_DIMENSIONS = {"type": ["integer", "null"], "description": "If present, the model's own"}
_USAGE = object_of(prompt_tokens=_COUNT, total_tokens=_COUNT)
_INDEX = object_of(
    backend=_STRING,
    fingerprint=_STRING,
    items=_COUNT,
    indexed_vectors=_COUNT,
    quantization=_STRING,
    ef={"type": ["integer", "null"]},
)

EMBEDDING = object_of(embedding=_VECTOR, **_CARD)
EMBEDDINGS = object_of(results=list_of({"oneOf": [object_of(embedding=_VECTOR), _ERROR]}), **_CARD)
OPENAI = object_of(object={"const": "list"}, data=list_of(_OPENAI_ROW), model=_STRING, usage=_USAGE)
OPENAI_MODEL = object_of(id=_STRING, object={"const": "model"}, created=_COUNT, owned_by=_STRING)
OPENAI_MODELS = object_of(object={"const": "list"}, data=list_of(OPENAI_MODEL))
COHERE = object_of(
    id=_STRING,
    embeddings=object_of({"float": list_of(_VECTOR), "base64": list_of(_STRING)}),
    texts=list_of(_STRING),
    meta={"type": "object"},
    response_type={"const": "embeddings_by_type"},
)
SEARCH = object_of({"groups": _GROUPS}, hits=_HITS, domains=_SHARES, **_CARD)
ITEM = object_of(**_ITEM, embedding=_VECTOR)
PUT = object_of(id=_STRING, created={"type": "boolean"})
ITEMS = object_of(results=list_of(object_of({"error": _PROBLEM}, id={})))
DELETED = object_of(deleted={"type": "boolean"})
DOMAINS = object_of({"next": _STRING}, domains=list_of(object_of(name=_STRING, items=_COUNT)))
INFO = object_of(
    version=_STRING,
    model={"type": "object"},
    models=list_of({"type": "object"}),
    provider=_STRING,
    precision=_STRING,
    batch={"oneOf": [{"const": "dynamic"}, _COUNT]},
    index=_INDEX,
    limits={"type": "object", "additionalProperties": _COUNT},
    settings={"type": "object", "additionalProperties": _COUNT},
)


def _content(schemas: dict[str, Any]) -> dict[str, Any]:
    return {media_type: {"schema": schema} for media_type, schema in schemas.items()}


def response_of(schema: dict[str, Any], binary: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return a route's `responses`: JSON, or also bytes, if the client accepts them."""
    return {200: {"content": _content({JSON: schema, _BYTES: _FILE} if binary else {JSON: schema})}}


def body_of(schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the `openapi_extra` of a route that requires a body, with a schema by media type."""
    return {"requestBody": {"required": True, "content": _content(schemas)}}


def with_embedding(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an item that is sent with its embedding."""
    properties = {**entry["properties"], "embedding": _GIVEN_VECTOR}
    return {**entry, "properties": properties, "required": [*entry["required"], "embedding"]}


def search_body(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the `openapi_extra` of the search, whose JSON body also takes the parameters."""
    names = {**parameters, "domain": {"anyOf": [_STRING, parameters["domain"]]}}
    nullable = {name: {"anyOf": [schema, {"type": "null"}]} for name, schema in names.items()}
    by_id = {**_STRING, "minLength": 1, "maxLength": 512}
    queries = [object_of(nullable, **query) for query in ({"embedding": _GIVEN_VECTOR}, {"id": by_id}, _URL)]
    return body_of({**_RAW_IMAGE, FORM: object_of(image=_FILE), JSON: {"oneOf": queries}})


def complete(openapi: dict[str, Any]) -> None:
    """Add to FastAPI's description what the envelope handles: the API key and the client's deadline."""
    bearer = {"type": "http", "scheme": "bearer", "description": "Required if UIE_API_KEYS is set."}
    openapi.setdefault("components", {})["securitySchemes"] = {"bearer": bearer}
    openapi["security"] = [{}, {"bearer": []}]
    for path, operations in openapi["paths"].items():
        for operation in operations.values() if path.startswith(("/v1/", "/v2/")) else ():
            operation.setdefault("parameters", []).append(_DEADLINE)


_DEADLINE = {
    "name": "X-Deadline-Ms",
    "in": "header",
    "required": False,
    "schema": {"type": "integer", "minimum": 1, "maximum": 9_999_999},
    "description": "Milliseconds that the client waits for the response.",
}
_GIVEN_VECTOR = {**_VECTOR, "description": "As many finite numbers as `dim`, not all zero; of any norm."}

IMAGES = list_of(_FILE)
_RAW_IMAGE = {"image/*": _FILE, _BYTES: _FILE}
_URL = {"url": {**_STRING, "description": "URL of the image"}}
_LINK = object_of(**_URL)
IMAGE_BODY = body_of({**_RAW_IMAGE, FORM: object_of(image=_FILE), JSON: _LINK})
IMAGES_BODY = body_of({FORM: object_of(images=IMAGES)})
PUT_BODY = body_of({**_RAW_IMAGE, FORM: object_of({"payload": _STRING}, image=_FILE), JSON: _LINK})
OPENAI_BODY = body_of(
    {
        JSON: object_of(
            {
                "input": {"anyOf": [_OPENAI_INPUT, list_of(_OPENAI_INPUT)]},
                "messages": {"anyOf": [list_of(_MESSAGE), list_of(list_of(_MESSAGE))]},
                "model": _MODEL,
                "encoding_format": {"enum": ["float", "base64", None]},
                "dimensions": _DIMENSIONS,
            }
        )
    }
)
COHERE_BODY = body_of(
    {
        JSON: object_of(
            {
                "images": list_of(_IMAGE_URI),
                "inputs": list_of(_MESSAGE),
                "model": _MODEL,
                "embedding_types": {"type": ["array", "null"], "items": {"enum": ["float", "base64"]}},
                "output_dimension": _DIMENSIONS,
            }
        )
    }
)
