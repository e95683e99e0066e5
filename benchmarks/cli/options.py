"""Options that several commands share."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

DATA = Annotated[Path, typer.Argument(help="A data set in UnED's layout.")]
URL = Annotated[str, typer.Option(help="URL of the service, or of the endpoint of another target.")]
JSON = Annotated[bool, typer.Option("--json", help="Print one line of JSON at the end.")]
KEY = Annotated[
    str | None, typer.Option(envvar="BENCHMARKS_KEY", show_envvar=True, help="Bearer key of the service.")
]
PROCESSES = Annotated[int, typer.Option(min=1, max=64, help="Number of processes that generate the load.")]
LOCAL = "http://127.0.0.1:3000"


def print_json(value: dict[str, Any]) -> None:
    """Print the line of JSON that tools read."""
    print(json.dumps(value))  # noqa: T201
