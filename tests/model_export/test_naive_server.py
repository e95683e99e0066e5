"""The naive torch server has the same embeddings as ONNX Runtime, by a network rebuilt from ONNX."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from benchmarks.targets.process import running_module
from model_export.baseline.from_onnx import graph_from_onnx
from model_export.errors import ParityError, SourceError
from model_export.export.fp32 import export_model
from model_export.networks.backbones import BACKBONES
from service.inference.encoder import Encoder
from service.inference.images import decode
from service.manifest import Manifest
from tests.support.images import encode, noise
from tests.support.live import TRUNCATED, embedding_of
from tests.support.tiny import tiny_trained


@pytest.fixture(scope="module")
def naive(tmp_path_factory: pytest.TempPathFactory, zoo_model: Path) -> Iterator[httpx.Client]:
    log = tmp_path_factory.mktemp("naive") / "log"
    module = ("model_export", "serve", str(zoo_model))
    with (
        running_module(log, None, module, {}) as service,
        httpx.Client(base_url=service.url, timeout=60) as client,
    ):
        yield client


def test_embeddings_are_those_of_onnx(naive: httpx.Client, zoo_model: Path, manifest: Manifest) -> None:
    images = [encode(noise(n, 300, 200 + 50 * n), kind) for n, kind in enumerate(("PNG", "JPEG", "WEBP"))]
    images.append((zoo_model / "canonical.png").read_bytes())
    encoder = Encoder(zoo_model, manifest, "cpu", 1)
    for image in images:
        (expected,) = encoder.encode(decode(image, manifest.preprocessing, 10**6)[None])
        actual = embedding_of(naive.post("/embed", content=image))
        assert actual.shape == (64,)
        assert float(actual @ expected) >= 0.99999


def test_broken_image_is_a_400_and_the_next_is_embedded(naive: httpx.Client) -> None:
    assert naive.post("/embed", content=TRUNCATED).status_code == 400
    assert np.linalg.norm(embedding_of(naive.post("/embed", content=encode(noise(1))))) == pytest.approx(1)


def test_models_that_cannot_be_rebuilt(tiny_models: Path, tmp_path: Path, zoo_model: Path) -> None:
    with pytest.raises(SourceError, match="is not a known backbone"):
        graph_from_onnx(tiny_models / "conv")
    tiny = tiny_trained("conv")
    export_model(replace(tiny, source=BACKBONES["efficientnet-lite0"].source), None, tmp_path / "tiny")
    with pytest.raises(SourceError, match=r"not in its ONNX file: .* more"):
        graph_from_onnx(tmp_path / "tiny")
    shutil.copytree(zoo_model, tmp_path / "other")
    canonical = tmp_path / "other" / "canonical.json"
    body = json.loads(canonical.read_text())
    canonical.write_text(json.dumps({**body, "embedding": [-value for value in body["embedding"]]}))
    with pytest.raises(ParityError, match="cosine -1"):
        graph_from_onnx(tmp_path / "other")
