"""The graph that is exported: uint8 (N, H, W, 3) -> float32 (N, dim), unit norm.

Normalisation, projection and L2 norm are inside, so that a caller sends bytes as they were decoded.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_export.backbones import Backbone, load_backbone
from model_export.head import LinearHead


class Normalise(nn.Module):
    """uint8 (N, H, W, 3) in [0, 255] -> float (N, 3, H, W)."""

    mean: Tensor
    std: Tensor

    def __init__(self, row: Backbone) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(row.mean))
        self.register_buffer("std", torch.tensor(row.std))

    def forward(self, pixels: Tensor) -> Tensor:
        scaled: Tensor = (pixels.to(torch.float32) - self.mean) / self.std
        return scaled.permute(0, 3, 1, 2)


def descriptor_graph(row: Backbone) -> nn.Module:
    """uint8 (N, H, W, 3) -> descriptor (N, descriptor_dim), not normalised."""
    return nn.Sequential(Normalise(row), load_backbone(row)).eval()


class EmbeddingGraph(nn.Module):
    """The descriptor's graph with a head on it."""

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
