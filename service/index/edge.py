"""The embedded index: Qdrant Edge, the server's engine in this process.

Edge holds the GIL for the length of a call. Searches and writes are short; `optimize()` is not (16 s
for 100,000 vectors), so no service calls it: `build_graph` is for a process that serves nobody.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qdrant_edge import (
    Distance,
    EdgeConfig,
    EdgeOptimizersConfig,
    EdgeShard,
    EdgeVectorParams,
    FacetRequest,
    FieldCondition,
    Filter,
    HasIdCondition,
    HnswIndexConfig,
    KeywordIndexParams,
    MatchAny,
    Point,
    QuantizationSearchParams,
    QueryRequest,
    ScalarQuantizationConfig,
    ScalarType,
    SearchParams,
    TurboQuantBitSize,
    TurboQuantQuantizationConfig,
    UpdateOperation,
)
from qdrant_edge import (
    Query as EdgeQuery,
)

from service.errors import StartupError
from service.index.base import Item, Query, check_quantization, item_of, point_id, point_payload
from service.settings import Quantization

_MAX_DOMAINS = 10_000
GRAPH_FROM_ITEMS = 40_000  # where a graph begins to pay at 64 dimensions; the engine's own default
_EF_CONSTRUCT = 100  # the engine's default, as `m` is
_QUANTIZATIONS: dict[Quantization, ScalarQuantizationConfig | TurboQuantQuantizationConfig | None] = {
    "none": None,
    "scalar-int8": ScalarQuantizationConfig(ScalarType.Int8),
    "turbo-8bit": TurboQuantQuantizationConfig(bits=TurboQuantBitSize.Bits8),
    "turbo-4bit": TurboQuantQuantizationConfig(bits=TurboQuantBitSize.Bits4),
}


class EdgeIndex:
    """One shard in one folder; a second process cannot open it."""

    backend = "qdrant-edge"

    def __init__(self, folder: Path, dim: int, fingerprint: str, quantization: Quantization = "none") -> None:
        """Open the index, or make one for these. Raises StartupError."""
        shard = folder / "shard"
        with _engine(folder):
            if not shard.exists():
                _create(folder, dim, fingerprint, quantization)
            said = json.loads((folder / "index.json").read_text())
            self._fingerprint = str(said["fingerprint"])
            made = str(said.get("quantization", "none"))  # indexes of before did not say
        remedy = "set that, or have `python -m service optimise` make it so"
        check_quantization(f"the index in {folder}", made, quantization, remedy)
        self.quantization = quantization
        with _engine(folder):
            self._shard = EdgeShard.load(str(shard))

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
            params=SearchParams(
                hnsw_ef=query.ef, exact=query.exact, quantization=QuantizationSearchParams(rescore=True)
            ),
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


def build_graph(folder: Path, dim: int, quantization: Quantization, from_items: int) -> tuple[int, int]:
    """An HNSW graph over the vectors of an index that no service has open, and their quantization.

    Parts of it with fewer than `from_items` stay without a graph, or lose theirs. Returns the number of items
    and of vectors in a graph. Ended by a signal, it leaves the index as it was, or with another
    quantization to come. Raises StartupError.
    """
    with _engine(folder, "optimised"):
        said = json.loads((folder / "index.json").read_text())
        EdgeShard.load(str(folder / "shard")).close()  # before anything is changed: has a service it open?
        # What is not asked for stays as this file of the engine has it, and no quantization is not asked for.
        (folder / "shard" / "edge_config.json").unlink(missing_ok=True)
        shard = EdgeShard.load(str(folder / "shard"), _config(dim, quantization, from_items))
        _write_said(folder, {**said, "quantization": quantization})
        shard.optimize()
        shard.flush()
        info = shard.info()
        shard.close()
    return info.points_count, info.indexed_vectors_count


@contextmanager
def _engine(folder: Path, cannot_be: str = "opened") -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the engine raises plain exceptions
        why = "another process has it open" if "WouldBlock" in str(error) else error
        raise StartupError(f"the index in {folder} cannot be {cannot_be}: {why}") from error


def _config(dim: int, quantization: Quantization, from_items: int) -> EdgeConfig:
    # Of the vectors of a part that is to get a graph, and of a search (in a domain) that is to use it.
    threshold_kb = max(1, from_items * dim * 4 // 1024)
    return EdgeConfig(
        # Dot, not cosine: embeddings have unit norm, and cosine would store a rounded copy.
        vectors=EdgeVectorParams(dim, Distance.Dot),
        hnsw_config=HnswIndexConfig(16, _EF_CONSTRUCT, threshold_kb, payload_m=16),
        quantization_config=_QUANTIZATIONS[quantization],
        optimizers=EdgeOptimizersConfig(indexing_threshold=threshold_kb),
    )


def _write_said(folder: Path, said: dict[str, Any]) -> None:
    new = folder / "index.json.new"
    new.write_text(json.dumps(said))
    new.rename(folder / "index.json")


def _create(folder: Path, dim: int, fingerprint: str, quantization: Quantization) -> None:
    # Made under another name and renamed at the end: a folder named `shard` is always whole.
    unfinished = folder / "shard.new"
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True)
    shard = EdgeShard.create(str(unfinished), _config(dim, quantization, GRAPH_FROM_ITEMS))
    shard.update(UpdateOperation.create_field_index("domain", KeywordIndexParams(is_tenant=True)))
    shard.close()
    _write_said(folder, {"fingerprint": fingerprint, "quantization": quantization})
    unfinished.rename(folder / "shard")
