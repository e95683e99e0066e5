"""`/v1/embed` and `/v1/embed/batch`: embed one image, or several."""

import re
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.errors import ServiceError
from service.http.body import read_form
from service.http.handling import EmbedderDep, json_response, model_card, rows_response
from service.http.parsing import MAX_IMAGES
from service.http.schemas import EMBEDDING, EMBEDDINGS, IMAGE_BODY, IMAGES_BODY, response_of
from service.inference.work import Embedded

router = APIRouter()  # `handling.App` calls its endpoints with these two arguments

_BYTES = "application/octet-stream"
_MAX_RANGES = 32  # of an Accept header; the others are ignored
_QUALITY = re.compile(r"[01](\.[0-9]{0,3})?")


@router.post("/v1/embed", openapi_extra=IMAGE_BODY, responses=response_of(EMBEDDING, binary=True))
async def embed(request: Request, embedder: EmbedderDep) -> Response:
    """Embed one image. With `Accept: application/octet-stream` the embedding is little-endian float32."""
    embedding = (await embedder.embed(await embedder.read_image(request))).embedding
    if _prefers_bytes(request.headers.get("accept", "")):
        return Response(embedding.astype("<f4").tobytes(), media_type="application/octet-stream")
    return json_response({"embedding": embedding.tolist(), **model_card(embedder.model.manifest)})


@router.post("/v1/embed/batch", openapi_extra=IMAGES_BODY, responses=response_of(EMBEDDINGS))
async def embed_batch(request: Request, embedder: EmbedderDep) -> Response:
    """Embed several images. Each has its own embedding or error, in order."""
    embedder.admit_bulk()
    form = await read_form(request, embedder.core.settings.max_request_bytes, images=MAX_IMAGES)
    results = await embedder.embed_files(form.getlist("images"))
    return await rows_response("results", results, _row, model_card(embedder.model.manifest))


def _prefers_bytes(accept: str) -> bool:
    """Return True if an Accept header names bytes, and does not prefer JSON to them."""
    if _BYTES not in accept.lower():
        return False
    weights = {}
    for media_range in accept.lower().split(",", _MAX_RANGES)[:_MAX_RANGES]:
        name, *parameters = (part.strip() for part in media_range.split(";"))
        quality = next((part[2:].strip() for part in parameters if part.startswith("q=")), "1")
        weights[name] = float(quality) if _QUALITY.fullmatch(quality) else 1.0
    return 0 < weights.get(_BYTES, 0) >= weights.get("application/json", 0)


def _row(result: Embedded | ServiceError) -> dict[str, Any]:
    if isinstance(result, ServiceError):
        return {"error": result.problem()}
    return {"embedding": result.embedding.tolist()}
