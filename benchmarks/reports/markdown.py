"""A run for a pull request: the report's figures as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.reports.text import (
    count,
    doubts,
    facts,
    interval,
    interval_ms,
    lede,
    ms,
    points,
    repeat,
    title,
)
from benchmarks.reports.throughput_curve import Throughput
from benchmarks.runs.run import Run

_COUNTED = ("failed", "short", "not_asked", "retried", "without_match", "from_cache")


def markdown(run: Run, summary: Mapping[str, Any], throughput: Throughput | None = None) -> str:
    """All figures of the report, without its pictures and curves. Raises RunError."""
    said = run.said()
    parts = [f"## {_safe(title(said))}", _safe(lede(said, summary)), _verdict(summary)]
    parts += ["### Accuracy and latency, per domain", _domains(summary)]
    if summary["left_out"]:
        left_out = summary["left_out"].items()
        parts.append("\n".join(f"- left out: {_safe(domain)} ({_safe(why)})" for domain, why in left_out))
    parts += ["### Latency", _percentiles(summary), "### Where the time went, mean ms", _stages(summary)]
    if throughput:
        parts += ["### Throughput against latency", _throughput(throughput)]
    parts += ["### First hits by domain", _confusion(summary)]
    parts += ["### What was measured", _table(("", ""), list(facts(said).items()))]
    parts += ["### To repeat it", "\n".join(["```", *repeat(said), "```"])]
    return "\n\n".join(parts) + "\n"


def _verdict(summary: Mapping[str, Any]) -> str:
    why = doubts(summary)
    if not why:
        return "**Valid.**"
    return "\n".join(["**Not valid:**", "", *(f"- {_safe(one)}" for one in why)])


def _domains(summary: Mapping[str, Any]) -> str:
    heads = ["domain", "queries", "gallery", "R@1", "mMP@5", "p50 ms", "p95 ms", "p99 ms", "images/s"]
    separate = summary["separate"]
    if separate:
        heads[5:5] = ["R@1 separate", "mMP@5 separate"]
    rows = []
    for name, row in [*summary["domains"].items(), ("mean", {**summary["all"], **summary["mean"]})]:
        own = separate and (separate["mean"] if name == "mean" else separate["domains"][name])
        rows.append(
            [
                name,
                f"{row['queries']:,}",
                f"{row['gallery']:,}",
                *(f"{points(row[of])} ({interval(row[of + '_interval'])})" for of in ("R@1", "mMP@5")),
                *([points(own["R@1"]), points(own["mMP@5"])] if own else []),
                *(ms(row[f"{of}_ms"]) for of in ("p50", "p95", "p99")),
                f"{row['images_per_s']:.0f}",
            ]
        )
    whole = summary["all"]
    counts = ", ".join(f"{name.replace('_', ' ')} {whole[name]:,}" for name in _COUNTED)
    return f"{_table(heads, rows)}\n\nIn points, with 95% intervals. Queries: {counts}."


def _percentiles(summary: Mapping[str, Any]) -> str:
    rows = [
        [f"p{one['percentile']:g}", ms(one["ms"]), interval_ms(one["interval_ms"]), _enough(one)]
        for one in summary["percentiles"]
    ]
    return _table(("percentile", "ms", "interval, ms", "answers"), rows)


def _enough(row: Mapping[str, Any]) -> str:
    found = count(row["answered"], "answer")
    return found if row["enough"] else f"{found}; {row['needed']:,} are needed for a sure figure"


def _stages(summary: Mapping[str, Any]) -> str:
    tail = summary["tail_stages_ms"]
    rows = [[name, ms(mean), ms(tail.get(name, 0.0))] for name, mean in summary["stages_ms"].items()]
    return _table(("stage", "all requests", "at or over p99"), rows)


def _throughput(found: Throughput) -> str:
    rows = [
        [
            f"{one.streams}{', the knee' if one.streams == found.knee else ''}",
            *(ms(value) for value in (one.images_per_s, one.p50_ms, one.p99_ms)),
            f"{one.good_share:.1%}",
        ]
        for one in found.trials
    ]
    return f"{_table(('at a time', 'answered/s', 'p50 ms', 'p99 ms', 'good'), rows)}\n\n{found.traffic}."


def _confusion(summary: Mapping[str, Any]) -> str:
    confusion = summary["confusion"]
    columns = sorted({found for row in confusion.values() for found in row} | set(confusion))
    rows = [[name, *(str(row.get(found, "")) for found in columns)] for name, row in confusion.items()]
    return _table(("query of", *columns), rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return _safe(text).replace("|", "\\|")


def _safe(text: str) -> str:
    """Names come from data sets and from services: no HTML, no line of its own."""
    return " ".join(text.replace("<", "&lt;").split())
