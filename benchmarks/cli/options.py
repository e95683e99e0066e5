"""What the commands' options have in common."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

DATA = Annotated[Path, typer.Argument(help="A data set in UnED's layout.")]
URL = Annotated[str, typer.Option(help="The service; of another target, its call.")]
JSON = Annotated[bool, typer.Option("--json", help="End with one line of JSON.")]
KEY = Annotated[
    str | None, typer.Option(envvar="BENCHMARKS_KEY", show_envvar=True, help="The service's bearer key.")
]
PROCESSES = Annotated[int, typer.Option(min=1, max=64, help="Processes that generate the load.")]
LOCAL = "http://127.0.0.1:3000"


def print_json(value: dict[str, Any]) -> None:
    """The one line that tools read."""
    print(json.dumps(value))  # noqa: T201
