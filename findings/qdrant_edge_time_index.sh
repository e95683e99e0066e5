#!/usr/bin/env bash
# qdrant-edge-py 0.9.0: an index on a time field doubles the links of the vectors' HNSW graph.
#
# A payload index on a datetime field makes filters by time fast, and one might expect that it costs space for
# the times only. But with `payload_m` set, as a collection needs it that is filtered by a keyword, `optimize()`
# also adds links between the points of ranges of times, unless the field's index has `enable_hnsw=False`.
#
# Seen: size of the links of 50,000 vectors of 64 dimensions, compared with no index on the field: 1.00 with
# `enable_hnsw=False`, 2.10 by default. CPU time of `optimize()`: 1.0, and 1.1 to 1.4 by default. The times
# depend on the machine, and are printed only.
#
# Why it matters here: the service records when an item was written, for a command that is rarely used. With the
# default every build of the graph would pay for it (`service/index/edge.py`).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet qdrant-edge-py==0.9.0 numpy==2.3.5

cat >"$folder/times.py" <<'PY'
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import qdrant_edge as edge

COUNT, DIM = 50_000, 64
START = datetime(2026, 1, 1, tzinfo=UTC)
rows = np.random.default_rng(0).normal(size=(COUNT, DIM))
rows /= np.linalg.norm(rows, axis=1, keepdims=True)


def build(index):
    """Return the bytes of the graph's links, and the CPU time of the build."""
    config = edge.EdgeConfig(
        vectors=edge.EdgeVectorParams(DIM, edge.Distance.Dot),
        hnsw_config=edge.HnswIndexConfig(16, 100, 1, payload_m=16),
        optimizers=edge.EdgeOptimizersConfig(indexing_threshold=1),
    )
    with tempfile.TemporaryDirectory() as folder:
        shard = edge.EdgeShard.create(folder, config)
        if index is not None:
            shard.update(edge.UpdateOperation.create_field_index("at", index))
        for start in range(0, COUNT, 1000):
            points = [
                edge.Point(n, rows[n].tolist(), {"at": (START + timedelta(seconds=n)).isoformat()})
                for n in range(start, start + 1000)
            ]
            shard.update(edge.UpdateOperation.upsert_points(points))
        before = time.process_time()
        shard.optimize()
        cpu_s = time.process_time() - before
        assert shard.info().indexed_vectors_count == COUNT
        shard.close()
        return sum(file.stat().st_size for file in Path(folder).rglob("links*.bin")), cpu_s


none = build(None)
without_links, default = (
    [value / reference for value, reference in zip(build(index), none, strict=True)]
    for index in (edge.DatetimeIndexParams(enable_hnsw=False), edge.DatetimeIndexParams())
)
print(f"compared with no index on the field ({none[0]:,} bytes of links, {none[1]:.1f} s):")
print("                                links  CPU time of optimize()")
print(f"  index with enable_hnsw=False   {without_links[0]:.2f}  {without_links[1]:.2f}")
print(f"  index by default               {default[0]:.2f}  {default[1]:.2f}")
sys.exit(0 if without_links[0] < 1.1 and default[0] > 1.4 else "the behaviour has changed")
PY
"$folder/venv/bin/python" "$folder/times.py"
