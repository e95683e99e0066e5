"""The index on a Qdrant server, through qdrant-client."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from qdrant_client import QdrantClient, models

from service.errors import StartupError
from service.index import base
from service.index.base import Candidates, IndexedItem, Item, Nearest, PointId, Query, Stats
from service.settings import Quantization

_QUANTIZATIONS: dict[Quantization, models.QuantizationConfig | None] = {
    "none": None,
    "scalar-int8": models.ScalarQuantization(
        scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8)
    ),
    "turbo-8bit": models.TurboQuantization(
        turbo=models.TurboQuantQuantizationConfig(bits=models.TurboQuantBitSize.BITS8)
    ),
    "turbo-4bit": models.TurboQuantization(
        turbo=models.TurboQuantQuantizationConfig(bits=models.TurboQuantBitSize.BITS4)
    ),
}
_PAYLOAD_INDEXES: dict[str, models.KeywordIndexParams | models.DatetimeIndexParams] = {
    "domain": models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True),
    base.INDEXED_AT: models.DatetimeIndexParams(type=models.DatetimeIndexType.DATETIME, enable_hnsw=False),
}

_STATS_AGE_S = 5  # other processes may write; a plan by older counts costs time at most


class ServerIndex:
    """A collection on a server, which any number of service processes may share."""

    backend = "qdrant-server"

    def __init__(
        self,
        client: QdrantClient,
        collection: str,
        dim: int,
        fingerprint: str,
        quantization: Quantization = "none",
        create: bool = True,
    ) -> None:
        """Open the collection. If there is none, `create` it with these properties. Raises StartupError."""
        self._client = client
        self._collection = collection
        self._dim = dim
        self._stats = Stats({}, 0, 0, 0)
        self._stats_read_s = -math.inf
        self.quantization = quantization
        name = f"the Qdrant collection {collection!r}"
        with _opening(name):
            exists = client.collection_exists(collection)
        if not exists and not create:
            raise StartupError(f"there is no Qdrant collection {collection!r}")
        with _opening(name):
            if not exists:
                self._create(dim, fingerprint)
            info = client.get_collection(collection)
        metadata = info.config.metadata or {}
        if "fingerprint" not in metadata:
            raise StartupError(f"{name} was not created by this service")
        self.fingerprint = str(metadata["fingerprint"])
        base.check_quantization(name, metadata, quantization, "change the setting, or use another collection")
        with _opening(name):
            for field in sorted(_PAYLOAD_INDEXES.keys() - info.payload_schema.keys()):
                # An older version made fewer. With many items it takes longer than the client's timeout.
                client.create_payload_index(collection, field, _PAYLOAD_INDEXES[field], wait=not exists)

    def upsert(self, items: Sequence[Item]) -> set[str]:
        replaced = self._existing([item.id for item in items])
        points = [
            models.PointStruct(
                id=base.point_id(item.id), vector=item.embedding.tolist(), payload=base.payload_of(item)
            )
            for item in items
        ]
        self._client.upsert(self._collection, points, wait=True)
        return replaced

    def get(self, item_id: str) -> Item | None:
        return next(iter(self.items([base.point_id(item_id)]).values()), None)

    def delete(self, ids: Sequence[str]) -> set[str]:
        deleted = self._existing(ids)
        selector = models.PointIdsList(points=[base.point_id(i) for i in ids])
        self._client.delete(self._collection, selector, wait=True)
        return deleted

    def stats(self) -> Stats:
        if time.monotonic() - self._stats_read_s > _STATS_AGE_S:
            domains, graph = self.domains(), self.indexed_vectors()
            items = sum(domains.values())
            self._stats = Stats(domains, items, graph, max(0, graph - items))
            self._stats_read_s = time.monotonic()
        return self._stats

    def candidates(self, query: Query, request: Nearest) -> Candidates:
        in_domains = models.FieldCondition(key="domain", match=models.MatchAny(any=list(query.domains)))
        excluded = models.HasIdCondition(has_id=[base.point_id(i) for i in query.exclude])
        response = self._client.query_points(
            self._collection,
            query=query.embedding.tolist(),
            query_filter=models.Filter(
                must=[in_domains] if query.domains else None,
                must_not=[excluded] if query.exclude else None,
            ),
            search_params=models.SearchParams(
                exact=request.exact,
                hnsw_ef=request.ef,
                quantization=models.QuantizationSearchParams(rescore=True, oversampling=base.OVERSAMPLING),
                acorn=models.AcornSearchParams(enable=request.acorn, max_selectivity=1),
            ),
            limit=request.limit,
            with_payload=False,
            with_vectors=True,
        )
        return base.candidates_of(response.points, self._dim)

    def item_ids(self, points: Sequence[PointId]) -> dict[PointId, str]:
        records = self._client.retrieve(self._collection, points, with_payload=["id"], with_vectors=False)
        return {record.id: record.payload["id"] for record in records if record.payload}

    def items(self, points: Sequence[PointId]) -> dict[PointId, Item]:
        return base.items_of(
            self._client.retrieve(self._collection, points, with_payload=True, with_vectors=True)
        )

    def count(self) -> int:
        return self._client.count(self._collection, exact=True).count

    def domains(self) -> dict[str, int]:
        facet = self._client.facet(self._collection, "domain", limit=base.MAX_DOMAINS, exact=True)
        return base.domain_counts(facet.hits)

    def indexed_vectors(self) -> int:
        return self._client.get_collection(self._collection).indexed_vectors_count or 0

    def indexed(self, start: datetime, end: datetime) -> Iterator[IndexedItem]:
        within = models.DatetimeRange(gte=start, lte=end)
        conditions = models.Filter(must=[models.FieldCondition(key=base.INDEXED_AT, range=within)])
        offset = None
        while True:
            points, offset = self._client.scroll(
                self._collection, conditions, base.INDEXED_PAGE, None, offset, base.INDEXED_FIELDS
            )
            yield from base.indexed_items(points)
            if offset is None:
                return

    def undated(self) -> int:
        empty = models.IsEmptyCondition(is_empty=models.PayloadField(key=base.INDEXED_AT))
        return self._client.count(self._collection, models.Filter(must=[empty]), exact=True).count

    def flush(self) -> None:
        pass  # the server does

    def close(self) -> None:
        self._client.close()

    def _existing(self, ids: Sequence[str]) -> set[str]:
        return set(self.item_ids([base.point_id(i) for i in ids]).values())

    def _create(self, dim: int, fingerprint: str) -> None:
        self._client.create_collection(
            self._collection,
            vectors_config=models.VectorParams(size=dim, distance=models.Distance.DOT),
            hnsw_config=models.HnswConfigDiff(m=16, payload_m=16),
            quantization_config=_QUANTIZATIONS[self.quantization],
            metadata={"fingerprint": fingerprint, "quantization": self.quantization},
        )


@contextmanager
def _opening(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # HTTP, gRPC and validation errors share no base
        raise StartupError(f"cannot open {name}: {error}") from error
