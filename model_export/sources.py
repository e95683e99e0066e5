"""What `export SOURCE` understands, each made into a `Trained`."""

import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks.dataset import Dataset
from model_export.backbones import Backbone, backbone_named, weights_sha256
from model_export.descriptors import class_counts, train_descriptors
from model_export.errors import SourceError
from model_export.export import export_model
from model_export.graph import descriptor_graph
from model_export.head import fit_pca
from model_export.trained import Trained
from model_export.variants import export_variant
from service.manifest import Manifest, Precision

DIM = 64


def export_source(source: str, precision: Precision, data: Dataset, out: Path, console: Console) -> Manifest:
    """`source` as a model folder `out`; a variant of what is not exported yet goes by way of fp32.

    Raises SourceError, ParityError, WriteError or ManifestError.
    """
    is_folder = (Path(source) / "manifest.json").exists()
    if precision == "fp32":
        if is_folder:
            raise SourceError(f"{source} is exported already: --precision fp16 or int8 makes a variant of it")
        return export_model(trained_from(source, data), data, out)
    if is_folder:
        return export_variant(Path(source), precision, data, out, console)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / out.name
        export_model(trained_from(source, data), data, base)
        return export_variant(base, precision, data, out, console)


def trained_from(source: str, data: Dataset) -> Trained:
    """A backbone's name: the frozen network with a PCA head. Raises SourceError."""
    return off_the_shelf(backbone_named(source), data)


def off_the_shelf(row: Backbone, data: Dataset) -> Trained:
    """PCA to 64 dimensions on the training images of all domains."""
    descriptor = descriptor_graph(row)
    return Trained(
        descriptor=descriptor,
        head=fit_pca(train_descriptors(descriptor, data, row.preprocessing), DIM),
        preprocessing=row.preprocessing,
        mean=row.mean,
        std=row.std,
        strategy=f"frozen backbone, PCA to {DIM} over all domains, equally weighted",
        domains=class_counts(data),
        data_fingerprint=data.fingerprint,
        source=row.source,
        source_sha256=weights_sha256(row),
        licence=row.licence,
    )
