"""Every backbone: preprocessing as in its library, width, weights, ONNX graph."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import open_clip
import pytest
import safetensors.torch
import timm
import torch
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn

from model_export.errors import SourceError
from model_export.export.canonical import canonical_image
from model_export.export.fp32 import write_onnx
from model_export.networks.backbones import BACKBONES, Backbone, load_backbone, weights_sha256, weights_source
from model_export.networks.graph import EmbeddingGraph, Normalise
from model_export.networks.head import LinearHead
from model_export.networks.loaders import FAMILIES
from service.inference.images import decode
from tests.support.images import encode

LITE = BACKBONES["efficientnet-lite0"]
TINY = replace(
    BACKBONES["imagenet-vit-s16"], architecture="test_vit", weights="r160_in1k", descriptor_dim=64
)  # timm's test network: 160 px, 6 blocks
_SMALL_CONFIGS = {
    "small-clip": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "small-siglip": {
        "image_size": 160,
        "timm_model_name": "test_vit",
        "timm_pool": "map",
        "timm_proj": "none",
    },
}


def rows(family: str) -> list[str]:
    return [name for name, row in BACKBONES.items() if row.family == family]


@pytest.fixture(scope="module", autouse=True)
def small_rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backbone]:
    """Rows of small architectures; two of them are registered with open_clip first."""
    folder = tmp_path_factory.mktemp("open_clip")
    for name, vision in _SMALL_CONFIGS.items():
        config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": {}, "quick_gelu": name == "small-clip"}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)

    def small(row: Backbone, architecture: str, px: int) -> Backbone:
        preprocessing = row.preprocessing.model_copy(update={"input_px": px, "resize_px": px})
        return replace(row, architecture=architecture, descriptor_dim=64, preprocessing=preprocessing)

    clip = BACKBONES["clip-vit-b16"]
    return {
        "small-clip": small(clip, "small-clip", 64),
        "small-siglip": small(clip, "small-siglip", 160),
        "small-timm": small(TINY, "test_vit", 64),  # the default is 160 px
    }


def network_input(row: Backbone, image: Image.Image) -> NDArray[np.float64]:
    """Decode and normalise as the service does: (3, H, W)."""
    pixels = decode(encode(image), row.preprocessing, 10**9).astype(np.float64)
    return ((pixels - row.mean) / row.std).transpose(2, 0, 1)


def assert_close(row: Backbone, reference: Tensor) -> None:
    """Allow two levels of 255, since the libraries resize and crop in two steps, and float32 rounding."""
    actual = network_input(row, canonical_image())
    levels = np.abs(actual - reference.numpy()) * np.array(row.std)[:, None, None]
    assert actual.shape == tuple(reference.shape)
    assert levels.max() < 2.01


@pytest.mark.parametrize("name", rows("open_clip"))
def test_preprocessing_is_that_of_open_clip(name: str) -> None:
    row = BACKBONES[name]
    pretrained = open_clip.get_pretrained_cfg(row.architecture, row.weights)
    model = open_clip.get_model_config(row.architecture)
    config = PreprocessCfg(
        size=model["vision_cfg"]["image_size"],
        **{key: pretrained[key] for key in ("mean", "std", "interpolation", "resize_mode")},
    )
    assert_close(row, image_transform_v2(config, is_train=False)(canonical_image()))
    assert pretrained.get("quick_gelu", False) == model.get("quick_gelu", False)


@pytest.mark.parametrize("name", rows("timm"))
def test_preprocessing_is_that_of_timm(name: str) -> None:
    row = BACKBONES[name]
    pretrained = timm.get_pretrained_cfg(f"{row.architecture}.{row.weights}").to_dict()
    px = row.preprocessing.input_px
    config = timm.data.resolve_data_config({"input_size": (3, px, px)}, pretrained_cfg=pretrained)
    assert_close(row, timm.data.create_transform(**config)(canonical_image()))
    assert pretrained["license"] == row.licence.lower()


@pytest.mark.parametrize("name", rows("efficientnet-lite"))
def test_efficientnet_lite_has_its_weights_and_its_size(name: str) -> None:
    row = BACKBONES[name]
    network = load_backbone(row)
    assert network.network.input_image_size == row.preprocessing.input_px  # type: ignore[union-attr]
    with torch.inference_mode():
        assert network(torch.tensor(network_input(row, canonical_image())[None]).float()).std() > 0.1
    assert weights_source(row) == row.source


@pytest.mark.parametrize("name", BACKBONES)
def test_descriptors_have_the_width_of_the_row(name: str) -> None:
    row = BACKBONES[name]
    px = row.preprocessing.input_px
    with torch.device("meta"):  # shapes only: the largest has 632 million parameters
        network = FAMILIES[row.family].build(row.architecture, px).eval()
        assert network(torch.zeros(2, 3, px, px)).shape == (2, row.descriptor_dim)


@pytest.mark.parametrize("name", ["small-clip", "small-siglip", "small-timm"])
def test_onnx_reproduces_torch_at_any_batch(
    name: str, small_rows: dict[str, Backbone], tmp_path: Path
) -> None:
    row = small_rows[name]
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(64, row.descriptor_dim)).astype(np.float32)
    backbone = nn.Sequential(Normalise(row.mean, row.std), load_backbone(row, "random"))
    graph = EmbeddingGraph(backbone, LinearHead(weight, np.zeros(64, dtype=np.float32)))
    write_onnx(graph, row.preprocessing.input_px, tmp_path / "model.onnx")
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    px = row.preprocessing.input_px
    for batch in (1, 3, 7):
        pixels = rng.integers(0, 256, (batch, px, px, 3), dtype=np.uint8)
        with torch.inference_mode():
            expected = graph(torch.from_numpy(pixels)).numpy()
        (actual,) = session.run(None, {"pixels": pixels})
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_random_weights_depend_on_the_seed_only(small_rows: dict[str, Backbone]) -> None:
    row = small_rows["small-clip"]
    state = torch.get_rng_state()
    first, again, other = (
        load_backbone(row, seed).state_dict() for seed in ("random", "random:0", "random:1")
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    assert weights_sha256(row, "random") == weights_sha256(row, "random:0") != weights_sha256(row, "random:1")
    assert "seed 1" in weights_source(row, "random:1")
    with pytest.raises(SourceError, match="whole number"):
        load_backbone(row, "random:x")


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_weights_from_a_local_file(kind: str, small_rows: dict[str, Backbone], tmp_path: Path) -> None:
    """The file may be a complete CLIP with both towers and the unused projection."""
    row = small_rows["small-clip"]
    expected = load_backbone(row, "random:7").state_dict()
    clip = {f"visual.{name}": tensor for name, tensor in expected.items()}
    clip |= {
        "visual.proj": torch.ones(64, 32),
        "logit_scale": torch.ones(()),
        "ln_final.bias": torch.ones(3),
    }
    for state in (expected, clip):
        file = tmp_path / f"weights.{kind}"
        if kind == "pt":
            torch.save(state, file)
        else:
            safetensors.torch.save_file(state, file)
        loaded = load_backbone(row, str(file)).state_dict()
        assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert str(tmp_path) not in weights_source(row, str(file))
    assert len(weights_sha256(row, str(file))) == 64


def test_weights_of_another_image_size_are_resampled_as_timm_does(
    small_rows: dict[str, Backbone], tmp_path: Path
) -> None:
    file = tmp_path / "weights.pt"
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit").state_dict(), file)  # including its classifier
    small = load_backbone(small_rows["small-timm"], str(file))
    reference = timm.create_model(
        "test_vit",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(file)},
        img_size=64,
        num_classes=0,
    )
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(small(images), reference.eval()(images))


def _write_invalid(kind: str, valid: dict[str, Tensor], file: Path) -> None:
    torch.save(valid, file)
    name = "ln_post.weight"
    match kind:
        case "truncated":
            file.write_bytes(file.read_bytes()[:-1000])
        case "empty" | "text":
            file.write_bytes(b"" if kind == "empty" else b"hello")
        case "code":
            torch.save({"weights": Path}, file)
        case "nested":
            torch.save({"state_dict": valid}, file)
        case "missing":
            torch.save({key: valid[key] for key in valid if key != name}, file)
        case "unknown":
            torch.save(valid | {"ln_4.weight": valid[name]}, file)
        case "shape":
            torch.save(valid | {name: torch.ones(65)}, file)
        case "another network":
            torch.save(nn.Linear(2, 2).state_dict(), file)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("truncated", "damaged"),
        ("empty", "damaged"),
        ("text", "damaged"),
        ("code", "damaged"),
        ("nested", "not a state dict"),
        ("missing", r"missing: ln_post\.weight$"),
        ("unknown", r"unknown: ln_4\.weight$"),
        ("shape", r"wrong shape: ln_post\.weight \(65,\) instead of \(64,\)$"),
        ("another network", r"missing: class_embedding, .* and \d+ more; unknown: weight, bias$"),
    ],
)
def test_invalid_file_is_named(kind: str, text: str, small_rows: dict[str, Backbone], tmp_path: Path) -> None:
    row = small_rows["small-clip"]
    file = tmp_path / "weights.pt"
    _write_invalid(kind, load_backbone(row, "random").state_dict(), file)
    with pytest.raises(SourceError, match=text) as refusal:
        load_backbone(row, str(file))
    assert str(file) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    for function in (load_backbone, weights_sha256):
        with pytest.raises(SourceError, match=r"nowhere\.pt"):
            function(LITE, str(tmp_path / "nowhere.pt"))
    with pytest.raises(SourceError, match=r"no_such_package .* is not installed"):
        load_backbone(replace(LITE, weights="no_such_package/weights.pth"))
