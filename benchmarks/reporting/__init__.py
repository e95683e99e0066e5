"""What a run's folder says to people and to other tools: HTML, Markdown, MTEB's JSON, CSV, HDR logs."""

from benchmarks.reporting.hdr_log import write_hdr_log
from benchmarks.reporting.html import write_html
from benchmarks.reporting.markdown import markdown
from benchmarks.reporting.mteb import write_mteb
from benchmarks.reporting.points import write_points
from benchmarks.reporting.throughput import throughput_of

__all__ = ["markdown", "throughput_of", "write_hdr_log", "write_html", "write_mteb", "write_points"]
