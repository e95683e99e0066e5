"""Operating points: one CSV row a run, so that many can be laid beside each other."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.errors import RunError
from benchmarks.files import write_atomically
from benchmarks.reports.text import model_name
from benchmarks.runs.run import Run


def point(run: Run, summary: Mapping[str, Any]) -> dict[str, Any]:
    """A run's row. R@1 and mMP@5 are shares in [0, 1]. Raises RunError."""
    said = run.said()
    service, load, whole = said["service"], said["scenario"], summary["all"]
    return {
        "run": run.folder.resolve().name,
        "started": said["started"],
        "commit": said["commit"],
        "model": model_name(said),
        "fingerprint": service.get("model", {}).get("fingerprint"),
        "precision": service.get("precision"),
        "provider": service.get("provider"),
        "scenario": load["name"],
        "concurrency": load["streams"] * load["group"],
        "rate_per_s": load["rate_per_s"],
        "exact": said["exact"],
        "ef": said["ef"],
        "quantization": service.get("index", {}).get("quantization"),
        "R@1": summary["mean"]["R@1"],
        "mMP@5": summary["mean"]["mMP@5"],
        **{f"R@1 {domain}": row["R@1"] for domain, row in summary["domains"].items()},
        **{name: whole[name] for name in ("p50_ms", "p95_ms", "p99_ms", "images_per_s")},
        **{name: whole[name] for name in ("failed", "retried")},
        "valid": summary["valid"],
    }


def write_points(run: Run, summary: Mapping[str, Any], file: Path | None = None) -> Path:
    """Put the run's row into `file`, else into its own `points.csv`; a row of the same run gives way.

    Rows of other domains stay: the columns are those of all rows. Raises RunError.
    """
    file = file or run.folder / "points.csv"
    row = point(run, summary)
    rows: list[dict[str, Any]] = []
    if file.exists():
        with file.open(newline="") as stream:
            reader = csv.DictReader(stream)
            if "run" not in (reader.fieldnames or ()):
                raise RunError(f"{file} is no table of operating points: it has no column `run`")
            rows = [one for one in reader if one["run"] != row["run"]]
    rows.append(row)
    text = io.StringIO()
    writer = csv.DictWriter(
        text, list(dict.fromkeys(name for one in rows for name in one)), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(file, text.getvalue())
    return file
