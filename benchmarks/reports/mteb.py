"""Results in the format of MTEB's own files, one per domain, for tools that collect those."""

import json
from datetime import datetime
from pathlib import Path

from benchmarks.files import write_atomically
from benchmarks.replay.records import ReplayRecord, RunSummary
from benchmarks.runs.run import Run


def write_mteb(run: Run, summary: RunSummary) -> list[Path]:
    """Write `mteb/<domain>.json`, as mteb 2's `TaskResult.from_disk` reads it. Raises RunError.

    Shares are at full precision; `main_score` is R@1, which MTEB's image retrieval calls `hit_rate_at_1`.
    """
    record, files = run.record(ReplayRecord), []
    for domain, row in summary.domains.items():
        scores = {
            "hf_subset": "default",
            "languages": ["zxx-Zxxx"],  # none
            "main_score": row.r_at_1,
            "hit_rate_at_1": row.r_at_1,
            "mMP@5": row.mmp_at_5,
        }
        result = {
            "dataset_revision": record.data_fingerprint,
            "task_name": f"{Path(record.data).name}-{domain}",
            "mteb_version": None,  # mteb was not used
            "scores": {record.split: [scores]},
            "evaluation_time": (row.queries - row.failed) / row.images_per_s if row.images_per_s else None,
            "kg_co2_emissions": None,
            "date": datetime.fromisoformat(record.started).timestamp(),
        }
        file = run.folder / "mteb" / f"{domain}.json"
        write_atomically(file, json.dumps(result, indent=2) + "\n")
        files.append(file)
    return files
