"""A run as one page that needs nothing else: no network, no other file, no script."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.datasets.dataset import Dataset, Record
from benchmarks.files import write_atomically
from benchmarks.replay.results import Replayed
from benchmarks.reports import text
from benchmarks.reports.failures import RULE, worst_failures
from benchmarks.reports.plots import percentile_plot, timeline
from benchmarks.reports.throughput_curve import Throughput
from benchmarks.reports.thumbnails import thumbnail

_TEMPLATES = Path(__file__).parent  # not the working folder's
_PER_DOMAIN = 4  # failures shown: with eight domains the page stays below 2 MB
_LISTED = 24  # queries to a reason


def write_html(
    seen: Replayed,
    summary: Mapping[str, Any],
    file: Path | None = None,
    throughput: Throughput | None = None,
) -> Path:
    """Write `file`, else the run's `report.html`; a picture that is missing is a placeholder.

    Raises RunError, DataError.
    """
    data, said, observations = seen.data, seen.said, seen.observations
    file = file or seen.run.folder / "report.html"
    page = _environment(data).get_template("template.html.j2")
    rendered = page.render(
        said=said,
        summary=summary,
        doubts=text.doubts(summary),
        latency=percentile_plot(observations),
        throughput=throughput,
        time=timeline(observations),
        stages=_stages(summary),
        columns=_columns(summary),
        failures=worst_failures(data, said, seen.rankings, _PER_DOMAIN),
        rule=RULE,
        unanswered=_by_reason(summary),
        listed=_LISTED,
    )
    write_atomically(file, rendered)
    return file


def _environment(data: Dataset) -> Environment:
    made = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,  # file names and labels come from data sets
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shared = (text.points, text.interval, text.ms, text.interval_ms, text.count, text.when)
    made.filters.update({one.__name__: one for one in shared})
    made.globals.update(facts=text, label=data.label, thumbnail=lambda one: _thumbnail(data, one))
    return made


def _thumbnail(data: Dataset, record: Record) -> str | None:
    return thumbnail(data.image(record)) if record.path else None


def _by_reason(summary: Mapping[str, Any]) -> dict[str, list[str]]:
    """Ids of the queries that failed or came back short."""
    found: dict[str, list[str]] = {}
    for one in summary["unanswered"]:
        found.setdefault(one["why"], []).append(one["query"])
    return found


def _stages(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The stages by what they add to the tail, and what the most of it is; empty where there are none."""
    mean, tail = summary["stages_ms"], summary["tail_stages_ms"]
    if not mean or not tail:
        return {}
    rows = [{"name": name, "mean": mean[name], "tail": tail.get(name, 0.0)} for name in mean]
    rows.sort(key=lambda row: row["mean"] - row["tail"])
    total = {"name": "all", "mean": sum(mean.values()), "tail": sum(tail.values())}
    added, most = total["tail"] - total["mean"], rows[0]
    return {
        "rows": rows,
        "total": total,
        "added": added,
        "most": most["name"],
        "share": (most["tail"] - most["mean"]) / added if added > 0 else 0.0,
        "longest_ms": max(max(row["mean"], row["tail"]) for row in rows),
    }


def _columns(summary: Mapping[str, Any]) -> list[str]:
    """Domains of first hits: those that were asked, then any other."""
    confusion = summary["confusion"]
    return list(dict.fromkeys([*confusion, *sorted(found for row in confusion.values() for found in row)]))
