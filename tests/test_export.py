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

from benchmarks.dataset import Dataset
from model_export import export as exporting
from model_export.backbones import backbone_named, weights_sha256
from model_export.canonical import canonical_picture, drawn_pixels, load_parity, parity_pixels
from model_export.descriptors import describe
from model_export.errors import ParityError, SourceError, WriteError
from model_export.export import MIN_COSINE, check_parity, export_model
from model_export.graph import EmbeddingGraph, descriptor_graph
from model_export.head import LinearHead, fit_pca
from model_export.sources import export_source, off_the_shelf
from service.manifest import Manifest, load_manifest
from tests.pictures import unit
from tests.tiny import PX, tiny_data, tiny_trained

ROW = backbone_named("efficientnet-lite0")


@pytest.fixture(scope="module")
def exported(octet: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model, made again from nothing but the weights and the test bed."""
    out = tmp_path_factory.mktemp("zoo") / "again"
    export_model(off_the_shelf(ROW, octet), octet, out)
    return out


def embeddings_of(
    folder: Path, pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]"
) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["embedding"], {"pixels": pixels})[0])


def test_what_ships_is_what_the_code_makes(exported: Path, zoo_model: Path, octet: Dataset) -> None:
    again, shipped = load_manifest(exported), load_manifest(zoo_model)
    differing = {"name", "onnx_sha256", "fingerprint", "exported", "tools"}
    assert again.model_dump(exclude=differing) == shipped.model_dump(exclude=differing)
    assert shipped.data_fingerprint == octet.fingerprint
    photos = parity_pixels(octet, ROW.preprocessing)
    ours, theirs = embeddings_of(exported, photos), embeddings_of(zoo_model, photos)
    assert (ours * theirs).sum(axis=1).min() > 0.99999
    assert (exported / "canonical.png").read_bytes() == (zoo_model / "canonical.png").read_bytes()
    vectors = [
        json.loads((folder / "canonical.json").read_text())["embedding"] for folder in (exported, zoo_model)
    ]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-4)


def test_parity_on_real_photos(octet: Dataset, zoo_model: Path) -> None:
    """Batched == single; against torch, the export itself checks (see `exported`, and the test below)."""
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


def test_parity_json_holds_torchs_embeddings_of_real_photos(
    exported: Path, zoo_model: Path, octet: Dataset
) -> None:
    ours, shipped = load_parity(exported), load_parity(zoo_model)
    assert ours
    assert shipped
    assert [one.path for one in ours.photos] == [one.path for one in shipped.photos]
    assert {Path(one.path).parts[0] for one in ours.photos} >= set(octet.domains)
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
    with pytest.raises(SourceError, match="no backbone is named 'resnet-9000'"):
        export_source("resnet-9000", "int8", data, tmp_path / "again", Console(quiet=True))


def test_the_graph_says_where_it_was_made_nowhere(zoo_model: Path) -> None:
    model = onnx.load(zoo_model / "model.onnx")
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param  # the batch is dynamic
    raw = (zoo_model / "model.onnx").read_bytes()
    assert b"site-packages" not in raw
    assert str(Path.home()).encode() not in raw
    assert str(Path(__file__).parent.parent).encode() not in raw


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


def test_the_weights_are_those_of_the_manifest(manifest: Manifest) -> None:
    assert weights_sha256(ROW) == manifest.source_sha256
    with pytest.raises(SourceError, match="no backbone is named"):
        backbone_named("resnet-9000")
