"""`/v1/domains`, `/v1/info` and `/metrics`: the state of the index and of the service."""

import asyncio
import bisect
from typing import Annotated

from fastapi import APIRouter, Query
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.responses import Response

from service import __version__
from service.http.handling import CoreDep, IndexDep, json_response
from service.http.schemas import DOMAINS, INFO, response_of
from service.inference.model import Model
from service.metrics import IndexItems, Processes

_LIMITS = {"max_image_bytes", "max_image_pixels", "max_request_bytes", "queue_limit"}
_MAX_PAGE = 1000
router = APIRouter()


@router.get("/v1/domains", responses=response_of(DOMAINS))
async def domains(
    index: IndexDep,
    limit: Annotated[int, Query(ge=1, le=_MAX_PAGE, description="Domains in the response.")] = _MAX_PAGE,
    after: Annotated[str, Query(max_length=64, description="`next` of the previous page.")] = "",
) -> Response:
    """Return the domains that have items, in the order of their names. `next` is present if more follow."""
    counts = await index.domains()
    names = list(counts)  # sorted
    start = bisect.bisect_right(names, after)
    page = names[start : start + limit]
    more = {"next": page[-1]} if start + limit < len(names) else {}
    return json_response({"domains": [{"name": name, "items": counts[name]} for name in page], **more})


@router.get("/metrics", include_in_schema=False)
async def metrics(core: CoreDep) -> Response:
    """Return the metrics for Prometheus, summed over all worker processes."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    registry.register(Processes())
    if (counts := await core.item_counts()) is not None:
        registry.register(IndexItems(counts))
    return Response(await asyncio.to_thread(generate_latest, registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/info", responses=response_of(INFO))
async def info(core: CoreDep) -> Response:
    """Return the model card, the active provider and precision, the index, and the limits."""
    settings, manifest = core.settings, core.manifest
    models = [core.model(served.name) for served in core.manifests]
    items, indexed_vectors = await core.index.counts()
    return json_response(
        {
            "version": __version__,
            "model": manifest.model_dump(mode="json"),
            "models": [{**model.manifest.model_dump(mode="json"), **_batches(model)} for model in models],
            "provider": settings.provider,  # the active one: the service does not start with any other
            "precision": manifest.precision,
            "batch": _batches(models[0])["batch"],
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
                "max_batch": models[0].max_batch,
                "max_base64_bytes": settings.max_base64_bytes,
            },
            "settings": settings.model_dump(include={"threads", "lanes", "workers", "cache_items"}),
        }
    )


def _batches(model: Model) -> dict[str, int | str]:
    """Return the sizes of a model's batches: of any size up to the setting, or those of its graph."""
    return {"batch": model.encoder.fixed_batch or "dynamic", "max_batch": model.max_batch}
