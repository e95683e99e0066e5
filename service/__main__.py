"""`python -m service`: run, check and tune the service."""

import asyncio
import json
import os
import socket
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from service.core import Core, open_index
from service.errors import SettingsError, StartupError
from service.index.edge import GRAPH_FROM_ITEMS
from service.index.optimise import optimise as build
from service.manifest import load_manifest
from service.process import end_with_supervisor
from service.settings import Settings, load_settings
from service.tune import print_tuned
from service.tune import tune as measure

_TIMES = [
    f"%Y-%m-%d{time}{offset}" for time in ("", "T%H:%M:%S", "T%H:%M:%S.%f") for offset in ("", "%z")
]  # ISO 8601
_AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON in the last line.")]

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)


@app.command()
def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on. `::` is all of IPv4 and IPv6, 0.0.0.0 all of IPv4.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 3000,
) -> None:
    """Serve over HTTP, supervised by BentoML. The settings are environment variables, `UIE_*`."""
    address = _address(host, port)
    settings = load_settings()
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")
    command = [sys.executable, "-m", "bentoml", "serve", "service.bento:service"]
    command += ["--host", address, "--port", str(port)]
    command += ["--timeout-graceful-shutdown", str(settings.stop_timeout_s)]
    os.execv(sys.executable, command)  # noqa: S606 (the supervisor takes over this process)


def _address(host: str, port: int) -> str:
    """Return the IP address of `host`, of IPv4 if it has both. Raises SettingsError if it cannot be used."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, *_, address = min(addresses, key=lambda info: info[0] is not socket.AF_INET)
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError, UnicodeError) as error:
        raise SettingsError(f"cannot listen on {host}, port {port}: {error}") from error
    return str(address[0])


@app.command()
def check() -> None:
    """Start the service without serving: check settings, models, index and golden images."""
    settings = load_settings()
    end_with_supervisor()  # that of the service that is being started

    core = Core(settings)

    async def start_and_close() -> int:
        try:
            await core.start()
            return (await core.index.counts())[0]
        finally:
            await core.close()

    items = asyncio.run(start_and_close())
    models = "; ".join(f"{card.name}, {card.precision}, {settings.provider}" for card in core.manifests)
    index = "on the Qdrant server" if settings.qdrant_url else settings.data_dir
    typer.echo(f"ready: {models}; index {index}: {_count_items(items)}")


@app.command()
def tune(
    images: Annotated[Path | None, typer.Option(help="Folder of representative images.")] = None,
    write: Annotated[Path | None, typer.Option(help="File for the settings, as UIE_* lines.")] = None,
    as_json: _AsJson = False,
) -> None:
    """Measure decoding and inference on this machine, and print the best settings, in about 30 seconds."""
    tuned = measure(load_settings(), images, Console(stderr=True))
    print_tuned(tuned, Console())
    Console().print(tuned.lines(), end="")
    if write:
        write.write_text(tuned.lines())
    if as_json:
        typer.echo(json.dumps(asdict(tuned)))


@app.command()
def optimise(
    from_items: Annotated[
        int, typer.Option(min=1, help="Galleries below this size get no graph: it would not be faster.")
    ] = GRAPH_FROM_ITEMS,
    as_json: _AsJson = False,
) -> None:
    """Build the HNSW graph and the quantization of the embedded index, while no service has it open."""
    result = build(load_settings(), from_items, Console(stderr=True))
    typer.echo(
        f"{result.indexed_vectors:,} vectors in a graph, {_count_items(result.items)}, "
        f"quantization {result.quantization}, {result.took_s:.1f} s"
    )
    if result.items < from_items:
        typer.echo(f"no graph: fewer items than --from-items {from_items:,}")
    if as_json:
        typer.echo(json.dumps(asdict(result)))


@app.command()
def indexed(
    start: Annotated[datetime, typer.Option("--from", formats=_TIMES, help="Start, UTC if without offset.")],
    end: Annotated[datetime, typer.Option("--to", formats=_TIMES, help="End.")],
) -> None:
    """List the items that were written within a time, one JSON object per line.

    The embedded index must not be open in a service.
    """
    values = load_settings()
    index = open_index(values, load_manifest(values.model_folders[0]), create=False)
    try:
        for item in index.indexed(
            *(time if time.tzinfo else time.replace(tzinfo=UTC) for time in (start, end))
        ):
            typer.echo(json.dumps(asdict(item)))
        if undated := index.undated():
            typer.echo(f"not listed: {_count_items(undated)} of an older version, without a time", err=True)
    finally:
        index.close()


@app.command()
def settings() -> None:
    """Print every setting with its current value and its description."""
    # Names and values are never truncated, even at 80 columns, so that they can be copied.
    table = Table(Column("variable", no_wrap=True), Column("value", overflow="fold"), "description")
    values = load_settings()
    for name, field in Settings.model_fields.items():
        value = getattr(values, name)
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        table.add_row(f"UIE_{name.upper()}", shown, field.description)
    Console().print(table)


def _count_items(number: int) -> str:
    return f"{number:,} item" if number == 1 else f"{number:,} items"


def main() -> None:
    """Run a command. If it refuses to start, print one sentence to stderr and exit with status 1."""
    try:
        app()
    except StartupError as error:
        typer.echo(f"service: {error}", err=True)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
