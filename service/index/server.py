"""The index on a Qdrant server, through qdrant-client."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from qdrant_client import QdrantClient, models

from service.errors import StartupError
from service.index import base
from service.index.base import IndexedItem, Item, Query
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

    def upsert(self, items: Sequence[Item]) -> None:
        points = [
            models.PointStruct(
                id=base.point_id(item.id), vector=item.embedding.tolist(), payload=base.payload_of(item)
            )
            for item in items
        ]
        self._client.upsert(self._collection, points, wait=True)

    def existing(self, ids: Sequence[str]) -> set[str]:
        points = self._client.retrieve(
            self._collection, [base.point_id(i) for i in ids], with_payload=["id"], with_vectors=False
        )
        return {point.payload["id"] for point in points if point.payload}

    def get(self, item_id: str) -> Item | None:
        points = self._client.retrieve(
            self._collection, [base.point_id(item_id)], with_payload=True, with_vectors=True
        )
        return next(iter(base.items_of(points)), None)

    def delete(self, ids: Sequence[str]) -> None:
        selector = models.PointIdsList(points=[base.point_id(i) for i in ids])
        self._client.delete(self._collection, selector, wait=True)

    def nearest(self, query: Query, limit: int) -> list[Item]:
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
                exact=query.exact,
                hnsw_ef=query.ef,
                quantization=models.QuantizationSearchParams(rescore=True),
            ),
            limit=limit,
            with_payload=True,
            with_vectors=True,
        )
        return base.items_of(response.points)

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
