"""Every backbone: the preprocessing that its library says, its width, its weights, its ONNX graph."""

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
from model_export.export.canonical import canonical_picture
from model_export.export.fp32 import write_onnx
from model_export.networks.backbones import BACKBONES, Backbone, load_backbone, weights_sha256, weights_source
from model_export.networks.graph import EmbeddingGraph, Normalise
from model_export.networks.head import LinearHead
from model_export.networks.loaders import FAMILIES
from service.inference.images import decode
from tests.support.pictures import encode

LITE = BACKBONES["efficientnet-lite0"]
TINY = replace(
    BACKBONES["imagenet-vit-s16"], architecture="test_vit", weights="r160_in1k", descriptor_dim=64
)  # timm's own, for tests: 160 px, 6 blocks
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
    """Rows of small architectures, as one would add them: two of them made known to open_clip first."""
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
        "small-timm": small(TINY, "test_vit", 64),  # not the 160 px of its own
    }


def ours(row: Backbone, image: Image.Image) -> NDArray[np.float64]:
    """What the network gets: (3, H, W)."""
    pixels = decode(encode(image), row.preprocessing, 10**9).astype(np.float64)
    return ((pixels - row.mean) / row.std).transpose(2, 0, 1)


def assert_close(row: Backbone, theirs: Tensor) -> None:
    """Within two levels of 255, since they resize and crop in two steps; and a breath for float32."""
    got = ours(row, canonical_picture())
    levels = np.abs(got - theirs.numpy()) * np.array(row.std)[:, None, None]
    assert got.shape == tuple(theirs.shape)
    assert levels.max() < 2.01


@pytest.mark.parametrize("name", rows("open_clip"))
def test_open_clip_would_prepare_a_picture_the_same_way(name: str) -> None:
    row = BACKBONES[name]
    said = open_clip.get_pretrained_cfg(row.architecture, row.weights)
    model = open_clip.get_model_config(row.architecture)
    config = PreprocessCfg(
        size=model["vision_cfg"]["image_size"],
        **{key: said[key] for key in ("mean", "std", "interpolation", "resize_mode")},
    )
    assert_close(row, image_transform_v2(config, is_train=False)(canonical_picture()))
    assert said.get("quick_gelu", False) == model.get("quick_gelu", False)


@pytest.mark.parametrize("name", rows("timm"))
def test_timm_would_prepare_a_picture_the_same_way(name: str) -> None:
    row = BACKBONES[name]
    said = timm.get_pretrained_cfg(f"{row.architecture}.{row.weights}").to_dict()
    px = row.preprocessing.input_px
    config = timm.data.resolve_data_config({"input_size": (3, px, px)}, pretrained_cfg=said)
    assert_close(row, timm.data.create_transform(**config)(canonical_picture()))
    assert said["license"] == row.licence.lower()


@pytest.mark.parametrize("name", rows("efficientnet-lite"))
def test_efficientnet_lite_is_whole_and_of_its_own_size(name: str) -> None:
    row = BACKBONES[name]
    network = load_backbone(row)
    assert network.network.input_image_size == row.preprocessing.input_px  # type: ignore[union-attr]
    with torch.inference_mode():
        assert network(torch.tensor(ours(row, canonical_picture())[None]).float()).std() > 0.1
    assert weights_source(row) == row.source


@pytest.mark.parametrize("name", BACKBONES)
def test_descriptors_have_the_width_of_the_row(name: str) -> None:
    row = BACKBONES[name]
    px = row.preprocessing.input_px
    with torch.device("meta"):  # shapes alone: the largest has 632 million parameters
        network = FAMILIES[row.family].build(row.architecture, px).eval()
        assert network(torch.zeros(2, 3, px, px)).shape == (2, row.descriptor_dim)


@pytest.mark.parametrize("name", ["small-clip", "small-siglip", "small-timm"])
def test_onnx_does_what_torch_does_at_any_batch(
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
            wanted = graph(torch.from_numpy(pixels)).numpy()
        (got,) = session.run(None, {"pixels": pixels})
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_random_weights_are_those_of_the_seed(small_rows: dict[str, Backbone]) -> None:
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
    """Of a whole CLIP, as released: both towers, and the projection that is not used."""
    row = small_rows["small-clip"]
    wanted = load_backbone(row, "random:7").state_dict()
    whole = {f"visual.{name}": tensor for name, tensor in wanted.items()}
    whole |= {
        "visual.proj": torch.ones(64, 32),
        "logit_scale": torch.ones(()),
        "ln_final.bias": torch.ones(3),
    }
    for state in (wanted, whole):
        file = tmp_path / f"weights.{kind}"
        if kind == "pt":
            torch.save(state, file)
        else:
            safetensors.torch.save_file(state, file)
        loaded = load_backbone(row, str(file)).state_dict()
        assert all(torch.equal(loaded[name], wanted[name]) for name in wanted)
    assert str(tmp_path) not in weights_source(row, str(file))
    assert len(weights_sha256(row, str(file))) == 64


def test_weights_of_another_image_size_are_resampled_as_timm_does(
    small_rows: dict[str, Backbone], tmp_path: Path
) -> None:
    file = tmp_path / "weights.pt"
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit").state_dict(), file)  # with its classifier
    small = load_backbone(small_rows["small-timm"], str(file))
    theirs = timm.create_model(
        "test_vit",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(file)},
        img_size=64,
        num_classes=0,
    )
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(small(images), theirs.eval()(images))


def _broken(kind: str, good: dict[str, Tensor], file: Path) -> None:
    torch.save(good, file)
    name = "ln_post.weight"
    match kind:
        case "truncated":
            file.write_bytes(file.read_bytes()[:-1000])
        case "empty" | "text":
            file.write_bytes(b"" if kind == "empty" else b"hello")
        case "code":
            torch.save({"weights": Path}, file)
        case "nested":
            torch.save({"state_dict": good}, file)
        case "missing":
            torch.save({key: good[key] for key in good if key != name}, file)
        case "unknown":
            torch.save(good | {"ln_4.weight": good[name]}, file)
        case "shape":
            torch.save(good | {name: torch.ones(65)}, file)
        case "another network":
            torch.save(nn.Linear(2, 2).state_dict(), file)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("truncated", "damaged"),
        ("empty", "damaged"),
        ("text", "damaged"),
        ("code", "damaged"),
        ("nested", "not a state dict"),
        ("missing", r"missing: ln_post\.weight$"),
        ("unknown", r"unknown: ln_4\.weight$"),
        ("shape", r"of another shape: ln_post\.weight \(65,\) instead of \(64,\)$"),
        ("another network", r"missing: class_embedding, .* and \d+ more; unknown: weight, bias$"),
    ],
)
def test_a_file_that_does_not_fit_is_named(
    kind: str, said: str, small_rows: dict[str, Backbone], tmp_path: Path
) -> None:
    row = small_rows["small-clip"]
    file = tmp_path / "weights.pt"
    _broken(kind, load_backbone(row, "random").state_dict(), file)
    with pytest.raises(SourceError, match=said) as refusal:
        load_backbone(row, str(file))
    assert str(file) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for ask in (load_backbone, weights_sha256):
        with pytest.raises(SourceError, match=r"nowhere\.pt"):
            ask(LITE, str(tmp_path / "nowhere.pt"))
    with pytest.raises(SourceError, match=r"no_such_package .* is not installed"):
        load_backbone(replace(LITE, weights="no_such_package/weights.pth"))
