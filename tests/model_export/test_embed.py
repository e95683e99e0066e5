"""Descriptors on disk: in order, complete, of a single model, and sufficient for `score`."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.datasets.dataset import Dataset
from benchmarks.scoring.evaluation import Vectors, score_vectors
from model_export.descriptors.images import read_pixels, require_images
from model_export.descriptors.splits import EmbedCounts, embed_splits
from model_export.errors import SourceError
from service.inference.encoder import Encoder
from service.manifest import load_manifest
from tests.support.images import encode, noise
from tests.support.tiny import DIM, tiny_data

QUIET = Console(quiet=True)


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    """A data set for tests to damage."""
    return tiny_data(tmp_path / "data")


def encoder_of(folder: Path) -> Encoder:
    return Encoder(folder, load_manifest(folder), "cpu", 1)


def vectors(data: Dataset, out: Path, domain: str, split: str) -> Vectors:
    return Vectors(data.records(domain, split), np.load(out / domain / f"{split}.npy"))


def test_rows_are_in_the_info_files_order_and_sufficient_for_scores(
    tiny_models: Path, data: Dataset, tmp_path: Path
) -> None:
    out, encoder = tmp_path / "vectors", encoder_of(tiny_models / "conv")
    assert embed_splits(encoder, data, "test", out, False, QUIET) == EmbedCounts(38, 0, 0)
    files = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert files == {"embed.json", "animals/test.npy", "animals/index.npy", "plants/test.npy"}
    index = vectors(data, out, "animals", "index")
    assert index.rows.dtype == np.float32
    assert index.rows.shape == (20, DIM)
    for record, row in zip(index.records, index.rows, strict=True):
        pixels = read_pixels(data.image(record), encoder.manifest.preprocessing)
        np.testing.assert_allclose(encoder.encode(pixels[None])[0], row, atol=1e-5)
    scores = score_vectors(
        {domain: vectors(data, out, domain, "test") for domain in data.domains},
        {domain: vectors(data, out, domain, data.gallery_split(domain)) for domain in data.domains},
    )
    assert {domain: score.gallery for domain, score in scores.items()} == {"animals": 20, "plants": 10}


def test_gallery_of_val_is_embedded_too(tiny_models: Path, data: Dataset, tmp_path: Path) -> None:
    info = data.root / "data" / "info_files" / "plants"
    shutil.copy(info / "train.json", info / "small_index.json")
    embed_splits(encoder_of(tiny_models / "conv"), data, "val", tmp_path / "out", False, QUIET)
    files = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*.npy")}
    assert files == {"animals/val.npy", "plants/val.npy", "plants/small_index.npy"}


class Interrupted(Encoder):
    """Raises KeyboardInterrupt at the second batch: animals/test is the first, plants/test the second."""

    calls = 0

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.calls += 1
        if self.calls == 2:
            raise KeyboardInterrupt
        return super().encode(pixels)


def test_interrupted_run_resumes(tiny_models: Path, data: Dataset, tmp_path: Path) -> None:
    out, encoder = tmp_path / "out", encoder_of(tiny_models / "conv")
    interrupted = Interrupted(tiny_models / "conv", encoder.manifest, "cpu", 1)
    with pytest.raises(KeyboardInterrupt):
        embed_splits(interrupted, data, "test", out, False, QUIET)
    assert {file.name for file in out.rglob("*") if file.is_file()} == {"embed.json", "test.npy"}
    assert embed_splits(encoder, data, "test", out, False, QUIET) == EmbedCounts(30, 8, 0)
    assert embed_splits(encoder, data, "test", out, False, QUIET) == EmbedCounts(0, 38, 0)


def test_other_models_and_data_are_embedded_again(tiny_models: Path, data: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    embed_splits(encoder_of(tiny_models / "conv"), data, "test", out, False, QUIET)
    other = encoder_of(tiny_models / "vit")
    assert embed_splits(other, data, "test", out, False, QUIET).kept == 0
    pixels = read_pixels(data.image(data.records("plants", "test")[0]), other.manifest.preprocessing)
    row = vectors(data, out, "plants", "test").rows[0]
    np.testing.assert_allclose(row, other.encode(pixels[None])[0], atol=1e-5)
    data.image(data.records("plants", "test")[0]).write_bytes(encode(noise(99, 48, 40), "PNG"))
    assert embed_splits(other, data, "test", out, False, QUIET) == EmbedCounts(10, 28, 0)
    info = data.root / "data" / "info_files" / "plants" / "test.json"
    info.write_text(json.dumps(json.loads(info.read_text())[::-1]))
    assert embed_splits(other, Dataset(data.root), "test", out, False, QUIET).kept == 0


def test_missing_and_broken_images_are_errors_or_zeros(
    tiny_models: Path, data: Dataset, tmp_path: Path
) -> None:
    out, encoder = tmp_path / "out", encoder_of(tiny_models / "conv")
    missing, broken = (data.image(data.records("plants", "test")[row]) for row in (3, 5))
    missing.unlink()
    with pytest.raises(SourceError, match=f"1 images .* missing: {missing}$"):
        require_images(data, [("plants", "test"), ("animals", "index"), ("plants", "test")])
    with pytest.raises(SourceError, match=f"1 images .* missing: {missing}"):
        embed_splits(encoder, data, "test", out, False, QUIET)
    assert not out.exists()
    broken.write_bytes(broken.read_bytes()[:100])
    assert embed_splits(encoder, data, "test", out, True, QUIET) == EmbedCounts(38, 0, 2)
    rows = vectors(data, out, "plants", "test")
    assert np.flatnonzero(~rows.rows.any(axis=1)).tolist() == [3, 5]
    assert score_vectors({"plants": rows}, {"plants": rows})["plants"].failed == 2
    # A missing image may exist the next time, so the file with zeros is not kept.
    assert embed_splits(encoder, data, "test", out, True, QUIET) == EmbedCounts(10, 28, 2)
