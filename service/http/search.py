"""`/v1/search`: an image, an embedding or an indexed id to its nearest items, across domains."""

from collections import Counter
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi import Query as QueryParam
from numpy.typing import NDArray
from starlette.responses import Response

from service.core import Core
from service.errors import EmbeddingShape, InvalidRequest
from service.http.body import Link, media_type, read_image, read_json
from service.http.handling import deadline, embed_given, json_response, note
from service.http.model_choice import IndexedModel, model_card
from service.http.schemas import FOUND, IMAGE, LINK, answers, body_of, json_body
from service.index import Hit, Item, Query
from service.inference.model import Model
from service.settings import MAX_EF

router = APIRouter()

DomainName = Annotated[str, QueryParam(pattern="^[a-z0-9_-]{1,64}$")]
ItemId = Annotated[str, QueryParam(min_length=1, max_length=512)]

_MAX_JSON_BYTES = 2**20

_EMBEDDING_ID_OR_LINK = {
    "oneOf": [
        {
            "type": "object",
            "required": ["embedding"],
            "properties": {"embedding": {"type": "array", "items": {"type": "number"}}},
        },
        {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}}},
        LINK,
    ]
}


@router.post(
    "/v1/search",
    openapi_extra=body_of({**IMAGE, **json_body(_EMBEDDING_ID_OR_LINK)}),
    responses=answers(FOUND),
)
async def search(
    request: Request,
    model: IndexedModel,
    k: Annotated[int, QueryParam(ge=1, le=100)] = 10,
    domain: Annotated[list[DomainName], QueryParam()] = [],  # noqa: B006 (FastAPI copies it)
    group_by: Literal["domain", "label"] | None = None,
    min_score: Annotated[float, QueryParam(ge=-1, le=1)] = -1,
    exact: bool = False,
    exclude: Annotated[list[ItemId], QueryParam()] = [],  # noqa: B006
    ef: Annotated[int | None, QueryParam(ge=1, le=MAX_EF)] = None,
) -> Response:
    """The k best hits; `group_by` also sorts them into groups, best group first.

    `ef` is how many candidates the search keeps on its way through an HNSW graph: more find more of the
    nearest and take longer. Nothing to one that is `exact`.
    """
    core: Core = request.app.state.core
    is_json = media_type(request.headers) == "application/json"
    # Read before the deadline is entered: it listens to the client, too, and would take part of the body.
    body = await (read_json(request, _MAX_JSON_BYTES) if is_json else read_image(request, model.pipeline))
    async with deadline(request):
        embedding = await (_given if is_json else _embed)(request, model, body)
        query = Query(embedding, k, tuple(domain), tuple(exclude), exact, ef or core.settings.index_ef)
        hits, search_ms = await core.timed_search(query)
    request.state.stages_ms["search"] = search_ms
    hits = [hit for hit in hits if hit.score >= min_score]
    answer: dict[str, Any] = {"hits": [hit_json(hit) for hit in hits], "domains": neighbourhood(hits)}
    if group_by:
        answer["groups"] = _groups(hits, group_by)
    return json_response({**answer, **model_card(model.manifest)})


def neighbourhood(hits: list[Hit]) -> dict[str, float]:
    """Each domain's share of the hits, largest first."""
    return {name: n / len(hits) for name, n in Counter(hit.item.domain for hit in hits).most_common()}


def item_json(item: Item) -> dict[str, Any]:
    """An item as the contract has it."""
    return {"id": item.id, "domain": item.domain, "label": item.label, "payload": item.payload}


def hit_json(hit: Hit) -> dict[str, Any]:
    """A hit: its item, and the score."""
    return {**item_json(hit.item), "score": hit.score}


def check_embedding(values: Any, dim: int) -> NDArray[np.float32]:
    """A client's vector as a float32 (dim,) of unit norm. Raises EmbeddingShape."""
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
        raise EmbeddingShape("`embedding` must be finite, and not zero")
    vector = vector / largest  # so that the norm of huge or tiny numbers is a number
    norm = float(np.linalg.norm(vector))
    unit = vector / norm
    # An embedding that came from here has unit norm up to float32; it goes back unchanged.
    if abs(norm * largest - 1) < 1e-6:
        unit = np.asarray(values, dtype=np.float64)
    return unit.astype(np.float32)


async def _embed(request: Request, model: Model, image: bytes | Link) -> NDArray[np.float32]:
    embedded = await embed_given(request, model, image)
    note(request, embedded)
    return embedded.embedding


async def _given(request: Request, model: Model, body: Any) -> NDArray[np.float32]:
    match body:
        case {"embedding": values, **rest} if not rest:
            return check_embedding(values, model.manifest.dim)
        case {"id": str(item_id), **rest} if not rest and 1 <= len(item_id) <= 512:
            core: Core = request.app.state.core
            return (await core.index.get(item_id)).embedding
        case {"url": str(url), **rest} if not rest:
            return await _embed(request, model, Link(url))
    raise InvalidRequest('the JSON body must be {"embedding": [...]}, {"id": "..."} or {"url": "..."}')


def _groups(hits: list[Hit], group_by: Literal["domain", "label"]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, ...], list[Hit]] = {}
    for hit in hits:  # labels are local to their domain
        key = (hit.item.domain,) if group_by == "domain" else (hit.item.domain, hit.item.label)
        groups.setdefault(key, []).append(hit)
    return [{"key": key[-1], "hits": [hit_json(hit) for hit in found]} for key, found in groups.items()]
