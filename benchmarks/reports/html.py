"""A run as a self-contained page: no network, no other file, no script."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.datasets.dataset import Dataset
from benchmarks.files import write_atomically
from benchmarks.replay.records import RunSummary
from benchmarks.replay.results import RankedRun
from benchmarks.reports import text
from benchmarks.reports.failures import RULE, worst_failures
from benchmarks.reports.plots import percentile_plot, timeline
from benchmarks.reports.throughput_curve import Throughput
from benchmarks.reports.thumbnails import thumbnail
from benchmarks.tables import count

_PER_DOMAIN = 4  # failures shown: with eight domains the page stays below 2 MB
_LISTED = 24  # queries per reason


def write_html(
    ranked: RankedRun, summary: RunSummary, file: Path | None = None, throughput: Throughput | None = None
) -> Path:
    """Write `file`, by default `report.html` of the run. A missing image is shown as a placeholder.

    Raises RunError, DataError.
    """
    file = file or ranked.run.folder / "report.html"
    unanswered: dict[str, list[str]] = {}  # ids by reason
    for query in summary.unanswered:
        unanswered.setdefault(query.reason, []).append(query.query)
    tail_ms = summary.tail_stages_ms
    stages = [(name, mean, tail_ms.get(name, 0.0)) for name, mean in summary.stages_ms.items() if tail_ms]
    page = _environment(ranked.data).get_template("template.html.j2")
    rendered = page.render(
        record=ranked.record,
        summary=summary,
        doubts=text.doubts(summary),
        latency=percentile_plot(ranked.observations),
        throughput=throughput,
        time=timeline(ranked.observations),
        # By the time that a stage adds to the tail.
        stages=sorted(stages, key=lambda row: row[1] - row[2]),
        columns=text.confusion_columns(summary),
        failures=worst_failures(ranked, _PER_DOMAIN),
        rule=RULE,
        unanswered=unanswered,
        listed=_LISTED,
    )
    write_atomically(file, rendered)
    return file


def _environment(data: Dataset) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # file names and labels come from data sets
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (text.points, text.interval, text.ms, text.interval_ms, count, text.when)
    environment.filters.update({function.__name__: function for function in filters})
    environment.globals.update(
        text=text,
        label=data.label,
        thumbnail=lambda record: thumbnail(data.image(record)) if record.path else None,
    )
    return environment
