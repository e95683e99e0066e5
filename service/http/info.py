"""`/v1/domains` and `/v1/info`: what is indexed, and what serves it."""

import asyncio
import contextlib

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.responses import Response

from service import __version__
from service.core import Core
from service.errors import ServiceError
from service.http.handling import json_response
from service.http.schemas import DOMAINS, INFO, answers
from service.metrics import Processes

router = APIRouter()


@router.get("/v1/domains", responses=answers(DOMAINS))
async def domains(request: Request) -> Response:
    """The domains that have items, by name."""
    core: Core = request.app.state.core
    counts = await core.index.domains()
    return json_response({"domains": [{"name": name, "items": n} for name, n in counts.items()]})


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """For Prometheus: the sums over all worker processes."""
    core: Core = request.app.state.core
    # An index that does not answer keeps its last size here: metrics are wanted most when something is down.
    with contextlib.suppress(ServiceError):
        await core.count_items()
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    registry.register(Processes())
    return Response(await asyncio.to_thread(generate_latest, registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/info", responses=answers(INFO))
async def info(request: Request) -> Response:
    """The model's card, what is really active, the index, and the limits."""
    core: Core = request.app.state.core
    settings, manifest = core.settings, core.manifest
    items, indexed_vectors = await core.index.counts()
    return json_response(
        {
            "version": __version__,
            "model": manifest.model_dump(mode="json"),
            "models": [one.model_dump(mode="json") for one in core.manifests],
            "provider": settings.provider,  # active: any other is a refusal to start
            "precision": manifest.precision,
            "index": {
                "backend": core.index.backend,
                "fingerprint": core.index.fingerprint,
                "items": items,
                "indexed_vectors": indexed_vectors,
                "quantization": core.index.quantization,
                "ef": settings.index_ef,
            },
            "limits": settings.model_dump(
                include={
                    "max_image_bytes",
                    "max_image_pixels",
                    "max_request_bytes",
                    "max_batch",
                    "queue_limit",
                }
            ),
            "settings": settings.model_dump(include={"threads", "lanes", "workers", "cache_items"}),
        }
    )
