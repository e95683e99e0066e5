"""Tables printed by `list`, `verify`, `export` and `bench`."""

from collections.abc import Mapping
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from model_export.errors import ExportError
from model_export.inspection.bench import BATCHES, Speed
from model_export.inspection.verify import Check
from service.errors import StartupError
from service.manifest import Manifest, load_manifest


def print_models(folders: Mapping[str, Path | ExportError], console: Console) -> None:
    """Print a row per model, and the errors of damaged models below the table."""
    columns = ("dim", "precision", "R@1", "licence")
    unwrapped = (Column(name, no_wrap=True) for name in ("name", "fingerprint"))  # for copying
    others = (Column(name, overflow="fold") for name in columns)
    table = Table(*unwrapped, *others, box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    damaged = []
    for name, folder in folders.items():
        try:
            if isinstance(folder, ExportError):
                raise folder
            manifest = load_manifest(folder)
        except (StartupError, ExportError) as error:
            table.add_row(name, "damaged")
            damaged.append(f"{name} is damaged: {error}")
            continue
        scores = manifest.accuracy.scores(manifest.precision) if manifest.accuracy else {}
        mean = f"{100 * scores['mean']['R@1']:.1f}" if "R@1" in scores.get("mean", {}) else "-"
        table.add_row(
            name, manifest.fingerprint, str(manifest.dim), manifest.precision, mean, manifest.licence
        )
    console.print(table)
    console.print(
        "R@1: the mean over domains, which the export of an fp16 or int8 model measures", soft_wrap=True
    )
    for sentence in damaged:
        console.print(sentence, markup=False)


def print_accuracy(manifest: Manifest, console: Console) -> None:
    """Print the scores of a variant beside those of its base."""
    accuracy = manifest.accuracy
    assert accuracy is not None
    before, after = accuracy.fp32, accuracy.scores(manifest.precision)
    table = Table(
        "test split", "R@1 fp32", f"R@1 {manifest.precision}", "mMP@5 fp32", f"mMP@5 {manifest.precision}"
    )
    for domain in before:
        cells = [100 * scores[domain][name] for name in ("R@1", "mMP@5") for scores in (before, after)]
        table.add_row(domain, *[f"{cell:.1f}" for cell in cells])
    console.print(table)


def print_checks(checks: list[Check], console: Console) -> None:
    """Print the checks, and whether any could not be done."""
    table = Table("check", "status", "detail")
    for check in checks:
        table.add_row(check.name, check.status, check.detail)
    console.print(table)
    if undone := sum(check.status == "not done" for check in checks):
        console.print(f"INCOMPLETE: {undone} of {len(checks)} checks could not be done")


def print_speeds(speeds: list[Speed], console: Console) -> None:
    """Print images/s and the ratio to the first model."""
    table = Table("images/s (times the first)", *(f"batch {batch}" for batch in BATCHES))
    for speed in speeds:
        cells = [f"{speed.images_per_s[batch]:.1f} ({speed.ratio[batch]:.2f})" for batch in BATCHES]
        table.add_row(speed.model, *cells)
    console.print(table)
