"""Descriptors on disk: in order, whole, of one model, and enough for `score`."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.datasets.dataset import Dataset
from benchmarks.scoring.evaluation import Vectors, score_vectors
from model_export.descriptors.images import missing_images, read_pixels
from model_export.descriptors.splits import Embedded, embed_splits
from model_export.errors import SourceError
from model_export.export.fp32 import export_model
from service.inference.encoder import Encoder
from service.manifest import load_manifest
from tests.support.pictures import encode, noise
from tests.support.tiny import DIM, tiny_data, tiny_trained

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two fp32 models, `conv` and `vit`."""
    folder = tmp_path_factory.mktemp("models")
    for kind in ("conv", "vit"):
        export_model(tiny_trained(kind), None, folder / kind)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    """That a test may spoil."""
    return tiny_data(tmp_path / "data")


def encoder_of(folder: Path) -> Encoder:
    return Encoder(folder, load_manifest(folder), "cpu", 1)


def vectors(data: Dataset, out: Path, domain: str, split: str) -> Vectors:
    return Vectors(data.records(domain, split), np.load(out / domain / f"{split}.npy"))


def test_rows_are_the_info_files_and_score_has_what_it_needs(
    models: Path, data: Dataset, tmp_path: Path
) -> None:
    out, encoder = tmp_path / "vectors", encoder_of(models / "conv")
    assert embed_splits(encoder, data, "test", out, False, QUIET) == Embedded(38, 0, 0)
    files = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert files == {"embed.json", "animals/test.npy", "animals/index.npy", "plants/test.npy"}
    found = vectors(data, out, "animals", "index")
    assert found.rows.dtype == np.float32
    assert found.rows.shape == (20, DIM)
    for record, row in zip(found.records, found.rows, strict=True):
        pixels = read_pixels(data.image(record), encoder.manifest.preprocessing)
        np.testing.assert_allclose(encoder.encode(pixels[None])[0], row, atol=1e-5)
    scores = score_vectors(
        {domain: vectors(data, out, domain, "test") for domain in data.domains},
        {domain: vectors(data, out, domain, data.gallery_split(domain)) for domain in data.domains},
    )
    assert {domain: one.gallery for domain, one in scores.items()} == {"animals": 20, "plants": 10}


def test_the_gallery_of_val_comes_along(models: Path, data: Dataset, tmp_path: Path) -> None:
    info = data.root / "data" / "info_files" / "plants"
    shutil.copy(info / "train.json", info / "small_index.json")
    embed_splits(encoder_of(models / "conv"), data, "val", tmp_path / "out", False, QUIET)
    found = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*.npy")}
    assert found == {"animals/val.npy", "plants/val.npy", "plants/small_index.npy"}


def test_an_interrupted_run_goes_on_where_it_was(
    models: Path, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, encoder = tmp_path / "out", encoder_of(models / "conv")
    encode, calls = encoder.encode, 0

    def interrupted(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        nonlocal calls
        calls += 1
        if calls == 2:  # animals/test is one batch, plants/test the next
            raise KeyboardInterrupt
        return encode(pixels)

    monkeypatch.setattr(encoder, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embed_splits(encoder, data, "test", out, False, QUIET)
    assert {file.name for file in out.rglob("*") if file.is_file()} == {"embed.json", "test.npy"}
    monkeypatch.setattr(encoder, "encode", encode)
    assert embed_splits(encoder, data, "test", out, False, QUIET) == Embedded(30, 8, 0)
    assert embed_splits(encoder, data, "test", out, False, QUIET) == Embedded(0, 38, 0)


def test_nothing_of_another_model_or_data_is_kept(models: Path, data: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    embed_splits(encoder_of(models / "conv"), data, "test", out, False, QUIET)
    other = encoder_of(models / "vit")
    assert embed_splits(other, data, "test", out, False, QUIET).kept == 0
    pixels = read_pixels(data.image(data.records("plants", "test")[0]), other.manifest.preprocessing)
    row = vectors(data, out, "plants", "test").rows[0]
    np.testing.assert_allclose(row, other.encode(pixels[None])[0], atol=1e-5)
    data.image(data.records("plants", "test")[0]).write_bytes(encode(noise(99, 48, 40), "PNG"))
    assert embed_splits(other, data, "test", out, False, QUIET) == Embedded(10, 28, 0)
    info = data.root / "data" / "info_files" / "plants" / "test.json"
    info.write_text(json.dumps(json.loads(info.read_text())[::-1]))
    assert embed_splits(other, Dataset(data.root), "test", out, False, QUIET).kept == 0


def test_missing_and_broken_images_are_named_or_zeros(models: Path, data: Dataset, tmp_path: Path) -> None:
    out, encoder = tmp_path / "out", encoder_of(models / "conv")
    gone, broken = (data.image(data.records("plants", "test")[row]) for row in (3, 5))
    gone.unlink()
    assert missing_images(data, [("plants", "test"), ("animals", "index")]) == [gone]
    with pytest.raises(SourceError, match=rf"1 images .* not there: {gone}"):
        embed_splits(encoder, data, "test", out, False, QUIET)
    assert not out.exists()
    broken.write_bytes(broken.read_bytes()[:100])
    assert embed_splits(encoder, data, "test", out, True, QUIET) == Embedded(38, 0, 2)
    rows = vectors(data, out, "plants", "test")
    assert np.flatnonzero(~rows.rows.any(axis=1)).tolist() == [3, 5]
    assert score_vectors({"plants": rows}, {"plants": rows})["plants"].failed == 2
    # What was missing may be there the next time: that file is made again, the others are kept.
    assert embed_splits(encoder, data, "test", out, True, QUIET) == Embedded(10, 28, 2)
