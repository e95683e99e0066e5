"""`/v1/embed` and `/v1/embed/batch`: embed one image, or several."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.errors import ServiceError
from service.http.body import read_form
from service.http.handling import EmbedderDep, json_response, model_card, rows_response
from service.http.schemas import EMBEDDING, EMBEDDINGS, IMAGE_BODY, IMAGES_BODY, response_of
from service.inference.work import Embedded

router = APIRouter()  # `handling.App` calls its endpoints with these two arguments


@router.post("/v1/embed", openapi_extra=IMAGE_BODY, responses=response_of(EMBEDDING, binary=True))
async def embed(request: Request, embedder: EmbedderDep) -> Response:
    """Embed one image. With `Accept: application/octet-stream` the embedding is little-endian float32."""
    embedding = (await embedder.embed(await embedder.read_image(request))).embedding
    if "application/octet-stream" in request.headers.get("accept", ""):
        return Response(embedding.astype("<f4").tobytes(), media_type="application/octet-stream")
    return json_response({"embedding": embedding.tolist(), **model_card(embedder.model.manifest)})


@router.post("/v1/embed/batch", openapi_extra=IMAGES_BODY, responses=response_of(EMBEDDINGS))
async def embed_batch(request: Request, embedder: EmbedderDep) -> Response:
    """Embed several images. Each has its own embedding or error, in order."""
    embedder.admit_bulk()
    form = await read_form(request, embedder.core.settings.max_request_bytes, ["images"])
    results = await embedder.embed_files(form.getlist("images"))
    return await rows_response("results", results, _row, model_card(embedder.model.manifest))


def _row(result: Embedded | ServiceError) -> dict[str, Any]:
    if isinstance(result, ServiceError):
        return {"error": result.problem()}
    return {"embedding": result.embedding.tolist()}
