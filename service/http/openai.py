"""`/v1/embeddings`: OpenAI's request and response for images, as data URIs or URLs."""

import base64
import binascii
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError
from starlette.responses import Response

from service.errors import ImageTooLarge, InvalidRequest, UnsupportedMediaType
from service.http.body import MAX_IMAGES, Link, check_values, media_type, read_body
from service.http.handling import CoreDep, Embedder, StateDep, faults_of, json_response
from service.http.schemas import JSON, OPENAI, body_of, response_of

router = APIRouter()

_MAX_VALUES = 10 * MAX_IMAGES  # a data URI counts as two
_MAX_FAULTS = 5  # reported in one error


class _Body(BaseModel, extra="ignore", strict=True):
    """The supported members of OpenAI's request; other members, which OpenAI's clients send, are ignored."""

    input: str | Annotated[list[str], Field(min_length=1, max_length=MAX_IMAGES)] = Field(
        description="Images as data URIs: data:image/jpeg;base64,...; or as URLs, if UIE_URL_HOSTS is set"
    )
    model: str | None = Field(None, description="Name of a served model; by default the first one.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, description="If given, the model's own.")


@router.post(
    "/v1/embeddings",
    openapi_extra=body_of({JSON: _Body.model_json_schema()}),
    responses=response_of(OPENAI),
)
async def embeddings(request: Request, core: CoreDep, state: StateDep) -> Response:
    """Embed images. If one fails, the request fails: OpenAI's response has no errors of single inputs."""
    state.body.admit_bulk()
    max_bytes = core.settings.max_image_bytes
    body = _parse(await read_body(request, core.settings.max_request_bytes), request)
    embedder = Embedder(core, state, core.model(body.model))
    manifest = embedder.model.manifest
    if body.dimensions not in (None, manifest.dim):
        raise InvalidRequest("`dimensions` must be the model's own", limit=manifest.dim, got=body.dimensions)

    async def read(source: str) -> bytes | Link:
        if source.startswith(("https://", "http://")):
            return Link(source)
        return _image_of(source, max_bytes)  # decoded only now: all of them at once would double the memory

    results = await embedder.embed_all([body.input] if isinstance(body.input, str) else body.input, read)
    data = []
    for index, result in enumerate(results):
        vector = _encoded(result.embedding, body.encoding_format)
        data.append({"object": "embedding", "index": index, "embedding": vector})
    usage = {"prompt_tokens": 0, "total_tokens": 0}  # OpenAI's clients require it; an image has no tokens
    return json_response({"object": "list", "data": data, "model": manifest.name, "usage": usage})


def _parse(body: bytes, request: Request) -> _Body:
    if media_type(request.headers) != "application/json":
        raise UnsupportedMediaType("the body must be application/json")
    check_values(body, _MAX_VALUES)
    try:
        return _Body.model_validate_json(body)
    except ValidationError as error:
        raise InvalidRequest(f"invalid request body: {faults_of(error.errors()[:_MAX_FAULTS])}") from error


def _image_of(data_uri: str, max_bytes: int) -> bytes:
    head, comma, body = data_uri.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise InvalidRequest("`input` takes data URIs (data:image/png;base64,...) and URLs, not text")
    if (got := len(body) * 3 // 4 - body[-2:].count("=")) > max_bytes:  # checked before decoding
        raise ImageTooLarge("the image has too many bytes", limit=max_bytes, got=got)
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"the data URI is not valid base64: {error}") from error


def _encoded(embedding: NDArray[np.float32], encoding: Literal["float", "base64"]) -> Any:
    if encoding == "float":
        return embedding.tolist()
    return base64.b64encode(embedding.astype("<f4").tobytes()).decode()
