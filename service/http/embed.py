"""`/v1/embed` and `/v1/embed/batch`: images in, embeddings out."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.core import Core
from service.errors import ServiceError
from service.http.body import form_of, read_image
from service.http.handling import deadline, embed_files, embed_given, json_response, note
from service.http.model_choice import AskedModel, model_card
from service.http.schemas import EMBEDDING, EMBEDDINGS, IMAGE_BODY, IMAGES, answers, body_of, form
from service.inference.pipeline import Embedded

router = APIRouter()


@router.post(
    "/v1/embed",
    openapi_extra=IMAGE_BODY,
    responses=answers(EMBEDDING, ["application/octet-stream"]),
)
async def embed(request: Request, model: AskedModel) -> Response:
    """One image to its embedding; as bytes with `Accept: application/octet-stream`."""
    given = await read_image(request, model.pipeline)
    async with deadline(request):
        embedded = await embed_given(request, model, given)
    note(request, embedded)
    if "application/octet-stream" in request.headers.get("accept", ""):
        return Response(embedded.embedding.astype("<f4").tobytes(), media_type="application/octet-stream")
    return json_response({"embedding": embedded.embedding.tolist(), **model_card(model.manifest)})


@router.post(
    "/v1/embed/batch",
    openapi_extra=body_of(form({"images": IMAGES}, ["images"])),
    responses=answers(EMBEDDINGS),
)
async def embed_batch(request: Request, model: AskedModel) -> Response:
    """Several images, each with its embedding or its own error, in order."""
    core: Core = request.app.state.core
    async with form_of(request, core.settings.max_request_bytes) as fields, deadline(request):
        files = fields.getlist("images")
        results = await embed_files(request, model, files)
    note(request, *results)
    return json_response({"results": [_result(one) for one in results], **model_card(model.manifest)})


def _result(one: Embedded | ServiceError) -> dict[str, Any]:
    if isinstance(one, ServiceError):
        return {"error": one.problem()}
    return {"embedding": one.embedding.tolist()}
