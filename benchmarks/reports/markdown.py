"""A run as Markdown, for a pull request: the results of the report without its images and curves."""

from benchmarks.replay.records import ReplayRecord, RunSummary
from benchmarks.reports import text
from benchmarks.reports.text import interval_ms, ms
from benchmarks.reports.throughput_curve import Throughput
from benchmarks.runs.run import Run
from benchmarks.tables import Table, count, escaped


def markdown(run: Run, summary: RunSummary, throughput: Throughput | None = None) -> str:
    """The report in Markdown. Raises RunError."""
    record = run.record(ReplayRecord)
    doubts = [f"- {escaped(doubt)}" for doubt in text.doubts(summary)]
    left_out = [f"- left out: {escaped(f'{name} ({reason})')}" for name, reason in summary.left_out.items()]
    tail_ms = summary.tail_stages_ms
    stage_rows = [[name, ms(mean), ms(tail_ms.get(name, 0.0))] for name, mean in summary.stages_ms.items()]
    parts = [f"## {escaped(text.title(record))}", escaped(text.lede(record, summary))]
    parts += ["**Not valid:**", "\n".join(doubts)] if doubts else ["**Valid.**"]
    parts += ["### Accuracy and latency per domain", _domains(summary)]
    parts += ["\n".join(left_out)] if left_out else []
    parts += ["### Latency", _percentiles(summary)]
    stages = Table(("stage", "all requests", "at or over p99"), stage_rows)
    parts += ["### Time by stage, mean ms", stages.to_markdown()]
    if throughput:
        parts += ["### Throughput against latency", _throughput(throughput)]
    parts += ["### First hits by domain", _confusion(summary)]
    parts += ["### Configuration", Table(("", ""), list(text.facts(record).items())).to_markdown()]
    parts += ["### Commands to repeat the run", "\n".join(["```", *text.repeat(record), "```"])]
    return "\n\n".join(parts) + "\n"


def _domains(summary: RunSummary) -> str:
    totals, table = summary.totals, text.domain_table(summary, detailed=True)
    return (
        f"{table.to_markdown()}\n\nIn points, with 95% intervals. Queries: failed {totals.failed:,}, "
        f"short {totals.short:,}, not sent {totals.not_sent:,}, retried {totals.retried:,}, "
        f"without match {totals.without_match:,}, from cache {totals.from_cache:,}."
    )


def _percentiles(summary: RunSummary) -> str:
    rows = []
    for row in summary.percentiles:
        answers = count(row.answered, "answer")
        answers += "" if row.enough else f"; MLPerf asks for {row.needed:,}"
        rows.append([f"p{row.percentile}", ms(row.ms), interval_ms(row.interval_ms), answers])
    return Table(("percentile", "ms", "interval, ms", "answers"), rows).to_markdown()


def _throughput(throughput: Throughput) -> str:
    rows = [
        [
            f"{trial.streams}{', the knee' if trial.streams == throughput.knee else ''}",
            *map(ms, (trial.images_per_s, trial.p50_ms, trial.p99_ms)),
            f"{trial.good_share:.1%}",
        ]
        for trial in throughput.trials
    ]
    table = Table(("concurrency", "answered/s", "p50 ms", "p99 ms", "within the SLO"), rows)
    return f"{table.to_markdown()}\n\n{throughput.traffic}."


def _confusion(summary: RunSummary) -> str:
    columns = text.confusion_columns(summary)
    rows = [[name, *(str(row.get(hit, "")) for hit in columns)] for name, row in summary.confusion.items()]
    return Table(("query domain", *columns), rows).to_markdown()
