"""`python -m benchmarks`: data sets, accuracy and latency of the live service."""

import signal

import typer

from benchmarks.commands import accuracy, comparing, data, measuring, points, rates, reporting, scoring
from benchmarks.errors import BenchmarkError, Interrupted

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)

for verb in (
    *(data.octet, data.folder, data.index),
    *(accuracy.replay, reporting.report, accuracy.demo),
    *(scoring.score, scoring.check, comparing.compare, comparing.gate),
    *(points.ladder, points.sweep, points.strategies),
    *(rates.load, rates.saturate, rates.concurrency, rates.selftest),
    *(measuring.efficiency, measuring.peer, measuring.soak),
):
    app.command()(verb)


def main() -> None:
    """Errors of ours are one sentence on stderr and exit status 1, 130 after Ctrl-C."""
    for name in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: what was started is ended
        signal.signal(name, signal.default_int_handler)
    try:
        app()
    except BenchmarkError as error:
        typer.echo(f"benchmarks: {error}", err=True)
        raise SystemExit(130 if isinstance(error, Interrupted) else 1) from error


if __name__ == "__main__":
    main()
