"""Latencies as an HdrHistogram log, one histogram per second, for tools that read such logs."""

import io
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogWriter

from benchmarks.files import write_atomically
from benchmarks.reports.plots import segment_starts
from benchmarks.runs.records import RunRecord
from benchmarks.runs.run import Observation, Run, answered

LOWEST_US, HIGHEST_US, DIGITS = 1, 3_600_000_000, 3  # one microsecond to one hour


def write_hdr_log(run: Run, observations: Sequence[Observation]) -> Path:
    """Write `latency.hlog`: microseconds of answered requests, by the second of their end, tagged by kind.

    Segments follow each other without the pauses between them. Raises RunError.
    """
    started = datetime.fromisoformat(run.record(RunRecord).started)
    file, stream = run.folder / "latency.hlog", io.StringIO()
    log = HistogramLogWriter(stream)
    log.output_log_format_version()
    # The writer's `output_start_time` calls a method that datetime does not have.
    stamp = f"{started.timestamp():.3f} (seconds since epoch), {started:%Y-%m-%d %H:%M:%S}"
    log.output_comment(f"[StartTime: {stamp}]")
    log.output_comment(f"[BaseTime: {started.timestamp():.3f} (seconds since epoch)]")
    log.output_legend()
    starts, _ = segment_starts(observations)
    histograms = defaultdict[tuple[int, str], HdrHistogram](
        lambda: HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS)
    )
    for observation in answered(observations):
        second = int(starts[observation.segment] + observation.done_s)
        latency_us = max(LOWEST_US, round(observation.latency_ms * 1000))  # a histogram cannot hold 0
        histograms[second, observation.kind].record_value(latency_us)
    for (second, kind), histogram in sorted(histograms.items()):
        histogram.set_start_time_stamp(second * 1000)  # the writer would take 0 for a missing time
        histogram.set_end_time_stamp((second + 1) * 1000)
        stream.write(f"Tag={kind},")
        log.output_interval_histogram(histogram, max_value_unit_ratio=1000.0)
    write_atomically(file, stream.getvalue())
    return file
