"""`python -m model_export`: trained models to model folders."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from benchmarks.dataset import Dataset
from benchmarks.errors import BenchmarkError
from model_export.backbones import BACKBONES, backbone_named
from model_export.errors import ExportError
from model_export.export import export_model
from service.errors import StartupError
from service.manifest import load_manifest

ZOO = Path(__file__).parent / "zoo"

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)


@app.command()
def export(
    source: Annotated[str, typer.Argument(help=f"A backbone: {', '.join(BACKBONES)}.")],
    out: Annotated[Path, typer.Option(help="The model folder to write; its name is the model's.")],
    data: Annotated[Path, typer.Option(help="Data set whose training images fit the head.")] = Path(
        "data/octet"
    ),
) -> None:
    """Fit a 64-d PCA head on a pretrained backbone and write an ONNX model folder."""
    manifest = export_model(backbone_named(source), Dataset(data), out)
    print(f"{out}: {manifest.dim}-d, fingerprint {manifest.fingerprint}")  # noqa: T201


@app.command(name="list")
def list_models() -> None:
    """The models of the zoo."""
    table = Table(Column("name", no_wrap=True), "dim", "precision", "fingerprint", "licence", "strategy")
    for folder in sorted(ZOO.iterdir()):
        card = load_manifest(folder)
        table.add_row(card.name, str(card.dim), card.precision, card.fingerprint, card.licence, card.strategy)
    Console().print(table)


def main() -> None:
    """Errors of ours are one sentence on stderr and exit status 1."""
    try:
        app()
    except (ExportError, BenchmarkError, StartupError) as error:
        typer.echo(f"model_export: {error}", err=True)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
