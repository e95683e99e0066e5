"""A small run with images: two domains, one query wrong in each way."""

import json
from dataclasses import replace
from pathlib import Path

from benchmarks.datasets.dataset import Dataset
from benchmarks.load.scenarios import Scenario
from benchmarks.replay.records import RunSummary
from benchmarks.replay.summary import summarise
from benchmarks.runs.run import Run
from tests.support.images import encode, noise
from tests.support.observed import RECORD, observe, seen

REPORTED = replace(
    RECORD,
    scenario=Scenario("ClosedLoop", streams=4),
    service={
        "version": "0.1.0",
        "model": {"name": "a <model>", "fingerprint": "0123456789abcdef", "dim": 64, "domains": {"a": 2}},
        "precision": "fp32",
        "provider": "cpu",
        "index": {"backend": "qdrant-edge", "items": 8},
    },
)
LABEL = "<script>alert('cat')</script>"
A = [f"a/test/000000{n}" for n in range(4)]  # cat, cat, dog, dog
B = [f"b/index/000000{n}" for n in range(3)]  # 8, 8, 9
Q = "b/test/0000000"  # 8


def a_run(folder: Path) -> tuple[Run, Dataset, RunSummary]:
    """The run, its data set, its summary. `b/index/0000002` has no image."""
    data = folder / "data set"
    rows = {
        "a/test": [(f"a/{n}.png", n // 2) for n in range(4)],
        "b/test": [("b/q.png", 8)],
        "b/index": [("b/0.png", 8), ("b/1.png", 8), ("b/missing.png", 9)],
    }
    for name, entries in rows.items():
        file = data / "data" / "info_files" / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps([{"path": path, "class_id": class_id} for path, class_id in entries]))
        for seed, (path, _) in enumerate(entries):
            image = data / "data" / "images" / path
            image.parent.mkdir(parents=True, exist_ok=True)
            if "missing" not in path:
                image.write_bytes(encode(noise(seed)))
    (data / "dataset.json").write_text(
        json.dumps({"fingerprint": "f" * 64, "domains": {"a": {"labels": [LABEL, "dog"]}}})
    )
    run = Run(folder / "run")
    run.begin(replace(REPORTED, data=str(data)))
    observe(
        run,
        [
            seen(A[0], [A[1], A[2], A[3], *B], 0.0, 0.010),  # right
            seen(A[1], [A[2], A[3], B[0]], 0.0, 0.020),  # another label; A[0] is missed
            seen(A[2], [B[2], A[3]], 0.5, 0.030),  # another domain, then a right hit
            seen(A[3], [], 0.5, 0.040, status=503, error="queue | <full>"),
            seen(Q, [A[0], B[2]], 1.5, 0.900),
        ],
    )
    return run, Dataset(data), summarise(Dataset(data), run)
