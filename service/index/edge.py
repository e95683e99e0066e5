"""The embedded index: Qdrant Edge, the server's engine in this process.

Edge holds the GIL during a call. Searches and writes are short, but `optimize()` takes 16 s for 100,000
vectors. A serving process therefore never calls it; `build_graph` runs in a separate process.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import qdrant_edge as edge
from qdrant_edge import EdgeShard, UpdateOperation

from service.errors import StartupError
from service.index import base
from service.index.base import Candidates, IndexedItem, Item, Nearest, PointId, Query, Stats
from service.settings import Quantization

T = TypeVar("T")

GRAPH_FROM_ITEMS = 40_000  # where a graph begins to pay off at 64 dimensions; the engine's default
# Of items with payloads in one call, which holds Python's lock: 1,000 payloads of 16 KB take 90 ms to write
# and up to 130 ms to look up; 32 of 60 KB take 13 ms.
_PART = 32
_EF_CONSTRUCT = 100  # the engine's default, like m = 16
_UNKNOWN_TIME = "9999-12-31T23:59:59+00:00"  # when an older version built the graph: all items count as in it
_Config = edge.ScalarQuantizationConfig | edge.TurboQuantQuantizationConfig | None
_QUANTIZATIONS: dict[Quantization, _Config] = {
    "none": None,
    "scalar-int8": edge.ScalarQuantizationConfig(edge.ScalarType.Int8),
    "turbo-8bit": edge.TurboQuantQuantizationConfig(bits=edge.TurboQuantBitSize.Bits8),
    "turbo-4bit": edge.TurboQuantQuantizationConfig(bits=edge.TurboQuantBitSize.Bits4),
}


# With links between points of a time, the graph would have twice the links (findings).
_PAYLOAD_INDEXES: dict[str, edge.KeywordIndexParams | edge.DatetimeIndexParams] = {
    "domain": edge.KeywordIndexParams(is_tenant=True),
    base.INDEXED_AT: edge.DatetimeIndexParams(enable_hnsw=False),
}


class EdgeIndex:
    """One shard in one folder; a second process cannot open it."""

    backend = "qdrant-edge"

    def __init__(
        self,
        folder: Path,
        dim: int,
        fingerprint: str,
        quantization: Quantization = "none",
        create: bool = True,
    ) -> None:
        """Open the index. If there is none, `create` it with these properties. Raises StartupError."""
        shard = folder / "shard"
        if not create and not shard.exists():
            raise StartupError(f"there is no index in {folder}")
        with _engine(folder):
            if not shard.exists():
                _create(folder, dim, fingerprint, quantization)
            metadata = _read_metadata(folder)
            self.fingerprint = str(metadata["fingerprint"])
            self._graph_time = str(metadata.get("graph_time", _UNKNOWN_TIME))
        remedy = "change the setting, or convert the index with `python -m service optimise`"
        base.check_quantization(f"the index in {folder}", metadata, quantization, remedy)
        self.quantization = quantization
        with _engine(folder):
            self._shard = EdgeShard.load(str(shard))
            # An older version made fewer. 50,000 times take 0.6 s.
            for name in _PAYLOAD_INDEXES.keys() - self._shard.info().payload_schema.keys():
                self._shard.update(UpdateOperation.create_field_index(name, _PAYLOAD_INDEXES[name]))
            self._dim = dim
            self._domains = self._counted_domains()
            self._removed = self._counted_removed()

    def upsert(self, items: Sequence[Item]) -> set[str]:
        replaced = self._payloads([item.id for item in items])
        for part in _parts(items):
            points = [
                edge.Point(base.point_id(item.id), item.embedding.tolist(), base.payload_of(item))
                for item in part
            ]
            self._shard.update(UpdateOperation.upsert_points(points))
        self._domains.update(item.domain for item in items)
        return self._subtract(replaced)

    def get(self, item_id: str) -> Item | None:
        return next(iter(self.items([base.point_id(item_id)]).values()), None)

    def delete(self, ids: Sequence[str]) -> set[str]:
        deleted = self._payloads(ids)
        self._shard.update(UpdateOperation.delete_points([base.point_id(i) for i in ids]))
        return self._subtract(deleted)

    def stats(self) -> Stats:
        info = self._shard.info()
        return Stats(self._domains, info.points_count, info.indexed_vectors_count, self._removed)

    def candidates(self, query: Query, request: Nearest) -> Candidates:
        # A filter that every item matches would take several times as long as none.
        domains = [] if self._domains.keys() <= set(query.domains) else list(query.domains)
        in_domains = edge.FieldCondition("domain", match=edge.MatchAny(domains))
        excluded = edge.HasIdCondition({base.point_id(i) for i in query.exclude})
        conditions = edge.Filter(
            must=[in_domains] if domains else None, must_not=[excluded] if query.exclude else None
        )
        points = self._shard.query(
            edge.QueryRequest(
                request.limit,
                query=edge.Query.Nearest(query.embedding.tolist()),
                filter=conditions if domains or query.exclude else None,
                params=edge.SearchParams(
                    hnsw_ef=request.ef,
                    exact=request.exact,
                    quantization=edge.QuantizationSearchParams(rescore=True, oversampling=base.OVERSAMPLING),
                    acorn=edge.AcornSearchParams(request.acorn, max_selectivity=1),
                ),
                with_payload=False,
                with_vector=True,
            )
        )
        return base.candidates_of(points, self._dim)

    def item_ids(self, points: Sequence[PointId]) -> dict[PointId, str]:
        records = self._shard.retrieve(list(points), with_payload=["id"], with_vector=False)
        return {record.id: record.payload["id"] for record in records if record.payload}

    def items(self, points: Sequence[PointId]) -> dict[PointId, Item]:
        return base.items_of(self._shard.retrieve(list(points), with_payload=True, with_vector=True))

    def count(self) -> int:
        return self._shard.info().points_count  # exact, and cheaper than a count request

    def domains(self) -> dict[str, int]:
        return dict(sorted(self._domains.items()))

    def indexed_vectors(self) -> int:
        return self._shard.info().indexed_vectors_count

    def indexed(self, start: datetime, end: datetime) -> Iterator[IndexedItem]:
        within = edge.RangeDateTime(gte=start.isoformat(), lte=end.isoformat())
        conditions = edge.Filter(must=[edge.FieldCondition(base.INDEXED_AT, range=within)])
        offset: Any = None
        while True:
            request = edge.ScrollRequest(offset, base.INDEXED_PAGE, conditions, base.INDEXED_FIELDS, False)
            points, offset = self._shard.scroll(request)
            yield from base.indexed_items(points)
            if offset is None:
                return

    def undated(self) -> int:
        undated = edge.Filter(must=[edge.IsEmptyCondition(base.INDEXED_AT)])
        return self._shard.count(edge.CountRequest(exact=True, filter=undated))

    def flush(self) -> None:
        self._shard.flush()

    def close(self) -> None:
        self.flush()
        self._shard.close()

    def _payloads(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return the fields `INDEXED_FIELDS` of those of the items that exist."""
        return [
            record.payload
            for part in _parts(list(dict.fromkeys(ids)))
            for record in self._shard.retrieve(
                [base.point_id(i) for i in part], base.INDEXED_FIELDS, with_vector=False
            )
            if record.payload
        ]

    def _subtract(self, payloads: Sequence[dict[str, Any]]) -> set[str]:
        """Count items as deleted or replaced. Return their ids."""
        self._domains.subtract(payload["domain"] for payload in payloads)
        self._domains = +self._domains  # without domains that have no items
        self._removed += sum(payload.get(base.INDEXED_AT, "") <= self._graph_time for payload in payloads)
        return {payload["id"] for payload in payloads}

    def _counted_domains(self) -> Counter[str]:
        # `exact=True` takes 0.2 s at 12,000 domains. Otherwise the counts are read from the payload index
        # in 2 ms; they are equal in every state that tests/service/test_truthful.py makes.
        request = edge.FacetRequest("domain", limit=base.MAX_DOMAINS, exact=False)
        return Counter(base.domain_counts(self._shard.facet(request).hits))

    def _counted_removed(self) -> int:
        """Return the number of vectors in the graph without an item.

        The engine reports the vectors of a graph, including removed ones. The items in it were written
        before it was built.
        """
        if not self.indexed_vectors():
            return 0
        before = edge.FieldCondition(base.INDEXED_AT, range=edge.RangeDateTime(lte=self._graph_time))
        written = edge.Filter(should=[before, edge.IsEmptyCondition(base.INDEXED_AT)])
        items = self._shard.count(edge.CountRequest(exact=True, filter=written))
        return max(0, self.indexed_vectors() - items)


def build_graph(folder: Path, dim: int, quantization: Quantization, from_items: int) -> tuple[int, int]:
    """Quantize the vectors and build their HNSW graph while no service has the index open.

    Segments with fewer than `from_items` get no graph, or lose it. Returns the numbers of items and of
    vectors in a graph. If a signal interrupts it, the index stays valid, though the new quantization may
    already be recorded. Raises StartupError.
    """
    with _engine(folder, "optimise"):
        metadata = _read_metadata(folder)
        graph_time = datetime.now(UTC).isoformat()
        EdgeShard.load(str(folder / "shard")).close()  # fails, before any change, if a service has it open
        # The engine keeps a quantization in this file that the new configuration leaves out.
        (folder / "shard" / "edge_config.json").unlink(missing_ok=True)
        shard = EdgeShard.load(str(folder / "shard"), _config(dim, quantization, from_items))
        _write_metadata(folder, {**metadata, "quantization": quantization})
        shard.optimize()
        shard.flush()
        _write_metadata(folder, {**metadata, "quantization": quantization, "graph_time": graph_time})
        info = shard.info()
        shard.close()
    return info.points_count, info.indexed_vectors_count


def _parts(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    return (rows[start : start + _PART] for start in range(0, len(rows), _PART))


@contextmanager
def _engine(folder: Path, action: str = "open") -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the engine raises plain exceptions
        reason = "another process has it open" if "WouldBlock" in str(error) else error
        raise StartupError(f"cannot {action} the index in {folder}: {reason}") from error


def _config(dim: int, quantization: Quantization, from_items: int) -> edge.EdgeConfig:
    # Size of the vectors from which a segment gets a graph, and from which a filtered search uses it.
    threshold_kb = max(1, from_items * dim * 4 // 1024)
    return edge.EdgeConfig(
        # Dot instead of cosine: embeddings have unit norm, and cosine would store a rounded copy.
        vectors=edge.EdgeVectorParams(dim, edge.Distance.Dot),
        hnsw_config=edge.HnswIndexConfig(16, _EF_CONSTRUCT, threshold_kb, payload_m=16),
        quantization_config=_QUANTIZATIONS[quantization],
        optimizers=edge.EdgeOptimizersConfig(indexing_threshold=threshold_kb),
    )


def _read_metadata(folder: Path) -> dict[str, Any]:
    metadata: dict[str, Any] = json.loads((folder / "index.json").read_text())
    return metadata


def _write_metadata(folder: Path, metadata: dict[str, Any]) -> None:
    new = folder / "index.json.new"
    new.write_text(json.dumps(metadata))
    new.rename(folder / "index.json")


def _create(folder: Path, dim: int, fingerprint: str, quantization: Quantization) -> None:
    # Renamed at the end, so that a folder named `shard` is always complete.
    unfinished = folder / "shard.new"
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True)
    shard = EdgeShard.create(str(unfinished), _config(dim, quantization, GRAPH_FROM_ITEMS))
    shard.close()
    _write_metadata(folder, {"fingerprint": fingerprint, "quantization": quantization})
    unfinished.rename(folder / "shard")
