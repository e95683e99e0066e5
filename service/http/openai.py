"""Routes with the requests and responses of other vendors: OpenAI's embeddings and models, Cohere's embed."""

import asyncio
import base64
import contextlib
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from starlette.responses import Response

from service.core import Core
from service.errors import InvalidRequest
from service.http.body import Link
from service.http.data_uris import Source, decode_base64
from service.http.envelope import RequestState
from service.http.handling import (
    CoreDep,
    Embedder,
    StateDep,
    admit_batch,
    encoded_rows,
    json_response,
    large_response,
    rows_response,
)
from service.http.schemas import (
    COHERE,
    COHERE_BODY,
    OPENAI,
    OPENAI_BODY,
    OPENAI_MODEL,
    OPENAI_MODELS,
    response_of,
)
from service.http.shapes import Batch, parse_cohere, parse_openai, read_batch
from service.manifest import Manifest

router = APIRouter()

_INLINE_BYTES = 32 * 1024  # of base64, decoded in 0.1 ms; more is decoded in a thread


@router.post("/v1/embeddings", openapi_extra=OPENAI_BODY, responses=response_of(OPENAI))
async def embeddings(request: Request, core: CoreDep, state: StateDep) -> Response:
    """Embed images. If one fails, the request fails: OpenAI's response has no errors of single inputs."""
    admit_batch(core, state)
    batch = await read_batch(request, parse_openai, core.settings.max_base64_bytes)
    manifest, embeddings = await _embed(batch, core, state)

    def row(index: int) -> dict[str, Any]:
        embedding = _encoded(embeddings[index], batch.encodings[0])
        return {"object": "embedding", "index": index, "embedding": embedding}

    usage = {"prompt_tokens": 0, "total_tokens": 0}  # OpenAI's clients require it; an image has no tokens
    members = {"object": "list", "model": manifest.name, "usage": usage}
    return await rows_response("data", range(len(embeddings)), row, members)


@router.post("/v2/embed", openapi_extra=COHERE_BODY, responses=response_of(COHERE))
async def cohere_embed(request: Request, core: CoreDep, state: StateDep) -> Response:
    """Embed images. If one fails, the request fails: Cohere's response has no errors of single images."""
    admit_batch(core, state)
    batch = await read_batch(request, parse_cohere, core.settings.max_base64_bytes)
    _, rows = await _embed(batch, core, state)

    def content() -> dict[str, Any]:
        return {
            "id": state.request_id,
            "embeddings": {
                encoding: encoded_rows(rows, partial(_encoded, encoding=encoding))
                for encoding in batch.encodings
            },
            "texts": [],
            "meta": {"api_version": {"version": "2"}, "billed_units": {"images": len(rows)}},
            "response_type": "embeddings_by_type",
        }

    return await large_response(content, len(rows))


@router.get("/v1/models", responses=response_of(OPENAI_MODELS))
async def models(core: CoreDep) -> Response:
    """Return the served models; the first one is the default."""
    return json_response({"object": "list", "data": [_model(manifest) for manifest in core.manifests]})


@router.get("/v1/models/{name}", responses=response_of(OPENAI_MODEL))
async def model(name: str, core: CoreDep) -> Response:
    """Return a served model."""
    return json_response(_model(core.model(name).manifest))


def _model(manifest: Manifest) -> dict[str, Any]:
    created = 0
    with contextlib.suppress(ValueError):  # the manifest's date is not validated
        created = int(datetime.fromisoformat(manifest.exported).replace(tzinfo=UTC).timestamp())
    return {"id": manifest.name, "object": "model", "created": created, "owned_by": "local"}


async def _embed(batch: Batch, core: Core, state: RequestState) -> tuple[Manifest, list[NDArray[np.float32]]]:
    """Return the model's manifest and the embeddings. Raises the first error, with the image's `index`."""
    embedder = Embedder(core, state, core.model(batch.model))
    manifest = embedder.model.manifest
    if batch.dimensions not in (None, manifest.dim):
        raise InvalidRequest(
            "the number of dimensions must be the model's own", limit=manifest.dim, got=batch.dimensions
        )
    max_bytes, turn = core.settings.max_image_bytes, asyncio.Lock()

    async def read(source: Source) -> bytes | Link:
        if isinstance(source, Link):
            return source
        if len(source.text) <= _INLINE_BYTES:
            return decode_base64(source, max_bytes)
        async with turn:  # a request takes one thread, and decodes an image only when it is needed
            return await asyncio.to_thread(decode_base64, source, max_bytes)

    return manifest, [result.embedding for result in await embedder.embed_all(batch.sources, read)]


def _encoded(embedding: NDArray[np.float32], encoding: str) -> list[float] | str:
    if encoding == "float":
        values: list[float] = embedding.tolist()
        return values
    return base64.b64encode(embedding.astype("<f4").tobytes()).decode()
