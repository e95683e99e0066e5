"""What `list`, `verify`, `export` and `bench` print."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from model_export.errors import ExportError
from model_export.inspection.bench import BATCHES, Speed
from model_export.inspection.verify import Check
from service.errors import StartupError
from service.manifest import Manifest, load_manifest


def print_models(folders: Mapping[str, Path | ExportError], console: Console) -> None:
    """A row for each; what is wrong with a damaged one comes below the table."""
    columns = ("dim", "precision", "mean R@1", "licence")
    whole = (Column(name, no_wrap=True) for name in ("name", "fingerprint"))  # they are there to be copied
    table = Table(*whole, *(Column(name, overflow="fold") for name in columns))
    damaged = []
    for name, folder in folders.items():
        try:
            if isinstance(folder, ExportError):
                raise folder
            card = load_manifest(folder)
        except (StartupError, ExportError) as error:
            table.add_row(name, "damaged")
            damaged.append(f"{name} is damaged: {error}")
            continue
        mean = card.accuracy.scores(card.precision).get("mean", {}).get("R@1") if card.accuracy else None
        known = "" if mean is None else f"{100 * mean:.1f}"
        table.add_row(name, card.fingerprint, str(card.dim), card.precision, known, card.licence)
    console.print(table)
    for sentence in damaged:
        console.print(sentence, markup=False)


def print_accuracy(manifest: Manifest, console: Console) -> None:
    """A variant's scores beside its base's."""
    accuracy = manifest.accuracy
    assert accuracy is not None
    before, after = accuracy.fp32, accuracy.scores(manifest.precision)
    table = Table(
        "test split", "R@1 fp32", f"R@1 {manifest.precision}", "mMP@5 fp32", f"mMP@5 {manifest.precision}"
    )
    for domain in before:
        cells = [100 * one[domain][measure] for measure in ("R@1", "mMP@5") for one in (before, after)]
        table.add_row(domain, *[f"{cell:.1f}" for cell in cells])
    console.print(table)


def print_checks(checks: list[Check], console: Console) -> None:
    """And whether all of them could be done."""
    table = Table("check", "status", "detail")
    for check in checks:
        table.add_row(check.name, check.status, check.detail)
    console.print(table)
    undone = sum(check.status == "not done" for check in checks)
    if undone:
        console.print(f"INCOMPLETE: {undone} of {len(checks)} checks could not be done")


def print_speeds(speeds: list[Speed], console: Console) -> None:
    """Images/s, and the ratio to the first model."""
    table = Table("images/s (times the first)", *(f"batch {batch}" for batch in BATCHES))
    for one in speeds:
        cells = [f"{one.images_per_s[batch]:.1f} ({one.ratio[batch]:.2f})" for batch in BATCHES]
        table.add_row(one.model, *cells)
    console.print(table)
