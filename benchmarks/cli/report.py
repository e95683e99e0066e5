"""Command that reports a run: on the terminal, as a page, and for other tools."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.cli.options import JSON, print_json
from benchmarks.replay.results import ranked_run
from benchmarks.replay.summary import rounded, summary_of
from benchmarks.reports import markdown, throughput_of, write_hdr_log, write_html, write_mteb, write_points
from benchmarks.reports.terminal import print_table
from benchmarks.runs.records import to_json, write_summary
from benchmarks.runs.run import Run


def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    html: Annotated[Path | None, typer.Option(help="The page; default: RUN/report.html.")] = None,
    concurrency: Annotated[
        Path | None, typer.Option(help="Folder of `concurrency`: adds throughput against latency.")
    ] = None,
    reference_rounding: Annotated[
        bool,
        typer.Option("--reference-rounding", help="As for `score`; affects the output, not the files."),
    ] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Markdown instead of the table.")] = False,
    as_json: JSON = False,
) -> None:
    """Report accuracy and latency of a run: a table, a page that opens offline, files for other tools."""
    folder, console = Run(run), Console()
    ranked = ranked_run(folder)
    summary = summary_of(ranked)
    throughput = throughput_of(concurrency, ranked.record) if concurrency else None
    write_summary(run, summary)
    page = write_html(ranked, summary, html, throughput)
    write_mteb(folder, summary)
    write_points(folder, summary)
    write_hdr_log(folder, ranked.observations)
    if reference_rounding:
        summary = rounded(summary)
    if as_markdown:
        typer.echo(markdown(folder, summary, throughput), nl=False)
    else:
        print_table(summary, console)
        console.print(f"full report: {page}", soft_wrap=True, highlight=False)
    if reference_rounding:
        console.print("each domain was rounded to 3 decimals before averaging, as in the reference")
    if as_json:
        print_json(to_json(summary))
