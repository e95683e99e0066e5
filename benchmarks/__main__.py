"""Command line of the benchmarks: data sets, accuracy and latency of a live service."""

import signal

import typer

from benchmarks.cli import compare, datasets, experiments, load, points, replay, report, score
from benchmarks.errors import BenchmarkError, Interrupted

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)

for verb in (
    *(datasets.octet, datasets.folder, datasets.index),
    *(replay.replay, report.report, replay.demo),
    *(score.score, score.check, compare.compare, compare.gate),
    *(points.ladder, points.sweep, points.strategies),
    *(load.load, load.saturate, load.concurrency, load.selftest),
    *(experiments.efficiency, experiments.peer, experiments.soak),
):
    app.command()(verb)


def main() -> None:
    """Run a command. An error is one sentence on stderr, with exit status 1, or 130 after Ctrl-C."""
    for name in (signal.SIGTERM, signal.SIGHUP):  # as for Ctrl-C: child processes are stopped
        signal.signal(name, signal.default_int_handler)
    try:
        app()
    except BenchmarkError as error:
        typer.echo(f"benchmarks: {error}", err=True)
        raise SystemExit(130 if isinstance(error, Interrupted) else 1) from error


if __name__ == "__main__":
    main()
