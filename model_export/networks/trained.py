"""What is exported, apart from how it was made."""

from dataclasses import dataclass

from torch import nn

from model_export.networks.head import LinearHead
from service.manifest import Preprocessing


@dataclass(frozen=True)
class Trained:
    """A network, its head, and all that must be known of them: PCA, a training or an import makes one."""

    descriptor: nn.Module  # uint8 (N, input_px, input_px, 3) -> (N, D); normalises pixels by itself
    head: LinearHead  # on the descriptor's unit vector
    preprocessing: Preprocessing
    mean: tuple[float, float, float]  # that the descriptor normalises with; of pixels in [0, 255]
    std: tuple[float, float, float]
    strategy: str  # one sentence
    domains: dict[str, int]  # training domains: number of classes
    data_fingerprint: str
    source: str  # of the weights
    source_sha256: str
    licence: str
