"""What `export SOURCE` understands, each made into a `Trained`."""

import tempfile
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from torch import nn

from benchmarks.datasets.dataset import Dataset
from model_export.checkpoints.flax import import_checkpoint
from model_export.descriptors.images import class_counts, require_images, require_training_images
from model_export.errors import SourceError, TrainingError
from model_export.export.fp32 import export_model
from model_export.export.variants import export_decoded, export_variant, require_variant_images
from model_export.networks.backbones import Backbone, backbone_named, weights_sha256, weights_source
from model_export.networks.graph import Normalise, descriptor_graph
from model_export.networks.head import DIM, HeadKind, LinearHead, fit_pca, identity
from model_export.networks.trained import Trained
from model_export.training.cache import describe_split
from model_export.training.run_folder import RunFolder, head_of
from service.manifest import Jpeg, Manifest, Precision

OFF_THE_SHELF: dict[HeadKind, str] = {
    "pca": f"frozen backbone, PCA to {DIM} over all domains, equally weighted",
    "whitened": f"frozen backbone, whitened PCA to {DIM} over all domains, equally weighted",
    "raw": "frozen backbone, its own descriptor",
}


def export_source(
    source: str,
    precision: Precision,
    data: Dataset,
    out: Path,
    console: Console,
    head: HeadKind | None = None,
    jpeg: Jpeg | None = None,
) -> Manifest:
    """`source` as a model folder `out`; a variant of what is not exported yet goes by way of fp32.

    Raises SourceError, ParityError, WriteError or ManifestError.
    """
    is_folder = (Path(source) / "manifest.json").exists()
    if head and (is_folder or _is_run(source)):
        raise SourceError(f"{source} has a head of its own: --head is for a backbone")
    if precision == "fp32":
        if is_folder and jpeg:
            return export_decoded(Path(source), jpeg, out)
        if is_folder:
            raise SourceError(f"{source} is exported already: --precision fp16 or int8 makes a variant of it")
        return export_model(_decoding(source, data, head, jpeg), data, out)
    if is_folder and not jpeg:
        return export_variant(Path(source), precision, data, out, console)
    require_variant_images(data)  # before minutes are spent on the base
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / out.name
        if is_folder and jpeg:
            export_decoded(Path(source), jpeg, base)
        else:
            export_model(_decoding(source, data, head, jpeg), data, base)
        return export_variant(base, precision, data, out, console)


def _decoding(source: str, data: Dataset, head: HeadKind | None, jpeg: Jpeg | None) -> Trained:
    trained = trained_from(source, data, head or "pca")
    decoded = trained.preprocessing.model_copy(update={"jpeg": jpeg or trained.preprocessing.jpeg})
    return replace(trained, preprocessing=decoded)


def _is_run(source: str) -> bool:
    return (Path(source) / "config.json").exists()


def trained_from(source: str, data: Dataset, head: HeadKind) -> Trained:
    """A run folder of `train`, or a backbone's name: that network with this head. Raises SourceError."""
    if _is_run(source):
        return from_run(RunFolder(Path(source)), data)
    return off_the_shelf(backbone_named(source), data, head)


def off_the_shelf(row: Backbone, data: Dataset, kind: HeadKind) -> Trained:
    """A PCA to 64 dimensions on the training images of all domains, or the descriptor as it is."""
    require_training_images(data, data.domains)
    require_images(data, [(domain, "train") for domain in data.domains])
    descriptor = descriptor_graph(row)
    if kind == "raw":
        head, domains = identity(row.descriptor_dim), {}
    else:
        images = {domain: describe_split(descriptor, row, data, domain, "train") for domain in data.domains}
        head, domains = fit_pca(images, DIM, whiten=kind == "whitened"), class_counts(data)
    return _trained(row, "pretrained", descriptor, head, OFF_THE_SHELF[kind], domains, data)


def from_run(run: RunFolder, data: Dataset) -> Trained:
    """The best checkpoint of a training. Raises TrainingError, or SourceError for other data than its own."""
    said, data_fingerprint = run.strategy()
    state = run.load("best")
    if state is None:
        raise TrainingError(f"{run.path} has no best.pt yet")
    if data_fingerprint != data.fingerprint:
        raise SourceError(f"{run.path} was trained on other data than {data.root}")
    row = backbone_named(said.backbone)
    descriptor = descriptor_graph(row, said.weights)
    if state["descriptor"] is not None:
        descriptor.load_state_dict(state["descriptor"])
    counts = class_counts(data)
    domains = {domain: counts[domain] for domain in said.domains or data.domains}
    strategy = said.sentence
    if "epoch" in state:  # runs of before did not say
        stage = f"stage {state['stage'] + 1} of {len(said.stages)}"
        strategy += f"; best after epoch {state['epoch']:.3g} of {stage}"
    return _trained(row, said.weights, descriptor, head_of(state["embed"]), strategy, domains, data)


def from_checkpoint(file: Path) -> Trained:
    """A released UnED or UDON checkpoint. Raises SourceError."""
    model = import_checkpoint(file)
    return Trained(
        descriptor=nn.Sequential(Normalise(model.mean, model.std), model.network).eval(),
        head=model.head,
        preprocessing=model.preprocessing,
        mean=model.mean,
        std=model.std,
        strategy=model.strategy,
        domains=model.domains,
        data_fingerprint="not stated in the checkpoint",
        source=model.source,
        source_sha256=model.source_sha256,
        licence=model.licence,
    )


def _trained(
    row: Backbone,
    weights: str,
    descriptor: nn.Module,
    head: LinearHead,
    strategy: str,
    domains: dict[str, int],
    data: Dataset,
) -> Trained:
    return Trained(
        descriptor=descriptor,
        head=head,
        preprocessing=row.preprocessing,
        mean=row.mean,
        std=row.std,
        strategy=strategy,
        domains=domains,
        data_fingerprint=data.fingerprint,
        source=weights_source(row, weights),
        source_sha256=weights_sha256(row, weights),
        licence=row.licence,
    )
