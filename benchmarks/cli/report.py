"""What came of a run: on the terminal, as a page, and for other tools."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.cli.options import JSON, print_json
from benchmarks.errors import RunError
from benchmarks.replay.results import replayed
from benchmarks.replay.summary import rounded, summary_of_replay
from benchmarks.reports import markdown, throughput_of, write_hdr_log, write_html, write_mteb, write_points
from benchmarks.reports.terminal import print_table, write_summary
from benchmarks.runs.run import Run


def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    html: Annotated[Path | None, typer.Option(help="The page; RUN/report.html if not said.")] = None,
    concurrency: Annotated[
        Path | None, typer.Option(help="A folder of `concurrency`: adds throughput against latency.")
    ] = None,
    reference_rounding: Annotated[
        bool,
        typer.Option("--reference-rounding", help="As `score` has it, in what is printed; not in the files."),
    ] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Markdown instead of the table.")] = False,
    as_json: JSON = False,
) -> None:
    """Accuracy and latency of a run: a table here, a page that opens offline, files for other tools."""
    measured, console = Run(run), Console()
    seen = replayed(measured)
    summary = summary_of_replay(seen)
    throughput = throughput_of(concurrency, seen.said) if concurrency else None
    write_summary(measured.folder, summary)
    try:
        page = write_html(seen, summary, html, throughput)
        write_mteb(measured, summary)
        write_points(measured, summary)
        write_hdr_log(measured, seen.observations)
    except OSError as error:
        raise RunError(f"the report of {run} cannot be written: {error}") from error
    if reference_rounding:
        summary = rounded(summary)
    if as_markdown:
        typer.echo(markdown(measured, summary, throughput), nl=False)
    else:
        print_table(summary, console)
        console.print(f"the whole report: {page}", soft_wrap=True, highlight=False)
    if reference_rounding:
        console.print("each domain was rounded to 3 decimals before averaging, as in the reference")
    if as_json:
        print_json(summary)
