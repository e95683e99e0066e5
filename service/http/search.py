"""`/v1/search`: the nearest items of an image, an embedding or an indexed item, across domains."""

from collections import Counter
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi import Query as QueryParam
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from service.errors import EmbeddingShape, InvalidRequest
from service.http import schemas
from service.http.body import Link, media_type, read_json
from service.http.handling import (
    Embedder,
    IndexEmbedderDep,
    encoded_rows,
    faults_of,
    large_response,
    model_card,
)
from service.http.schemas import response_of
from service.index import Hit, Query
from service.settings import MAX_EF

router = APIRouter()

_MAX_JSON_BYTES = 8 * 2**20  # a thousand ids of 512 characters, of up to 12 bytes if escaped
_MAX_FAULTS = 5  # reported in one error
_QUERIES = ("embedding", "id", "url")


def check_id(value: str) -> str:
    """Return an item's id. Raises PydanticCustomError."""
    if value in (".", ".."):
        raise PydanticCustomError("item_id", "`.` and `..` are not item ids: clients remove them from URLs")
    return value


DomainName = Annotated[str, Field(pattern="^[a-z0-9_-]{1,64}$")]
ItemId = Annotated[str, Field(min_length=1, max_length=512), AfterValidator(check_id)]
_ITEM_ID: TypeAdapter[str] = TypeAdapter(ItemId)


class _Parameters(BaseModel):
    """The parameters of a search, in the query string or beside the query in a JSON body."""

    k: int = Field(10, ge=1, le=100, description="Number of hits.")
    domain: list[DomainName] = Field([], max_length=64, description="Search these domains only.")
    group_by: Literal["domain", "label"] | None = Field(None, description="Also sort the hits into groups.")
    min_score: float = Field(-1, ge=-1, le=1, description="Drop hits below this cosine similarity.")
    exact: bool = Field(False, description="Search without the HNSW graph.")
    exclude: list[ItemId] = Field([], max_length=1000, description="Ids to leave out.")
    ef: int | None = Field(
        None,
        ge=1,
        le=MAX_EF,
        description="Candidates that the search keeps in an HNSW graph: more of them find more of the nearest"
        " items and take longer. Without effect on an `exact` search.",
    )


@router.post(
    "/v1/search",
    openapi_extra=schemas.search_body(_Parameters.model_json_schema()["properties"]),
    responses=response_of(schemas.SEARCH),
)
async def search(
    request: Request, embedder: IndexEmbedderDep, parameters: Annotated[_Parameters, QueryParam()]
) -> Response:
    """Return the k best hits; with `group_by` also in groups, best group first."""
    core = embedder.core
    if media_type(request.headers) == "application/json":
        query, parameters = _parse(await read_json(request, _MAX_JSON_BYTES), request, parameters)
        embedding = await _query_embedding(embedder, query)
    else:
        embedding = (await embedder.embed(await embedder.read_image(request))).embedding
    hits, embedder.state.stages_ms["search"] = await core.timed_search(
        Query(
            embedding,
            parameters.k,
            tuple(parameters.domain),
            tuple(parameters.exclude),
            parameters.exact,
            parameters.ef or core.settings.index_ef,
        )
    )
    embedder.check_golden()
    hits = [hit for hit in hits if hit.score >= parameters.min_score]
    group_by = parameters.group_by

    def content() -> dict[str, Any]:
        groups = {"groups": _groups_json(hits, group_by)} if group_by else {}
        return {**_hits_json(hits), **groups, **model_card(embedder.model.manifest)}

    return await large_response(content, len(hits))


def _hits_json(hits: list[Hit]) -> dict[str, Any]:
    """Return the hits, and each domain's share of them, largest first."""
    shares = Counter(hit.item.domain for hit in hits).most_common()
    return {
        "hits": encoded_rows(hits, _hit_json),
        "domains": {domain: count / len(hits) for domain, count in shares},
    }


def _hit_json(hit: Hit) -> dict[str, Any]:
    return {**hit.item.fields(), "score": hit.score}


def _groups_json(hits: list[Hit], group_by: Literal["domain", "label"]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, ...], list[Hit]] = {}
    for hit in hits:  # labels are local to their domain
        key = (hit.item.domain,) if group_by == "domain" else (hit.item.domain, hit.item.label)
        groups.setdefault(key, []).append(hit)
    return [{"key": key[-1], "hits": encoded_rows(group, _hit_json)} for key, group in groups.items()]


def _parse(body: Any, request: Request, parameters: _Parameters) -> tuple[dict[str, Any], _Parameters]:
    """Return the query of a JSON body, and the parameters of the query string with the body's."""
    if not isinstance(body, dict):
        raise InvalidRequest("the JSON body must be an object")
    members = {name: value for name, value in body.items() if value is not None}
    query = {name: members.pop(name) for name in _QUERIES if name in members}
    names = _Parameters.model_fields.keys()
    if unknown := sorted(members.keys() - names):
        raise InvalidRequest(
            f"unknown member of the JSON body: {', '.join(unknown)[:200]}; a search takes one of "
            f"{', '.join(_QUERIES)}, and {', '.join(names)}"
        )
    if repeated := sorted(members.keys() & request.query_params.keys()):
        raise InvalidRequest(f"both in the query string and in the JSON body: {', '.join(repeated)}")
    if not members:
        return query, parameters
    if isinstance(members.get("domain"), str):
        members["domain"] = [members["domain"]]
    try:
        parsed = _Parameters.model_validate(members, strict=True)
    except ValidationError as error:
        raise InvalidRequest(faults_of(error.errors()[:_MAX_FAULTS])) from error
    return query, parameters.model_copy(update={name: getattr(parsed, name) for name in members})


def _item_id(value: Any) -> str:
    try:
        return _ITEM_ID.validate_python(value, strict=True)
    except ValidationError as error:
        raise InvalidRequest(f"id: {error.errors()[0]['msg']}") from error


async def _query_embedding(embedder: Embedder, query: dict[str, Any]) -> NDArray[np.float32]:
    match query:
        case {"embedding": values, **rest} if not rest:
            return check_embedding(values, embedder.model.manifest.dim)
        case {"id": item_id, **rest} if not rest:
            return (await embedder.core.index.get(_item_id(item_id))).embedding
        case {"url": str(url), **rest} if not rest:
            return (await embedder.embed(Link(url))).embedding
    raise InvalidRequest(
        "the JSON body must have exactly one of `embedding` (a list), `id` and `url` (strings)"
    )


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
