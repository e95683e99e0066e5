"""The embedded index: Qdrant Edge, the server's engine in this process.

Edge holds the GIL for the length of a call. Searches and writes are short; `optimize()` is not (16 s
for 100,000 vectors), so it is never called here: below the size where HNSW pays, search is exact.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from qdrant_edge import (
    Distance,
    EdgeConfig,
    EdgeShard,
    EdgeVectorParams,
    FacetRequest,
    FieldCondition,
    Filter,
    HasIdCondition,
    KeywordIndexParams,
    MatchAny,
    Point,
    QueryRequest,
    SearchParams,
    UpdateOperation,
)
from qdrant_edge import (
    Query as EdgeQuery,
)

from service.errors import StartupError
from service.index.base import Item, Query, item_of, point_id, point_payload

_MAX_DOMAINS = 10_000


class EdgeIndex:
    """One shard in one folder; a second process cannot open it."""

    backend = "qdrant-edge"

    def __init__(self, folder: Path, dim: int, fingerprint: str) -> None:
        """Open the index, or make one for `dim` and `fingerprint`. Raises StartupError."""
        shard = folder / "shard"
        try:
            if not shard.exists():
                _create(folder, dim, fingerprint)
            self._fingerprint = str(json.loads((folder / "index.json").read_text())["fingerprint"])
            self._shard = EdgeShard.load(str(shard))
        except Exception as error:  # the engine raises plain exceptions
            why = "another process has it open" if "WouldBlock" in str(error) else error
            raise StartupError(f"the index in {folder} cannot be opened: {why}") from error

    @property
    def fingerprint(self) -> str:
        """See VectorIndex, here and below."""
        return self._fingerprint

    def upsert(self, items: Sequence[Item]) -> None:
        points = [Point(point_id(item.id), item.embedding.tolist(), point_payload(item)) for item in items]
        self._shard.update(UpdateOperation.upsert_points(points))

    def existing(self, ids: Sequence[str]) -> set[str]:
        records = self._shard.retrieve([point_id(i) for i in ids], with_payload=["id"], with_vector=False)
        return {record.payload["id"] for record in records if record.payload}

    def get(self, item_id: str) -> Item | None:
        records = self._shard.retrieve([point_id(item_id)], with_payload=True, with_vector=True)
        return item_of(records[0].payload or {}, records[0].vector) if records else None

    def delete(self, ids: Sequence[str]) -> None:
        self._shard.update(UpdateOperation.delete_points([point_id(i) for i in ids]))

    def nearest(self, query: Query, limit: int) -> list[Item]:
        conditions = Filter(
            must=[FieldCondition("domain", match=MatchAny(list(query.domains)))] if query.domains else None,
            must_not=[HasIdCondition({point_id(i) for i in query.exclude})] if query.exclude else None,
        )
        request = QueryRequest(
            limit,
            query=EdgeQuery.Nearest(query.embedding.tolist()),
            filter=conditions if query.domains or query.exclude else None,
            params=SearchParams(exact=query.exact),
            with_payload=True,
            with_vector=True,
        )
        return [item_of(point.payload or {}, point.vector) for point in self._shard.query(request)]

    def count(self) -> int:
        return self._shard.info().points_count  # exact, and unlike a count it walks nothing

    def domains(self) -> dict[str, int]:
        facet = self._shard.facet(FacetRequest("domain", limit=_MAX_DOMAINS, exact=True))
        # A domain whose last item went is still listed, with a count of 0.
        return dict(sorted((str(hit.value), hit.count) for hit in facet.hits if hit.count))

    def indexed_vectors(self) -> int:
        return self._shard.info().indexed_vectors_count

    def close(self) -> None:
        self._shard.flush()
        self._shard.close()


def _create(folder: Path, dim: int, fingerprint: str) -> None:
    # Made under another name and renamed at the end: a folder named `shard` is always whole.
    unfinished = folder / "shard.new"
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True)
    # Dot, not cosine: embeddings have unit norm, and cosine would store a rounded copy.
    shard = EdgeShard.create(str(unfinished), EdgeConfig(vectors=EdgeVectorParams(dim, Distance.Dot)))
    shard.update(UpdateOperation.create_field_index("domain", KeywordIndexParams(is_tenant=True)))
    shard.close()
    (folder / "index.json").write_text(json.dumps({"fingerprint": fingerprint}))
    unfinished.rename(folder / "shard")
