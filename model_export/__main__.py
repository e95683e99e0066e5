"""`python -m model_export`: trained models to model folders."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
import uvicorn
from rich.console import Console

from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import BenchmarkError
from model_export.baseline.server import naive_app, torch_graph
from model_export.descriptors.splits import CORES, embed_splits
from model_export.errors import ExportError, VerifyError
from model_export.export.fp32 import export_model
from model_export.export.sources import export_source, from_checkpoint
from model_export.inspection.bench import bench as run_bench
from model_export.inspection.tables import print_accuracy, print_checks, print_models, print_speeds
from model_export.inspection.verify import verify as run_verify
from model_export.networks.backbones import BACKBONES
from model_export.networks.head import HeadKind
from model_export.paper_table.run import compare as run_comparison
from model_export.paper_table.systems import STRATEGIES
from model_export.paper_table.table import chosen, notes_on, write_table
from model_export.training.config import load_strategy
from model_export.training.loop import train as run_training
from service.errors import StartupError
from service.inference.encoder import Encoder
from service.manifest import Jpeg, Manifest, Precision, load_manifest

ZOO = Path(__file__).parent / "zoo"
OCTET = Path("data/octet")
CACHE = Path("data/cache")

SOURCES = f"A run of `train`, an fp32 model folder, or a backbone: {', '.join(BACKBONES)}."

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)


def _folder(text: str) -> Path:
    """A path; the name of a model of the zoo, where there is no such path."""
    return ZOO / text if not Path(text).exists() and (ZOO / text).is_dir() else Path(text)


MODEL = Annotated[
    Path, typer.Argument(metavar="DIR", parser=_folder, help="A model folder, or a model of the zoo by name.")
]
JSON = Annotated[bool, typer.Option("--json", help="End with one line of JSON.")]
ALLOW_MISSING = Annotated[
    bool, typer.Option("--allow-missing", help="Go on without the images that are missing.")
]


@app.command()
def export(
    source: Annotated[str, typer.Argument(help=SOURCES)],
    out: Annotated[Path, typer.Option(help="The model folder to write; its name is the model's.")],
    precision: Annotated[Precision, typer.Option(help="Of the network inside.")] = "fp32",
    head: Annotated[HeadKind | None, typer.Option(help="Of a backbone; PCA unless said.")] = None,
    jpeg: Annotated[
        Jpeg | None, typer.Option(help="draft: large JPEGs are decoded at a fraction of their size.")
    ] = None,
    data: Annotated[Path, typer.Option(help="Fits the head, calibrates and scores a variant.")] = OCTET,
    allow_missing: ALLOW_MISSING = False,
    store: Annotated[bool, typer.Option(help="Also put it into BentoML's model store.")] = True,
) -> None:
    """Write an ONNX model folder, and what a variant of lower precision costs in accuracy."""
    _check_name(out, store)
    dataset = Dataset(data, present_only=allow_missing)
    _announce(out, export_source(source, precision, dataset, out, Console(), head, jpeg), store)


def _check_name(out: Path, store: bool) -> None:
    if store:
        from model_export.export.store import check_name  # BentoML takes seconds to import

        check_name(out)


def _announce(out: Path, manifest: Manifest, store: bool) -> None:
    print(f"{out}: {manifest.dim}-d, {manifest.precision}, fingerprint {manifest.fingerprint}")  # noqa: T201
    if manifest.accuracy:
        print_accuracy(manifest, Console())
    if store:
        from model_export.export.store import put_in_store  # BentoML takes seconds to import

        print(f"in BentoML's store as {put_in_store(out, manifest)}")  # noqa: T201


@app.command(name="import")
def import_(
    checkpoint: Annotated[Path, typer.Argument(help="A released UnED or UDON checkpoint (Flax msgpack).")],
    out: Annotated[Path, typer.Option(help="The model folder to write.")],
    data: Annotated[Path, typer.Option(help="Photos for the parity check, if they are there.")] = OCTET,
    allow_missing: ALLOW_MISSING = False,
    store: Annotated[bool, typer.Option(help="Also put it into BentoML's model store.")] = True,
) -> None:
    """A released checkpoint to a model folder; sizes are read off its tree."""
    _check_name(out, store)
    photos = Dataset(data, present_only=allow_missing) if data.is_dir() else None
    _announce(out, export_model(from_checkpoint(checkpoint), photos, out), store)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A strategy, as under model_export/strategies.")],
    out: Annotated[Path, typer.Option(help="The run's folder; one that stopped goes on.")],
    data: Annotated[Path, typer.Option(help="A data set in UnED's layout.")] = OCTET,
    domains: Annotated[str, typer.Option(help="Only these, separated by commas: a specialist has one.")] = "",
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the strategy's.")] = None,
    cache: Annotated[Path, typer.Option(help="Where frozen descriptors are kept.")] = CACHE,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read pictures.")] = 0,
    allow_missing: ALLOW_MISSING = False,
    as_json: JSON = False,
) -> None:
    """Train a head, or a whole network, by a strategy. `accelerate launch -m` spreads it over GPUs."""
    changes: dict[str, Any] = {"domains": domains.split(",")} if domains else {}
    if seed is not None:
        changes["seed"] = seed
    strategy = load_strategy(config, **changes)
    try:
        summary = run_training(strategy, Dataset(data, present_only=allow_missing), out, cache, workers)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last evaluation", file=sys.stderr)  # noqa: T201
        raise
    print(f"{out}: best val mean R@1 {100 * summary.best_val_r_at_1:.1f}, step {summary.best_step}")  # noqa: T201
    if as_json:
        print(json.dumps(asdict(summary)))  # noqa: T201


@app.command()
def compare(
    data: Annotated[Path, typer.Option(help="A data set in UnED's layout.")] = OCTET,
    strategies: Annotated[Path, typer.Option(help="Folder of the strategies.")] = STRATEGIES,
    out: Annotated[Path, typer.Option(help="Where table, CSV and plot go.")] = Path("docs/results"),
    runs: Annotated[Path, typer.Option(help="The trainings; finished ones are not repeated.")] = Path(
        "runs/compare"
    ),
    cache: Annotated[Path, typer.Option(help="Where frozen descriptors are kept.")] = CACHE,
    seeds: Annotated[int, typer.Option(min=1, help="Of every system but multi-stage.")] = 3,
    allow_missing: ALLOW_MISSING = False,
    as_json: JSON = False,
) -> None:
    """The paper's table: everything trained, everything scored on the merged test index."""
    dataset = Dataset(data, present_only=allow_missing)
    results = run_comparison(dataset, strategies, runs, cache, seeds, Console())
    notes = notes_on(dataset, strategies)
    table = write_table(results, dataset, f"python -m model_export compare --data {data}", notes, out)
    best = chosen(results)
    print(f"{table}; chosen on validation: {best.row}")  # noqa: T201
    if as_json:
        said = {"results": [asdict(result) for result in results], "chosen": asdict(best)}
        print(json.dumps(said))  # noqa: T201


@app.command()
def verify(
    model: MODEL,
    data: Annotated[
        Path | None,
        typer.Option(help=f"Has the photos that torch was asked about; {OCTET} unless said, if it is there."),
    ] = None,
    max_loss: Annotated[float, typer.Option(min=0, help="Points of mean R@1 that a variant may lose.")] = 0.5,
    as_json: JSON = False,
) -> None:
    """Check a model folder: hashes, canonical vectors, batching, torch's embeddings, a variant's loss."""
    photos = data or (OCTET if OCTET.is_dir() else None)
    checks = run_verify(model, Dataset(photos) if photos else None, max_loss)
    print_checks(checks, Console())
    failed = [check for check in checks if check.status == "failed"]
    if as_json:
        rows = [{"name": one.name, "status": one.status, "detail": one.detail} for one in checks]
        complete = all(check.status != "not done" for check in checks)
        said = {"model": str(model), "passed": not failed, "complete": complete, "checks": rows}
        print(json.dumps(said))  # noqa: T201
    if failed:
        raise VerifyError(f"{model}: " + "; ".join(f"{one.name}: {one.detail}" for one in failed))


@app.command()
def embed(
    model: MODEL,
    data: Annotated[Path, typer.Option(help="A data set in UnED's layout.")],
    out: Annotated[Path, typer.Option(help="Folder of the descriptors; what is there already is kept.")],
    split: Annotated[str, typer.Option(help="Its galleries come along.")] = "test",
    provider: Annotated[str, typer.Option(help="ONNX Runtime execution provider.")] = "cpu",
    allow_missing: Annotated[bool, typer.Option(help="Rows of zeros for missing or broken images.")] = False,
    as_json: JSON = False,
) -> None:
    """Descriptors of a split and of the galleries that it searches, for `benchmarks score`."""
    encoder = Encoder(model, load_manifest(model), provider, CORES)
    done = embed_splits(encoder, Dataset(data), split, out, allow_missing, Console())
    said = {"embedded": done.embedded, "kept": done.kept, "missing": done.missing}
    print(f"{out}: " + ", ".join(f"{count:,} {name}" for name, count in said.items()))  # noqa: T201
    if as_json:
        print(json.dumps(said))  # noqa: T201


@app.command()
def bench(
    models: Annotated[list[Path], typer.Argument(metavar="DIR...", parser=_folder, help="Model folders.")],
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each model.")] = 10,
    as_json: JSON = False,
) -> None:
    """Images/s of models in turn, by ONNX Runtime alone on this machine's cores, at batch 1, 8 and 16."""
    speeds = run_bench(models, rounds)
    print_speeds(speeds, Console())
    if as_json:
        print(json.dumps({"models": [asdict(one) for one in speeds]}))  # noqa: T201


@app.command()
def serve(
    source: Annotated[str, typer.Argument(help=SOURCES)],
    port: Annotated[int, typer.Option(help="Port to listen on.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    data: Annotated[Path, typer.Option(help="Fits the head of a backbone.")] = OCTET,
) -> None:
    """A naive torch server, as a baseline: eager fp32, a picture at a time, as the body of `POST /embed`."""
    uvicorn.run(naive_app(*torch_graph(source, data)), host=host, port=port, log_level="warning")


@app.command(name="list")
def list_models() -> None:
    """The models of the zoo and of BentoML's store."""
    from model_export.export.store import stored_models  # BentoML takes seconds to import

    zoo = {folder.name: folder for folder in sorted(ZOO.iterdir())}
    print_models({**zoo, **stored_models()}, Console())


def main() -> None:
    """Errors of ours are one sentence on stderr and exit status 1."""
    try:
        app()
    except (ExportError, BenchmarkError, StartupError) as error:
        typer.echo(f"model_export: {error}", err=True)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
