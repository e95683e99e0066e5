"""The shipped model passes its checks, and ONNX Runtime reproduces torch."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from huggingface_hub import constants as hub
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from benchmarks.datasets.dataset import Dataset
from benchmarks.scoring.evaluation import unit as unit_rows
from model_export.baseline.server import torch_graph
from model_export.descriptors.images import class_counts, describe
from model_export.errors import ParityError, SourceError, WriteError
from model_export.export.canonical import canonical_image, generated_pixels, load_parity, parity_pixels
from model_export.export.fp32 import MIN_COSINE, check_parity, export_model
from model_export.export.sources import OFF_THE_SHELF, export_source
from model_export.inspection.verify import verify
from model_export.networks.backbones import backbone_named, weights_sha256
from model_export.networks.graph import EmbeddingGraph, descriptor_graph
from model_export.networks.head import HeadKind, LinearHead, fit_pca
from model_export.paper_table.systems import STRATEGIES
from model_export.training.cache import describe_split
from model_export.training.config import load_strategy
from service.manifest import Manifest, Precision, load_manifest
from tests.support.images import unit
from tests.support.tiny import PX, tiny_data, tiny_trained

ROW = backbone_named("efficientnet-lite0")
QUIET = Console(quiet=True)
Pixels = NDArray[np.uint8]  # (N, H, W, 3)
Rows = NDArray[np.float32]  # (N, D)


def embeddings_of(folder: Path, pixels: Pixels) -> Rows:
    session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["embedding"], {"pixels": pixels})[0])


def test_shipped_model_passes_its_checks(zoo_model: Path, octet: Dataset) -> None:
    """Its training is not repeated; its embeddings are compared with torch's on real photos."""
    shipped = load_manifest(zoo_model)
    assert shipped.strategy.startswith(load_strategy(STRATEGIES / "multi-stage.toml").sentence)
    assert shipped.data_fingerprint == octet.fingerprint
    assert shipped.domains == class_counts(octet)
    assert shipped.source_sha256 == weights_sha256(ROW)
    checks = verify(zoo_model, octet, max_loss=0.5)
    assert all(check.status == "passed" for check in checks), checks


@pytest.fixture(scope="module")
def described(tiny_set: Dataset) -> tuple[dict[str, Rows], Rows, Pixels]:
    """The backbone's descriptors of the training images by domain and of the parity photos; the photos."""
    descriptor = descriptor_graph(ROW)
    train = {
        domain: describe_split(descriptor, ROW, tiny_set, domain, "train") for domain in tiny_set.domains
    }
    photos = parity_pixels(tiny_set, ROW.preprocessing)
    return train, describe(descriptor, photos), photos


@pytest.mark.parametrize("kind", ["pca", "whitened", "raw"])
def test_off_the_shelf_is_the_frozen_backbone_with_a_head(
    described: tuple[dict[str, Rows], Rows, Pixels], tiny_set: Dataset, tmp_path: Path, kind: HeadKind
) -> None:
    manifest = export_source(ROW.name, "fp32", tiny_set, tmp_path / "model", QUIET, kind)
    assert manifest.domains == ({} if kind == "raw" else {"animals": 3, "plants": 3})
    assert manifest.strategy == OFF_THE_SHELF[kind]
    assert manifest.dim == (1280 if kind == "raw" else 64)
    train, descriptors, photos = described
    head = unit_rows if kind == "raw" else fit_pca(train, 64, whiten=kind == "whitened")
    expected = head(descriptors)
    assert (embeddings_of(tmp_path / "model", photos) * expected).sum(axis=1).min() > MIN_COSINE
    # The network rebuilt from ONNX also has batch norms, as the original does.
    rebuilt, preprocessing = torch_graph(str(tmp_path / "model"), tiny_set.root)
    assert preprocessing == ROW.preprocessing
    assert (describe(rebuilt, photos) * expected).sum(axis=1).min() > MIN_COSINE
    if kind == "pca":
        original, _ = torch_graph(ROW.name, tiny_set.root)
        assert [type(module) for module in rebuilt.modules()] == [
            type(module) for module in original.modules()
        ]
        assert (describe(original, photos) * expected).sum(axis=1).min() > MIN_COSINE


def test_parity_on_real_photos(octet: Dataset, zoo_model: Path) -> None:
    """Batched embeddings are those of single images."""
    photos = parity_pixels(octet, ROW.preprocessing)
    assert photos.shape == (16, 224, 224, 3)
    batched = embeddings_of(zoo_model, photos)
    np.testing.assert_allclose(np.linalg.norm(batched, axis=1), 1, atol=1e-6)
    singles = np.concatenate([embeddings_of(zoo_model, photos[n : n + 1]) for n in range(len(photos))])
    np.testing.assert_allclose(batched, singles, atol=2e-6)


def test_wrong_export_is_detected(octet: Dataset, zoo_model: Path) -> None:
    other = LinearHead(np.eye(64, 1280, dtype=np.float32), np.zeros(64, dtype=np.float32))
    graph = EmbeddingGraph(descriptor_graph(ROW), other)
    photos = parity_pixels(octet, ROW.preprocessing)[:2]
    with pytest.raises(ParityError, match=str(MIN_COSINE)):
        check_parity(describe(graph, photos), zoo_model / "model.onnx", photos)


def test_parity_json_has_torchs_embeddings_of_real_photos(zoo_model: Path, octet: Dataset) -> None:
    shipped = load_parity(zoo_model)
    assert shipped
    assert {Path(photo.path).parts[0] for photo in shipped.photos} >= set(octet.domains)
    photos = parity_pixels(octet, ROW.preprocessing)
    expected = np.array([photo.embedding for photo in shipped.photos], dtype=np.float32)
    assert (embeddings_of(zoo_model, photos) * expected).sum(axis=1).min() > MIN_COSINE


class TracedDifferently(nn.Module):
    """A network whose exported graph differs from its result in torch."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.network(pixels)
        return rows if torch.compiler.is_exporting() else rows.flip(1)


@pytest.mark.parametrize("failure", ["parity", "canonical.json", "manifest.json"])
def test_failed_export_leaves_the_folder_unchanged(
    tiny_models: Path, tmp_path: Path, full_disk: Callable[[str], None], failure: str
) -> None:
    out = Path(shutil.copytree(tiny_models / "conv", tmp_path / "model"))
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    trained = tiny_trained("conv")
    if failure == "parity":
        trained = replace(trained, descriptor=TracedDifferently(trained.descriptor))
    else:
        full_disk(failure)
    for target in (out, tmp_path / "new"):
        with pytest.raises((ParityError, WriteError), match=r"disagree|No space left"):
            export_model(trained, None, target)
    assert [folder.name for folder in tmp_path.iterdir()] == ["model"]
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_without_data_parity_is_checked_on_generated_images(tmp_path: Path) -> None:
    export_model(tiny_trained("conv"), None, tmp_path / "model")
    assert load_parity(tmp_path / "model") is None
    images = generated_pixels(64, PX)
    assert len(np.unique(images.reshape(64, -1), axis=0)) == 64
    trained = tiny_trained("conv")
    expected = describe(EmbeddingGraph(trained.descriptor, trained.head), images)
    np.testing.assert_allclose(embeddings_of(tmp_path / "model", images), expected, atol=1e-5)


def test_folder_that_is_not_a_model_is_left_unchanged(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("dear diary")
    with pytest.raises(SourceError, match="left unchanged"):
        export_model(tiny_trained("conv"), None, tmp_path)
    assert (tmp_path / "diary.txt").exists()


def test_invalid_sources_are_refused(tiny_models: Path, tiny_set: Dataset, tmp_path: Path) -> None:
    model = str(tiny_models / "conv")
    with pytest.raises(SourceError, match="already exported"):
        export_source(model, "fp32", tiny_set, tmp_path / "again", QUIET)
    with pytest.raises(SourceError, match="already has a head"):
        export_source(model, "int8", tiny_set, tmp_path / "again", QUIET, "whitened")
    with pytest.raises(SourceError, match="'resnet-9000' is neither"):
        export_source("resnet-9000", "int8", tiny_set, tmp_path / "again", QUIET)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_missing_images_and_empty_domains_are_errors_before_weights_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    data = tiny_data(tmp_path / "data")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "empty"))

    def export(dataset: Dataset) -> None:
        export_source("clip-vit-b16", precision, dataset, tmp_path / "model", QUIET)  # no weights here

    missing = [data.image(record) for record in data.records("plants", "train")[:2]]
    for file in missing:
        file.unlink()
    with pytest.raises(SourceError, match=f"missing: {missing[0]}, {missing[1]}"):
        export(data)
    for domain in data.domains:
        for record in data.records(domain, "train"):
            data.image(record).unlink(missing_ok=True)
    with pytest.raises(SourceError, match=r"21 images of .*, the first 20: "):
        export(data)
    with pytest.raises(SourceError, match="no training images in animals, plants"):
        export(Dataset(data.root, present_only=True))


def test_model_is_exported_without_any_images(tmp_path: Path) -> None:
    data = tiny_data(tmp_path / "data")
    for file in (data.root / "data" / "images").rglob("*.png"):
        file.unlink()
    manifest = export_model(tiny_trained("conv"), Dataset(data.root, present_only=True), tmp_path / "model")
    assert load_parity(tmp_path / "model") is None
    assert manifest == load_manifest(tmp_path / "model")


def test_onnx_metadata_is_the_manifest(zoo_model: Path) -> None:
    manifest = load_manifest(zoo_model)
    metadata = {entry.key: entry.value for entry in onnx.load(zoo_model / "model.onnx").metadata_props}
    expected = json.loads(manifest.model_dump_json(exclude_none=True))
    # A file cannot contain its hashes; the other fields would change them at every export (decision 10).
    left_out = {"schema_version", "onnx_sha256", "fingerprint", "exported", "tools"}
    assert metadata.keys() == expected.keys() - left_out
    for key, value in metadata.items():
        assert (value if isinstance(expected[key], str) else json.loads(value)) == expected[key]


def test_graph_contains_no_local_paths(zoo_model: Path) -> None:
    model = onnx.load(zoo_model / "model.onnx")
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param  # the batch is dynamic
    raw = (zoo_model / "model.onnx").read_bytes()
    assert b"site-packages" not in raw
    assert str(Path.home()).encode() not in raw
    assert str(Path(__file__).parents[2]).encode() not in raw


def test_graph_includes_the_normalisation() -> None:
    """The result is that of the backbone on floats that are normalised per channel."""
    pixels = np.asarray(canonical_image().crop((0, 0, 224, 224)))[None]
    graph = descriptor_graph(ROW)
    floats = (torch.tensor(pixels).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.inference_mode():
        assert torch.equal(graph(torch.tensor(pixels)), graph[1](floats))  # type: ignore[index]


def test_pca_finds_the_axes_of_largest_variance_with_equal_domains() -> None:
    """The data vary in two of four dimensions; the reference is NumPy's SVD."""
    rng = np.random.default_rng(0)
    big = unit(rng.normal(size=(4000, 4)) * [3, 1, 0.1, 0.1] + [0, 0, 5, 0])
    small = unit(rng.normal(size=(40, 4)) * [1, 3, 0.1, 0.1] + [0, 0, 5, 0])
    head = fit_pca({"big": big, "small": small}, 2)
    mean = (big.mean(axis=0) + small.mean(axis=0)) / 2
    weighted = np.concatenate([(big - mean) / np.sqrt(4000), (small - mean) / np.sqrt(40)])
    _, _, axes = np.linalg.svd(weighted.astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(np.abs(head.weight @ axes[:2].T), np.eye(2), atol=1e-5)
    np.testing.assert_allclose(head.bias, -head.weight @ mean, atol=1e-6)
    assert (head.weight[np.arange(2), np.abs(head.weight).argmax(axis=1)] > 0).all()


def test_whitening_equalises_axes_but_not_those_without_variance() -> None:
    rng = np.random.default_rng(0)
    rows = unit(rng.normal(size=(500, 6)) * [5, 3, 2, 1, 0.5, 0.2] + [0, 0, 0, 0, 0, 9])
    head = fit_pca({"one": rows}, 4, whiten=True)
    widths = (rows @ head.weight.T + head.bias).std(axis=0)
    np.testing.assert_allclose(widths, widths[0], rtol=1e-3)
    few = fit_pca({"one": rows[:3]}, 5, whiten=True)  # three images span two axes
    unseen = rows[3:] @ few.weight.T + few.bias
    assert np.linalg.norm(few.weight, axis=1).max() == pytest.approx(20, rel=1e-3)  # 1 / 0.05
    assert np.isfinite(unseen).all()


def test_weights_are_those_of_the_manifest(manifest: Manifest) -> None:
    assert weights_sha256(ROW) == manifest.source_sha256
    with pytest.raises(SourceError, match="backbone"):
        backbone_named("resnet-9000")
