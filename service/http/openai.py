"""`/v1/embeddings`: images in OpenAI's shape, as data URIs or URLs, for clients that speak it."""

import base64
import binascii
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from service.core import Core
from service.errors import ImageTooLarge, InvalidRequest, ServiceError, UnsupportedMediaType
from service.http.body import MAX_IMAGES, Link, check_values, media_type, read_body
from service.http.handling import deadline, embed_given, embed_many, json_response, note
from service.http.schemas import OPENAI, answers, body_of, json_body
from service.inference.model import Model
from service.inference.pipeline import Embedded

router = APIRouter()

_MAX_VALUES = 10 * MAX_IMAGES  # an image by data URI is two


class _Asked(BaseModel):
    """What of OpenAI's request means something here; the rest is let pass, as OpenAI's clients send it."""

    model_config = ConfigDict(extra="ignore", strict=True)

    input: str | Annotated[list[str], Field(min_length=1, max_length=MAX_IMAGES)] = Field(
        description="Images as data URIs: data:image/jpeg;base64,...; or URLs, where they are fetched"
    )
    model: str | None = Field(None, description="One of the served models; the first if not given.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, description="The model's own, if given.")


@router.post(
    "/v1/embeddings",
    openapi_extra=body_of(json_body(_Asked.model_json_schema())),
    responses=answers(OPENAI),
)
async def embeddings(request: Request) -> Response:
    """Images to embeddings. One that fails fails the request: OpenAI's answer has no place for it."""
    core: Core = request.app.state.core
    asked = _parse(await read_body(request, core.settings.max_request_bytes), request)
    model = core.model(asked.model)
    request.state.fingerprint, dim = model.manifest.fingerprint, model.manifest.dim
    if asked.dimensions not in (None, dim):
        raise InvalidRequest("`dimensions` is the model's own", limit=dim, got=asked.dimensions)
    inputs = [asked.input] if isinstance(asked.input, str) else asked.input
    async with deadline(request):
        results = await embed_many(model, [partial(_embed, request, model, one) for one in inputs])
    note(request, *results)
    data = []
    for index, one in enumerate(results):
        if isinstance(one, ServiceError):
            # A copy: where images coalesce, the error is another request's, too.
            raise type(one)(one.detail, **{**one.members, "index": index}) from one
        vector = _written(one.embedding, asked.encoding_format)
        data.append({"object": "embedding", "index": index, "embedding": vector})
    usage = {"prompt_tokens": 0, "total_tokens": 0}  # their clients expect the table; an image has no tokens
    return json_response({"object": "list", "data": data, "model": model.manifest.name, "usage": usage})


def _parse(body: bytes, request: Request) -> _Asked:
    if media_type(request.headers) != "application/json":
        raise UnsupportedMediaType("send application/json")
    check_values(body, _MAX_VALUES)
    try:
        return _Asked.model_validate_json(body)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise InvalidRequest(f"the request cannot be read: {faults}") from error


async def _embed(request: Request, model: Model, given: str) -> Embedded:
    if given.startswith(("https://", "http://")):
        return await embed_given(request, model, Link(given))
    core: Core = request.app.state.core
    # Decoded when it is the image's turn, so that one request holds few images twice.
    return await embed_given(request, model, _decoded(given, core.settings.max_image_bytes))


def _decoded(uri: str, max_bytes: int) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise InvalidRequest("`input` takes data URIs (data:image/png;base64,...) and URLs, not text")
    if (got := len(body) * 3 // 4 - body[-2:].count("=")) > max_bytes:  # known before it is decoded
        raise ImageTooLarge("the image has too many bytes", limit=max_bytes, got=got)
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"the data URI is not base64: {error}") from error


def _written(embedding: NDArray[np.float32], encoding: Literal["float", "base64"]) -> Any:
    if encoding == "float":
        return embedding.tolist()
    return base64.b64encode(embedding.astype("<f4").tobytes()).decode()
