"""Latencies as an HdrHistogram log: a histogram a second, for the tools that read such logs."""

import io
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogWriter

from benchmarks.files import write_atomically
from benchmarks.reports.plots import segment_starts
from benchmarks.runs.run import Observation, Run, answered

LOWEST_US, HIGHEST_US, DIGITS = 1, 3_600_000_000, 3  # one microsecond to one hour


def write_hdr_log(run: Run, observations: Sequence[Observation]) -> Path:
    """`latency.hlog`: microseconds of answered requests by the second in which they ended, tagged by kind.

    Segments follow each other without their pauses. Raises RunError where `run.json` is not
    there, or the log cannot be written.
    """
    started = datetime.fromisoformat(run.said()["started"])
    file, stream = run.folder / "latency.hlog", io.StringIO()
    log = HistogramLogWriter(stream)
    log.output_log_format_version()
    # Its own `output_start_time` calls a method that datetime does not have.
    stamp = f"{started.timestamp():.3f} (seconds since epoch), {started:%Y-%m-%d %H:%M:%S}"
    log.output_comment(f"[StartTime: {stamp}]")
    log.output_comment(f"[BaseTime: {started.timestamp():.3f} (seconds since epoch)]")
    log.output_legend()
    for (second, kind), latencies_us in sorted(_by_second(observations).items()):
        histogram = HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS)
        for one in latencies_us:
            histogram.record_value(one)
        histogram.set_start_time_stamp(second * 1000)  # second 0 counts as not given to the writer
        histogram.set_end_time_stamp((second + 1) * 1000)
        stream.write(f"Tag={kind},")
        log.output_interval_histogram(histogram, max_value_unit_ratio=1000.0)
    write_atomically(file, stream.getvalue())
    return file


def _by_second(observations: Sequence[Observation]) -> dict[tuple[int, str], list[int]]:
    """Microseconds, each at least 1: the histograms know no 0."""
    starts, _ = segment_starts(observations)
    found: dict[tuple[int, str], list[int]] = {}
    for one in answered(observations):
        second = int(starts[one.segment] + one.done_s)
        took_us = max(LOWEST_US, round(one.latency_ms * 1000))
        found.setdefault((second, one.kind), []).append(took_us)
    return found
