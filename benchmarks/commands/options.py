"""What the commands' options have in common."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

DATA = Annotated[Path, typer.Argument(help="A data set in UnED's layout.")]
URL = Annotated[str, typer.Option(help="The service.")]
JSON = Annotated[bool, typer.Option("--json", help="End with one line of JSON.")]
LOCAL = "http://127.0.0.1:3000"


def print_json(value: dict[str, Any]) -> None:
    """The one line that tools read."""
    print(json.dumps(value))  # noqa: T201
