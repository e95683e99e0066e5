"""`/v1/search`: the nearest items of an image, an embedding or an indexed item, across domains."""

import asyncio
from collections import Counter
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Request
from fastapi import Query as QueryParam
from numpy.typing import NDArray
from starlette.responses import Response

from service.errors import EmbeddingShape, InvalidRequest
from service.http.body import Link, media_type, read_json
from service.http.handling import Embedder, IndexEmbedderDep, json_response, model_card
from service.http.schemas import SEARCH, SEARCH_BODY, response_of
from service.index import Hit, Query
from service.settings import MAX_EF

router = APIRouter()

DomainName = Annotated[str, QueryParam(pattern="^[a-z0-9_-]{1,64}$")]
ItemId = Annotated[str, QueryParam(min_length=1, max_length=512)]

_MAX_JSON_BYTES = 2**20
_ENCODED_HITS = 16  # on the event loop


@router.post("/v1/search", openapi_extra=SEARCH_BODY, responses=response_of(SEARCH))
async def search(
    request: Request,
    embedder: IndexEmbedderDep,
    k: Annotated[int, QueryParam(ge=1, le=100)] = 10,
    domain: Annotated[list[DomainName], QueryParam()] = [],  # noqa: B006 (FastAPI copies it)
    group_by: Literal["domain", "label"] | None = None,
    min_score: Annotated[float, QueryParam(ge=-1, le=1)] = -1,
    exact: bool = False,
    exclude: Annotated[list[ItemId], QueryParam()] = [],  # noqa: B006
    ef: Annotated[int | None, QueryParam(ge=1, le=MAX_EF)] = None,
) -> Response:
    """Return the k best hits; with `group_by` also in groups, best group first.

    `ef` is the number of candidates that the search keeps in an HNSW graph: a larger number finds more of
    the nearest items and takes longer. It has no effect on an `exact` search.
    """
    core = embedder.core
    if media_type(request.headers) == "application/json":
        embedding = await _query_embedding(embedder, await read_json(request, _MAX_JSON_BYTES))
    else:
        embedding = (await embedder.embed(await embedder.read_image(request))).embedding
    query = Query(embedding, k, tuple(domain), tuple(exclude), exact, ef or core.settings.index_ef)
    hits, embedder.state.stages_ms["search"] = await core.timed_search(query)
    hits = [hit for hit in hits if hit.score >= min_score]

    def respond() -> Response:
        groups = {"groups": _groups_json(hits, group_by)} if group_by else {}
        return json_response({**_hits_json(hits), **groups, **model_card(embedder.model.manifest)})

    # A payload may have 64 KiB.
    return respond() if len(hits) <= _ENCODED_HITS else await asyncio.to_thread(respond)


def _hits_json(hits: list[Hit]) -> dict[str, Any]:
    """Return the hits, and each domain's share of them, largest first."""
    shares = Counter(hit.item.domain for hit in hits).most_common()
    return {
        "hits": [_hit_json(hit) for hit in hits],
        "domains": {domain: count / len(hits) for domain, count in shares},
    }


def _hit_json(hit: Hit) -> orjson.Fragment:
    """Encode a hit by a separate call, because a call holds Python's lock."""
    return orjson.Fragment(orjson.dumps({**hit.item.fields(), "score": hit.score}))


def _groups_json(hits: list[Hit], group_by: Literal["domain", "label"]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, ...], list[Hit]] = {}
    for hit in hits:  # labels are local to their domain
        key = (hit.item.domain,) if group_by == "domain" else (hit.item.domain, hit.item.label)
        groups.setdefault(key, []).append(hit)
    return [{"key": key[-1], "hits": [_hit_json(hit) for hit in group]} for key, group in groups.items()]


async def _query_embedding(embedder: Embedder, body: Any) -> NDArray[np.float32]:
    match body:
        case {"embedding": values, **rest} if not rest:
            return check_embedding(values, embedder.model.manifest.dim)
        case {"id": str(item_id), **rest} if not rest and 1 <= len(item_id) <= 512:
            return (await embedder.core.index.get(item_id)).embedding
        case {"url": str(url), **rest} if not rest:
            return (await embedder.embed(Link(url))).embedding
    raise InvalidRequest('the JSON body must be {"embedding": [...]}, {"id": "..."} or {"url": "..."}')


def check_embedding(values: Any, dim: int) -> NDArray[np.float32]:
    """Return a client's vector as float32 (dim,) of unit norm. Raises EmbeddingShape."""
    if not isinstance(values, list) or any(type(value) not in (int, float) for value in values):
        raise EmbeddingShape("`embedding` must be a list of numbers")
    if len(values) != dim:
        raise EmbeddingShape(f"`embedding` must have {dim} numbers", limit=dim, got=len(values))
    try:
        vector = np.asarray(values, dtype=np.float64)
    except OverflowError as error:
        raise EmbeddingShape("`embedding` must be finite") from error
    largest = float(np.abs(vector).max())
    if not np.isfinite(largest) or largest == 0:
        raise EmbeddingShape("`embedding` must be finite and not zero")
    vector = vector / largest  # so that the norm of very large or small numbers does not overflow
    norm = float(np.linalg.norm(vector))
    unit = vector / norm
    # An embedding of this service has unit norm up to float32, and is returned unchanged.
    if abs(norm * largest - 1) < 1e-6:
        unit = np.asarray(values, dtype=np.float64)
    return unit.astype(np.float32)
