"""Command line of the benchmarks: data sets, accuracy and latency of a live service."""

import math
import signal
import time
from collections.abc import Callable

import typer

from benchmarks.cli import compare, datasets, experiments, load, points, replay, report, score
from benchmarks.errors import BenchmarkError, Interrupted

_SAME_STOP_S = 1

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


def _stop_handler() -> Callable[[int, object], None]:
    """Return a signal handler that raises KeyboardInterrupt, but not several times in one second.

    Otherwise a key that is pressed repeatedly would interrupt the summary of the results.
    """
    last = -math.inf

    def stop(*_: object) -> None:
        nonlocal last
        if time.monotonic() - last >= _SAME_STOP_S:
            last = time.monotonic()
            raise KeyboardInterrupt

    return stop


def main() -> None:
    """Run a command. An error is one sentence on stderr, with exit status 1, or 130 after Ctrl-C."""
    stop = _stop_handler()
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # child processes are stopped
        if signal.getsignal(name) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(name, stop)
    try:
        app()
    except BenchmarkError as error:
        typer.echo(f"benchmarks: {error}", err=True)
        raise SystemExit(130 if isinstance(error, Interrupted) else 1) from error


if __name__ == "__main__":
    main()
