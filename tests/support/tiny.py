"""Small models and data for tests, exported in seconds."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from benchmarks.datasets.dataset import Dataset
from model_export.networks.graph import Normalise, Trained
from model_export.networks.head import LinearHead
from service.manifest import Preprocessing
from tests.support.images import noise

PX = 32
DIM = 8
ROWS = {
    "animals": {"train": 12, "val": 6, "test": 8, "index": 20},
    "plants": {"train": 9, "val": 6, "test": 10},
}


def tiny_data(root: Path) -> Dataset:
    """Write two domains in UnED's layout, four images per class; `animals` has a separate index."""
    seed = 0
    for domain, splits in ROWS.items():
        info = root / "data" / "info_files" / domain
        info.mkdir(parents=True)
        for split, count in splits.items():
            entries = []
            for row in range(count):
                seed += 1
                path = f"{domain}/{split}-{row}.png"
                entries.append({"path": path, "class_id": row // 4})
                file = root / "data" / "images" / path
                file.parent.mkdir(parents=True, exist_ok=True)
                noise(seed, 48, 40).save(file)
            (info / f"{split}.json").write_text(json.dumps(entries))
    return Dataset(root)


class _ConvNet(nn.Module):
    """Five convolutions with ReLU6 between them, two of them depthwise: (N, 3, 32, 32) -> (N, 24)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.ReLU6(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.ReLU6(),
            nn.Conv2d(8, 32, 1),
            nn.ReLU6(),
            nn.Conv2d(32, 32, 3, padding=1, groups=32),
            nn.ReLU6(),
            nn.Conv2d(32, 24, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images)
        return features.mean(dim=(2, 3))


def _vit() -> nn.Module:
    sizes = {"img_size": PX, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 0}
    network: nn.Module = VisionTransformer(**sizes)
    return network


NETWORKS: dict[str, Callable[[], nn.Module]] = {"conv": _ConvNet, "vit": _vit}


def tiny_trained(kind: str, data_fingerprint: str = "none") -> Trained:
    """Return a network of `kind` with the same random weights every time."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    mean, std = (120.0, 115.0, 105.0), (58.0, 57.0, 57.5)
    return Trained(
        descriptor=nn.Sequential(Normalise(mean, std), NETWORKS[kind]()).eval(),
        head=LinearHead(rng.normal(size=(DIM, 24)).astype(np.float32), np.zeros(DIM, dtype=np.float32)),
        preprocessing=Preprocessing(
            input_px=PX,
            resize="short-side",
            resize_px=PX,
            interpolation="bicubic",
            crop="centre",
            exif="apply",
        ),
        mean=mean,
        std=std,
        strategy="random weights",
        domains={"animals": 3, "plants": 3},
        data_fingerprint=data_fingerprint,
        source="a random number generator",
        source_sha256="0" * 64,
        licence="CC0-1.0",
    )
