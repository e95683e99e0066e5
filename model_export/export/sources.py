"""Sources of `export`: a training run, a backbone, or a model folder."""

import tempfile
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from torch import nn

from benchmarks.datasets.dataset import Dataset
from model_export.descriptors.images import class_counts, require_images, require_training_images
from model_export.errors import SourceError
from model_export.export.fp32 import export_model
from model_export.export.variants import export_decoded, export_variant, require_variant_images
from model_export.networks.backbones import Backbone, backbone_named, weights_sha256, weights_source
from model_export.networks.graph import Trained, descriptor_graph
from model_export.networks.head import DIM, HeadKind, LinearHead, fit_pca, identity
from model_export.training.cache import describe_split
from model_export.training.run_folder import RunFolder
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
    """Export `source` to the model folder `out`, with a temporary fp32 base if a variant needs one.

    Raises SourceError, ParityError, WriteError or ManifestError.
    """
    is_folder = (Path(source) / "manifest.json").exists()
    if head and (is_folder or _is_run(source)):
        raise SourceError(f"{source} already has a head; --head is for a backbone")
    if precision == "fp32" and is_folder and not jpeg:
        raise SourceError(f"{source} is already exported; use --precision fp16 or int8 for a variant")

    def export_base(base: Path) -> Manifest:
        if is_folder and jpeg:
            return export_decoded(Path(source), jpeg, base)
        trained = trained_from(source, data, head or "pca")
        preprocessing = trained.preprocessing.model_copy(update={"jpeg": jpeg or trained.preprocessing.jpeg})
        return export_model(replace(trained, preprocessing=preprocessing), data, base)

    if precision == "fp32":
        return export_base(out)
    if is_folder and not jpeg:
        return export_variant(Path(source), precision, data, out, console)
    require_variant_images(data)  # fails before minutes are spent on the base
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / out.name
        export_base(base)
        return export_variant(base, precision, data, out, console)


def _is_run(source: str) -> bool:
    return (Path(source) / "config.json").exists()


def trained_from(source: str, data: Dataset, head: HeadKind) -> Trained:
    """Load a run folder of `train`, or a backbone by name with this head. Raises SourceError."""
    if _is_run(source):
        return from_run(RunFolder(Path(source)), data)
    return off_the_shelf(backbone_named(source), data, head)


def off_the_shelf(row: Backbone, data: Dataset, kind: HeadKind) -> Trained:
    """Combine a backbone with a PCA of the training images of all domains, or with the identity."""
    require_training_images(data, data.domains)
    require_images(data, [(domain, "train") for domain in data.domains])
    descriptor = descriptor_graph(row)
    if kind == "raw":
        head, domains = identity(row.descriptor_dim), {}
    else:
        train = {domain: describe_split(descriptor, row, data, domain, "train") for domain in data.domains}
        head, domains = fit_pca(train, DIM, whiten=kind == "whitened"), class_counts(data)
    return _trained(row, "pretrained", descriptor, head, OFF_THE_SHELF[kind], domains, data)


def from_run(run: RunFolder, data: Dataset) -> Trained:
    """Load the best checkpoint of a run. Raises TrainingError, or SourceError for other data than its own."""
    config, data_fingerprint = run.strategy()
    best = run.best()
    if data_fingerprint != data.fingerprint:
        raise SourceError(f"{run.path} was trained on other data than {data.root}")
    row = backbone_named(config.backbone)
    descriptor = descriptor_graph(row, config.weights)
    if best.descriptor is not None:
        descriptor.load_state_dict(best.descriptor)
    counts = class_counts(data)
    domains = {domain: counts[domain] for domain in config.domains or data.domains}
    strategy = config.sentence
    if best.epoch is not None:
        stage = f"stage {best.stage + 1} of {len(config.stages)}"
        strategy += f"; best after epoch {best.epoch:.3g} of {stage}"
    return _trained(row, config.weights, descriptor, best.head, strategy, domains, data)


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
