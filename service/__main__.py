"""`python -m service`: run the service, and see its settings."""

import asyncio
import json
import os
import socket
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from service.core import Core
from service.errors import SettingsError, StartupError
from service.index.edge import GRAPH_FROM_ITEMS
from service.index.optimise import optimise as build
from service.settings import Settings, load_settings
from service.tune import print_tuned
from service.tune import tune as measure

# Longer than clients keep an idle connection: one that is closed as it is used again fails a request.
_KEEP_ALIVE_S = 75

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 3000,
) -> None:
    """Serve over HTTP, under BentoML's supervision. Settings are read from `UIE_*`."""
    _check_port(host, port)
    stop_timeout_s = load_settings().stop_timeout_s
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")
    command = [sys.executable, "-m", "bentoml", "serve", "service.bento:service"]
    command += ["--host", host, "--port", str(port), "--timeout-keep-alive", str(_KEEP_ALIVE_S)]
    command += ["--timeout-graceful-shutdown", str(stop_timeout_s)]
    os.execv(sys.executable, command)  # noqa: S606 (the supervisor takes over this process)


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise SettingsError(f"{host}:{port} cannot be listened on: {error}") from error


@app.command()
def check() -> None:
    """Do all that a start does, up to the golden image, and say what would refuse."""

    async def start_and_close() -> None:
        core = Core(load_settings())
        try:
            await core.start()
        finally:
            core.close()

    asyncio.run(start_and_close())


@app.command()
def tune(
    images: Annotated[Path | None, typer.Option(help="Pictures like yours.")] = None,
    write: Annotated[Path | None, typer.Option(help="Save the settings here, as UIE_* lines.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one line of JSON.")] = False,
) -> None:
    """Measure decoding and inference here, and print the settings that follow: about half a minute."""
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
        int, typer.Option(min=1, help="A smaller gallery gets no graph: its search is as fast without.")
    ] = GRAPH_FROM_ITEMS,
    as_json: Annotated[bool, typer.Option("--json", help="End with one line of JSON.")] = False,
) -> None:
    """Build the embedded index's HNSW graph, and its quantization as set, while no service has it open."""
    done = build(load_settings(), from_items, Console(stderr=True))
    typer.echo(
        f"{done.indexed_vectors:,} vectors in a graph, {done.items:,} items, "
        f"quantization {done.quantization}, {done.took_s:.1f} s"
    )
    if done.items < from_items:
        typer.echo(f"no graph: there are fewer than --from-items {from_items:,}")
    if as_json:
        typer.echo(json.dumps(asdict(done)))


@app.command()
def settings() -> None:
    """Every setting, what it is for, and its value now."""
    # Whole, on a terminal of 80 columns too: they are there to be copied.
    table = Table(Column("variable", no_wrap=True), Column("value", overflow="fold"), "for")
    values = load_settings()
    for name, field in Settings.model_fields.items():
        value = getattr(values, name)
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        table.add_row(f"UIE_{name.upper()}", shown, field.description)
    Console().print(table)


def main() -> None:
    """Refusals are one sentence on stderr and exit status 1."""
    try:
        app()
    except StartupError as error:
        typer.echo(f"service: {error}", err=True)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
