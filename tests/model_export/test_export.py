"""What ships is what the code makes, and ONNX Runtime does what torch does."""

import errno
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from rich.console import Console

from benchmarks.datasets.dataset import Dataset
from benchmarks.scoring.evaluation import unit as unit_rows
from model_export import export as exporting
from model_export.baseline.server import torch_graph
from model_export.descriptors.images import class_counts, describe, read_pixels
from model_export.errors import ParityError, SourceError, WriteError
from model_export.export.canonical import canonical_picture, drawn_pixels, load_parity, parity_pixels
from model_export.export.fp32 import MIN_COSINE, check_parity, export_model
from model_export.export.sources import OFF_THE_SHELF, export_source
from model_export.inspection.verify import verify
from model_export.networks.backbones import backbone_named, weights_sha256
from model_export.networks.graph import EmbeddingGraph, descriptor_graph
from model_export.networks.head import HeadKind, LinearHead, fit_pca
from model_export.paper_table.systems import STRATEGIES
from model_export.training.config import load_strategy
from service.manifest import Manifest, Precision, load_manifest
from tests.support.pictures import unit
from tests.support.tiny import PX, tiny_data, tiny_trained

ROW = backbone_named("efficientnet-lite0")


def embeddings_of(
    folder: Path, pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]"
) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["embedding"], {"pixels": pixels})[0])


def test_what_ships_says_what_it_is_and_passes_its_checks(zoo_model: Path, octet: Dataset) -> None:
    """Training it again takes long; that torch gave these embeddings is checked on real photos."""
    shipped = load_manifest(zoo_model)
    assert shipped.strategy.startswith(load_strategy(STRATEGIES / "multi-stage.toml").sentence)
    assert shipped.data_fingerprint == octet.fingerprint
    assert shipped.domains == class_counts(octet)
    assert shipped.source_sha256 == weights_sha256(ROW)
    checks = verify(zoo_model, octet, max_loss=0.5)
    assert all(check.status == "passed" for check in checks), checks


@pytest.mark.parametrize("kind", ["pca", "whitened", "raw"])
def test_off_the_shelf_is_the_frozen_backbone_with_a_head(tmp_path: Path, kind: HeadKind) -> None:
    data = tiny_data(tmp_path / "data")
    manifest = export_source(ROW.name, "fp32", data, tmp_path / "model", Console(quiet=True), kind)
    assert manifest.domains == ({} if kind == "raw" else {"animals": 3, "plants": 3})
    assert manifest.strategy == OFF_THE_SHELF[kind]
    assert manifest.dim == (1280 if kind == "raw" else 64)
    descriptor = descriptor_graph(ROW)
    files = {domain: [data.image(one) for one in data.records(domain, "train")] for domain in data.domains}
    pixels = {
        domain: np.stack([read_pixels(file, ROW.preprocessing) for file in of])
        for domain, of in files.items()
    }
    train = {domain: describe(descriptor, of) for domain, of in pixels.items()}
    photos = parity_pixels(data, ROW.preprocessing)
    head = unit_rows if kind == "raw" else fit_pca(train, 64, whiten=kind == "whitened")
    wanted = head(describe(descriptor, photos))
    assert (embeddings_of(tmp_path / "model", photos) * wanted).sum(axis=1).min() > MIN_COSINE
    # Back in torch it is what it was, the batch norms too: one network still has them as they were trained.
    back, how = torch_graph(str(tmp_path / "model"), data.root)
    assert how == ROW.preprocessing
    assert (describe(back, photos) * wanted).sum(axis=1).min() > MIN_COSINE
    if kind == "pca":
        before, _ = torch_graph(ROW.name, data.root)
        assert [type(one) for one in back.modules()] == [type(one) for one in before.modules()]
        assert (describe(before, photos) * wanted).sum(axis=1).min() > MIN_COSINE


def test_parity_on_real_photos(octet: Dataset, zoo_model: Path) -> None:
    """Batched == single."""
    photos = parity_pixels(octet, ROW.preprocessing)
    assert photos.shape == (16, 224, 224, 3)
    ours = embeddings_of(zoo_model, photos)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)
    singles = np.concatenate([embeddings_of(zoo_model, photos[n : n + 1]) for n in range(len(photos))])
    np.testing.assert_allclose(ours, singles, atol=2e-6)


def test_a_wrong_export_is_noticed(octet: Dataset, zoo_model: Path) -> None:
    other = LinearHead(np.eye(64, 1280, dtype=np.float32), np.zeros(64, dtype=np.float32))
    graph = EmbeddingGraph(descriptor_graph(ROW), other)
    photos = parity_pixels(octet, ROW.preprocessing)[:2]
    with pytest.raises(ParityError, match=str(MIN_COSINE)):
        check_parity(describe(graph, photos), zoo_model / "model.onnx", photos)


def test_parity_json_holds_torchs_embeddings_of_real_photos(zoo_model: Path, octet: Dataset) -> None:
    shipped = load_parity(zoo_model)
    assert shipped
    assert {Path(one.path).parts[0] for one in shipped.photos} >= set(octet.domains)
    photos = parity_pixels(octet, ROW.preprocessing)
    wanted = np.array([one.embedding for one in shipped.photos], dtype=np.float32)
    assert (embeddings_of(zoo_model, photos) * wanted).sum(axis=1).min() > MIN_COSINE


def no_parity(*_: object) -> float:
    raise ParityError("torch and ONNX Runtime disagree")


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("broken", "error", "said"),
    [
        ("check_parity", no_parity, "disagree"),
        ("write_canonical", full_disk, "No space left"),
        ("write_manifest", full_disk, "No space left"),
    ],
)
def test_a_failed_export_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, error: object, said: str
) -> None:
    out = tmp_path / "model"
    export_model(tiny_trained("conv"), None, out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    monkeypatch.setattr(exporting, broken, error)
    for target in (out, tmp_path / "new"):
        with pytest.raises((ParityError, WriteError), match=said):
            export_model(tiny_trained("vit"), None, target)
    assert [one.name for one in tmp_path.iterdir()] == ["model"]
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_without_data_the_parity_is_checked_on_drawn_pictures(tmp_path: Path) -> None:
    export_model(tiny_trained("conv"), None, tmp_path / "model")
    assert load_parity(tmp_path / "model") is None
    drawn = drawn_pixels(64, PX)
    assert len(np.unique(drawn.reshape(64, -1), axis=0)) == 64
    trained = tiny_trained("conv")
    wanted = describe(EmbeddingGraph(trained.descriptor, trained.head), drawn)
    np.testing.assert_allclose(embeddings_of(tmp_path / "model", drawn), wanted, atol=1e-5)


def test_a_folder_that_is_no_model_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("dear diary")
    with pytest.raises(SourceError, match="left alone"):
        export_model(tiny_trained("conv"), None, tmp_path)
    assert (tmp_path / "diary.txt").exists()


def test_what_cannot_be_exported_is_said(tmp_path: Path) -> None:
    data = tiny_data(tmp_path / "data")
    export_model(tiny_trained("conv"), data, tmp_path / "model")
    with pytest.raises(SourceError, match="exported already"):
        export_source(str(tmp_path / "model"), "fp32", data, tmp_path / "again", Console(quiet=True))
    with pytest.raises(SourceError, match="has a head of its own"):
        export_source(
            str(tmp_path / "model"), "int8", data, tmp_path / "again", Console(quiet=True), "whitened"
        )
    with pytest.raises(SourceError, match="'resnet-9000' is no folder of a run, and no backbone"):
        export_source("resnet-9000", "int8", data, tmp_path / "again", Console(quiet=True))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_missing_images_and_empty_domains_are_said_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    data = tiny_data(tmp_path / "data")
    monkeypatch.setattr("model_export.export.sources.descriptor_graph", None)  # would be called

    def export(of: Dataset) -> None:
        export_source(ROW.name, precision, of, tmp_path / "model", Console(quiet=True))

    gone = [data.image(one) for one in data.records("plants", "train")[:2]]
    for file in gone:
        file.unlink()
    with pytest.raises(SourceError, match=f"2 images of .* are not there: {gone[0]}, {gone[1]}"):
        export(data)
    for domain in data.domains:
        for one in data.records(domain, "train"):
            data.image(one).unlink(missing_ok=True)
    with pytest.raises(SourceError, match=r"21 images of .*, the first 20: "):
        export(data)
    with pytest.raises(SourceError, match="no training images in animals, plants"):
        export(Dataset(data.root, present_only=True))
    card = export_model(tiny_trained("conv"), Dataset(data.root, present_only=True), tmp_path / "model")
    assert load_parity(tmp_path / "model") is None
    assert card == load_manifest(tmp_path / "model")


def test_the_file_says_what_it_is(zoo_model: Path) -> None:
    manifest = load_manifest(zoo_model)
    said = {one.key: one.value for one in onnx.load(zoo_model / "model.onnx").metadata_props}
    wanted = json.loads(manifest.model_dump_json(exclude_none=True))
    # Hashes of the file itself cannot be in it; the rest would change them at every export (decision 10).
    left_out = {"schema_version", "onnx_sha256", "fingerprint", "exported", "tools"}
    assert said.keys() == wanted.keys() - left_out
    for key, value in said.items():
        assert (value if isinstance(wanted[key], str) else json.loads(value)) == wanted[key]


def test_the_graph_says_where_it_was_made_nowhere(zoo_model: Path) -> None:
    model = onnx.load(zoo_model / "model.onnx")
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param  # the batch is dynamic
    raw = (zoo_model / "model.onnx").read_bytes()
    assert b"site-packages" not in raw
    assert str(Path.home()).encode() not in raw
    assert str(Path(__file__).parents[2]).encode() not in raw


def test_the_graph_normalises_by_itself() -> None:
    """Against the backbone called by hand on normalised floats: the same numbers, each channel by its own."""
    pixels = np.asarray(canonical_picture().crop((0, 0, 224, 224)))[None]
    graph = descriptor_graph(ROW)
    floats = (torch.tensor(pixels).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.inference_mode():
        by_hand = graph[1](floats)  # type: ignore[index]
        assert torch.equal(graph(torch.tensor(pixels)), by_hand)


def test_pca_finds_the_axes_of_largest_variance_with_equal_domains() -> None:
    """On a circle in two of four dimensions, the other two are noise; against numpy's SVD."""
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


def test_whitening_makes_every_axis_as_wide_and_leaves_what_has_no_width() -> None:
    rng = np.random.default_rng(0)
    rows = unit(rng.normal(size=(500, 6)) * [5, 3, 2, 1, 0.5, 0.2] + [0, 0, 0, 0, 0, 9])
    head = fit_pca({"one": rows}, 4, whiten=True)
    widths = (rows @ head.weight.T + head.bias).std(axis=0)
    np.testing.assert_allclose(widths, widths[0], rtol=1e-3)
    few = fit_pca({"one": rows[:3]}, 5, whiten=True)  # three pictures have two axes
    unseen = rows[3:] @ few.weight.T + few.bias
    assert np.linalg.norm(few.weight, axis=1).max() == pytest.approx(20, rel=1e-3)  # 1 / 0.05
    assert np.isfinite(unseen).all()


def test_the_weights_are_those_of_the_manifest(manifest: Manifest) -> None:
    assert weights_sha256(ROW) == manifest.source_sha256
    with pytest.raises(SourceError, match="no backbone is named"):
        backbone_named("resnet-9000")
