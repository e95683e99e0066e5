"""Operating points as CSV, one row per run, so that many runs can be compared."""

import csv
import io
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.errors import RunError
from benchmarks.files import write_atomically
from benchmarks.replay.records import ReplayRecord, RunSummary
from benchmarks.reports.text import model_name
from benchmarks.runs.run import Run


def point(run: Run, summary: RunSummary) -> dict[str, Any]:
    """The row of a run. R@1 and mMP@5 are shares in [0, 1]. Raises RunError."""
    record, totals = run.record(ReplayRecord), summary.totals
    service, scenario = record.info, record.scenario
    return {
        "run": run.folder.resolve().name,
        "started": record.started,
        "commit": record.commit,
        "model": model_name(record),
        "fingerprint": service.model.fingerprint,
        "precision": service.precision,
        "provider": service.provider,
        "scenario": scenario.name,
        "concurrency": scenario.streams * scenario.group,
        "rate_per_s": scenario.rate_per_s,
        "exact": record.exact,
        "ef": record.ef,
        "quantization": service.index.quantization,
        "R@1": summary.mean.r_at_1,
        "mMP@5": summary.mean.mmp_at_5,
        **{f"R@1 {domain}": row.r_at_1 for domain, row in summary.domains.items()},
        "p50_ms": totals.p50_ms,
        "p95_ms": totals.p95_ms,
        "p99_ms": totals.p99_ms,
        "images_per_s": totals.images_per_s,
        "failed": totals.failed,
        "retried": totals.retried,
        "valid": summary.valid,
    }


def write_points(run: Run, summary: RunSummary, file: Path | None = None) -> Path:
    """Write the run's row to `file`, by default its own `points.csv`; an older row of the run is replaced.

    Rows with other domains stay: the columns are those of all rows. Raises RunError.
    """
    file = file or run.folder / "points.csv"
    row = point(run, summary)
    rows: list[dict[str, Any]] = []
    if file.exists():
        try:
            with file.open(newline="") as stream:
                reader = csv.DictReader(stream)
                columns, rows = reader.fieldnames or (), list(reader)
        except (OSError, ValueError, csv.Error) as error:
            raise RunError(f"{file} cannot be read: {error}") from error
        if "run" not in columns:
            raise RunError(f"{file} is not a table of operating points: it has no column `run`")
    rows = [*(other for other in rows if other["run"] != row["run"]), row]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(chain.from_iterable(rows))), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(file, text.getvalue())
    return file
