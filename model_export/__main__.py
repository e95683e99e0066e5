"""`python -m model_export`: train, export and verify models."""

import importlib.util
import sys

if importlib.util.find_spec("torch") is None:  # the demo's environment has none
    sys.exit("model_export: torch is not installed: run `make test-env`")

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
import uvicorn
from rich.console import Console

from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import BenchmarkError
from model_export.baseline.server import naive_app, torch_graph
from model_export.checkpoints.flax import import_checkpoint
from model_export.descriptors.splits import CORES, embed_splits
from model_export.errors import ExportError, VerifyError
from model_export.export.fp32 import export_model
from model_export.export.sources import export_source
from model_export.inspection.bench import bench as run_bench
from model_export.inspection.tables import print_accuracy, print_checks, print_models, print_speeds
from model_export.inspection.verify import verify as run_verify
from model_export.networks.backbones import BACKBONES
from model_export.networks.head import HeadKind
from model_export.paper_table.run import compare as run_comparison
from model_export.paper_table.systems import STRATEGIES
from model_export.paper_table.table import best_on_validation, strategy_notes, write_table
from model_export.training.config import load_strategy
from model_export.training.loop import train as run_training
from service.errors import StartupError
from service.inference.encoder import Encoder
from service.manifest import Jpeg, Manifest, Precision, load_manifest

ZOO = Path(__file__).parent / "zoo"
OCTET = Path("data/octet")
RUNS = Path("runs/compare")

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
console = Console()


def _folder(text: str) -> Path:
    """Return a path, or the folder of a zoo model if no such path exists."""
    return ZOO / text if not Path(text).exists() and (ZOO / text).is_dir() else Path(text)


SOURCE = Annotated[
    str,
    typer.Argument(help=f"A run of `train`, an fp32 model folder, or a backbone: {', '.join(BACKBONES)}."),
]
MODEL = Annotated[
    Path, typer.Argument(metavar="DIR", parser=_folder, help="A model folder, or the name of a zoo model.")
]
DATA = Annotated[Path, typer.Option(help="A data set in UnED's layout.")]
MODEL_OUT = Annotated[Path, typer.Option(help="Model folder to write; its name becomes the model's.")]
CACHE = Annotated[Path, typer.Option(help="Folder of cached descriptors of frozen backbones.")]
STORE = Annotated[bool, typer.Option(help="Also add the model to BentoML's model store.")]
ALLOW_MISSING = Annotated[bool, typer.Option("--allow-missing", help="Ignore missing images.")]
JSON = Annotated[bool, typer.Option("--json", help="Print a JSON object as the last line.")]


@app.command()
def export(
    source: SOURCE,
    out: MODEL_OUT,
    precision: Annotated[Precision, typer.Option(help="Precision of the network.")] = "fp32",
    head: Annotated[HeadKind | None, typer.Option(help="Head of a backbone; pca by default.")] = None,
    jpeg: Annotated[Jpeg | None, typer.Option(help="draft: decode large JPEGs at reduced size.")] = None,
    data: Annotated[Path, typer.Option(help="Data set to fit the head, calibrate and score.")] = OCTET,
    allow_missing: ALLOW_MISSING = False,
    store: STORE = True,
) -> None:
    """Export an ONNX model folder; for fp16 and int8, print the loss in accuracy."""

    def write() -> Manifest:
        dataset = Dataset(data, present_only=allow_missing)
        return export_source(source, precision, dataset, out, console, head, jpeg)

    _export(out, store, write)


@app.command(name="import")
def import_(
    checkpoint: Annotated[Path, typer.Argument(help="A released UnED or UDON checkpoint (Flax msgpack).")],
    out: MODEL_OUT,
    data: Annotated[Path, typer.Option(help="Data set for the parity check, if it exists.")] = OCTET,
    allow_missing: ALLOW_MISSING = False,
    store: STORE = True,
) -> None:
    """Convert a released checkpoint to a model folder; sizes are read from the checkpoint."""

    def write() -> Manifest:
        photos = Dataset(data, present_only=allow_missing) if data.is_dir() else None
        return export_model(import_checkpoint(checkpoint), photos, out)

    _export(out, store, write)


def _export(out: Path, store: bool, write: Callable[[], Manifest]) -> None:
    """Write a model folder, print its manifest, and add it to BentoML's store."""
    if store:
        from model_export.export.store import check_name, put_in_store  # slow import of BentoML

        check_name(out)
    manifest = write()
    typer.echo(f"{out}: {manifest.dim}-d, {manifest.precision}, fingerprint {manifest.fingerprint}")
    if manifest.accuracy:
        print_accuracy(manifest, console)
    if store:
        typer.echo(f"in BentoML's store as {put_in_store(out, manifest)}")


def _echo_json(as_json: bool, body: dict[str, Any]) -> None:
    if as_json:
        typer.echo(json.dumps(body))


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A strategy, such as those in model_export/strategies.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; an interrupted run is resumed.")],
    data: DATA = OCTET,
    domains: Annotated[str, typer.Option(help="Train on these domains only, separated by commas.")] = "",
    seed: Annotated[int | None, typer.Option(min=0, help="Replaces the seed of the strategy.")] = None,
    cache: CACHE = Path("data/cache"),
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images.")] = 0,
    allow_missing: ALLOW_MISSING = False,
    as_json: JSON = False,
) -> None:
    """Train a head or a whole network by a strategy. Use `accelerate launch -m` for several GPUs."""
    changes: dict[str, Any] = {"domains": domains.split(",")} if domains else {}
    if seed is not None:
        changes["seed"] = seed
    strategy = load_strategy(config, **changes)
    try:
        summary = run_training(strategy, Dataset(data, present_only=allow_missing), out, cache, workers)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command resumes from the last evaluation", err=True)
        raise
    typer.echo(f"{out}: best val mean R@1 {100 * summary.best_val_r_at_1:.1f}, step {summary.best_step}")
    _echo_json(as_json, asdict(summary))


@app.command()
def compare(
    data: DATA = OCTET,
    strategies: Annotated[Path, typer.Option(help="Folder of the strategies.")] = STRATEGIES,
    out: Annotated[Path, typer.Option(help="Folder for the table, CSV and plot.")] = Path("docs/results"),
    runs: Annotated[Path, typer.Option(help="Folder of the runs; finished runs are reused.")] = RUNS,
    cache: CACHE = Path("data/cache"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds per system, except multi-stage.")] = 3,
    allow_missing: ALLOW_MISSING = False,
    as_json: JSON = False,
) -> None:
    """Reproduce the paper's table: train all systems and score them on the merged test index."""
    dataset = Dataset(data, present_only=allow_missing)
    results = run_comparison(dataset, strategies, runs, cache, seeds, console)
    notes = strategy_notes(dataset, strategies)
    table = write_table(results, dataset, f"python -m model_export compare --data {data}", notes, out)
    best = best_on_validation(results)
    typer.echo(f"{table}; chosen on validation: {best.row}")
    _echo_json(as_json, {"results": [asdict(result) for result in results], "chosen": asdict(best)})


@app.command()
def verify(
    model: MODEL,
    data: Annotated[Path | None, typer.Option(help=f"Data set of the photos; {OCTET} if it exists.")] = None,
    max_loss: Annotated[float, typer.Option(min=0, help="Allowed loss of mean R@1, in points.")] = 0.5,
    as_json: JSON = False,
) -> None:
    """Check a model folder: hashes, canonical image, batching, parity with torch, accuracy of a variant."""
    photos = data or (OCTET if OCTET.is_dir() else None)
    checks = run_verify(model, Dataset(photos) if photos else None, max_loss)
    print_checks(checks, console)
    failed = [check for check in checks if check.status == "failed"]
    complete = all(check.status != "not done" for check in checks)
    body = {"model": str(model), "passed": not failed, "complete": complete}
    _echo_json(as_json, {**body, "checks": [asdict(check) for check in checks]})
    if failed:
        raise VerifyError(f"{model}: " + "; ".join(f"{check.name}: {check.detail}" for check in failed))


@app.command()
def embed(
    model: MODEL,
    data: DATA,
    out: Annotated[Path, typer.Option(help="Folder of the descriptors; existing ones are kept.")],
    split: Annotated[str, typer.Option(help="Split to embed, together with its galleries.")] = "test",
    provider: Annotated[str, typer.Option(help="ONNX Runtime execution provider.")] = "cpu",
    allow_missing: Annotated[bool, typer.Option(help="Write zeros for missing or broken images.")] = False,
    as_json: JSON = False,
) -> None:
    """Write descriptors of a split and of its galleries, for `benchmarks score`."""
    encoder = Encoder(model, load_manifest(model), provider, CORES)
    counts = asdict(embed_splits(encoder, Dataset(data), split, out, allow_missing, console))
    typer.echo(f"{out}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    _echo_json(as_json, counts)


@app.command()
def bench(
    models: Annotated[list[Path], typer.Argument(metavar="DIR...", parser=_folder, help="Model folders.")],
    rounds: Annotated[int, typer.Option(min=1, help="Measurements per model.")] = 10,
    as_json: JSON = False,
) -> None:
    """Measure images/s of models in ONNX Runtime alone, alternating, at batch 1, 8 and 16."""
    speeds = run_bench(models, rounds)
    print_speeds(speeds, console)
    _echo_json(as_json, {"models": [asdict(speed) for speed in speeds]})


@app.command()
def serve(
    source: SOURCE,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    data: Annotated[Path, typer.Option(help="Data set to fit the head of a backbone.")] = OCTET,
) -> None:
    """Start a naive torch server as a baseline: eager fp32, one image per `POST /embed`."""
    uvicorn.run(naive_app(*torch_graph(source, data)), host=host, port=port, log_level="warning")


@app.command(name="list")
def list_models() -> None:
    """List the models of the zoo and of BentoML's store."""
    from model_export.export.store import stored_models  # slow import of BentoML

    zoo = {folder.name: folder for folder in sorted(ZOO.iterdir())}
    print_models({**zoo, **stored_models()}, console)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. Expected errors are printed as one sentence on stderr, with exit status 1."""
    try:
        app(arguments)
    except (ExportError, BenchmarkError, StartupError) as error:
        typer.echo(f"model_export: {error}", err=True)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
