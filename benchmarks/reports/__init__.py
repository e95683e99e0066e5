"""Reports of a run for people and for other tools: HTML, Markdown, MTEB's JSON, CSV, HDR logs."""

from benchmarks.reports.hdr_log import write_hdr_log
from benchmarks.reports.html import write_html
from benchmarks.reports.markdown import markdown
from benchmarks.reports.mteb import write_mteb
from benchmarks.reports.points_csv import write_points
from benchmarks.reports.throughput_curve import throughput_of

__all__ = ["markdown", "throughput_of", "write_hdr_log", "write_html", "write_mteb", "write_points"]
