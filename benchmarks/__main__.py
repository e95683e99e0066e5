"""`python -m benchmarks`: data sets, accuracy and latency of the live service."""

import typer

from benchmarks.commands import accuracy, data, load, scoring
from benchmarks.errors import BenchmarkError

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)

for verb in (
    *(data.octet, data.folder, data.index),
    *(accuracy.replay, accuracy.report, accuracy.demo),
    *(load.efficiency, load.peer, load.soak),
    *(scoring.score, scoring.check),
):
    app.command()(verb)


def main() -> None:
    """Errors of ours are one sentence on stderr and exit status 1."""
    try:
        app()
    except BenchmarkError as error:
        typer.echo(f"benchmarks: {error}", err=True)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
