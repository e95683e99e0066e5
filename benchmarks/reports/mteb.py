"""Results in the shape of MTEB's own files, one a domain, for tools that gather those."""

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.files import write_atomically
from benchmarks.runs.run import Run

_NO_LANGUAGE = "zxx-Zxxx"


def write_mteb(run: Run, summary: Mapping[str, Any]) -> list[Path]:
    """`mteb/<domain>.json`, as mteb 2's `TaskResult.from_disk` reads it. Raises RunError.

    Shares are at full precision; `main_score` is R@1, which MTEB's image retrieval calls `hit_rate_at_1`.
    """
    said = run.said()
    folder = run.folder / "mteb"
    folder.mkdir(exist_ok=True)
    files = []
    for domain, row in summary["domains"].items():
        answered = row["queries"] - row["failed"]
        result = {
            "dataset_revision": said["data_fingerprint"],
            "task_name": f"{Path(said['data']).name}-{domain}",
            "mteb_version": None,  # mteb took no part in it
            "scores": {said["split"]: [_scores(row)]},
            "evaluation_time": answered / row["images_per_s"] if row["images_per_s"] else None,
            "kg_co2_emissions": None,
            "date": datetime.fromisoformat(said["started"]).timestamp(),
        }
        file = folder / f"{domain}.json"
        write_atomically(file, json.dumps(result, indent=2) + "\n")
        files.append(file)
    return files


def _scores(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "hf_subset": "default",
        "languages": [_NO_LANGUAGE],
        "main_score": row["R@1"],
        "hit_rate_at_1": row["R@1"],
        "mMP@5": row["mMP@5"],
    }
