"""The exported graph: uint8 (N, H, W, 3) -> float32 (N, dim), unit norm.

Normalisation, projection and L2 norm are inside the graph, so the caller passes decoded bytes unchanged.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_export.networks.backbones import Backbone, load_backbone
from model_export.networks.head import LinearHead
from service.manifest import Preprocessing


class Normalise(nn.Module):
    """uint8 (N, H, W, 3) in [0, 255] -> float (N, 3, H, W)."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, pixels: Tensor) -> Tensor:
        # Transposing first is faster: with an innermost axis of 3, subtraction and division take an eighth of
        # EfficientNet-Lite0's time in ONNX Runtime; on contiguous planes, almost none.
        planes = pixels.permute(0, 3, 1, 2).to(torch.float32)  # (N, 3, H, W)
        scaled: Tensor = (planes - self.mean.view(3, 1, 1)) / self.std.view(3, 1, 1)
        return scaled


def descriptor_graph(row: Backbone, weights: str = "pretrained") -> nn.Module:
    """Return uint8 (N, H, W, 3) -> descriptor (N, descriptor_dim), not normalised. See `load_backbone`."""
    return nn.Sequential(Normalise(row.mean, row.std), load_backbone(row, weights)).eval()


class EmbeddingGraph(nn.Module):
    """The descriptor graph followed by a head."""

    def __init__(self, descriptor: nn.Module, head: LinearHead) -> None:
        super().__init__()
        dim, width = head.weight.shape
        self.descriptor = descriptor
        self.head = nn.Linear(width, dim)
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(head.weight))
            self.head.bias.copy_(torch.from_numpy(head.bias))
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        descriptor = functional.normalize(self.descriptor(pixels))
        return functional.normalize(self.head(descriptor))


@dataclass(frozen=True)
class Trained:
    """A network with its head and metadata, from a PCA, a training or an import."""

    descriptor: nn.Module  # uint8 (N, input_px, input_px, 3) -> (N, D); includes pixel normalisation
    head: LinearHead  # applied to the L2-normalised descriptor
    preprocessing: Preprocessing
    mean: tuple[float, float, float]  # of the pixel normalisation, in [0, 255]
    std: tuple[float, float, float]
    strategy: str  # one sentence
    domains: dict[str, int]  # number of classes by training domain
    data_fingerprint: str
    source: str  # of the weights
    source_sha256: str
    licence: str
