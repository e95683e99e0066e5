"""`/v1/domains`, `/v1/info` and `/metrics`: the state of the index and of the service."""

import asyncio
import contextlib

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.responses import Response

from service import __version__
from service.errors import ServiceError
from service.http.handling import CoreDep, json_response
from service.http.schemas import DOMAINS, INFO, response_of
from service.metrics import Processes

_LIMITS = {"max_image_bytes", "max_image_pixels", "max_request_bytes", "max_batch", "queue_limit"}
router = APIRouter()


@router.get("/v1/domains", responses=response_of(DOMAINS))
async def domains(core: CoreDep) -> Response:
    """Return the domains that have items, in the order of their names."""
    counts = await core.index.domains()
    return json_response({"domains": [{"name": name, "items": count} for name, count in counts.items()]})


@router.get("/metrics", include_in_schema=False)
async def metrics(core: CoreDep) -> Response:
    """Return the metrics for Prometheus, summed over all worker processes."""
    # If the index does not respond, its last size stays: metrics must work when something else is down.
    with contextlib.suppress(ServiceError):
        await core.count_items()
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    registry.register(Processes())
    return Response(await asyncio.to_thread(generate_latest, registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/info", responses=response_of(INFO))
async def info(core: CoreDep) -> Response:
    """Return the model card, the active provider and precision, the index, and the limits."""
    settings, manifest = core.settings, core.manifest
    items, indexed_vectors = await core.index.counts()
    return json_response(
        {
            "version": __version__,
            "model": manifest.model_dump(mode="json"),
            "models": [served.model_dump(mode="json") for served in core.manifests],
            "provider": settings.provider,  # the active one: the service does not start with any other
            "precision": manifest.precision,
            "index": {
                "backend": core.index.backend,
                "fingerprint": core.index.fingerprint,
                "items": items,
                "indexed_vectors": indexed_vectors,
                "quantization": core.index.quantization,
                "ef": settings.index_ef,
            },
            "limits": {
                **settings.model_dump(include=_LIMITS),
                "max_base64_bytes": settings.max_base64_bytes,
            },
            "settings": settings.model_dump(include={"threads", "lanes", "workers", "cache_items"}),
        }
    )
