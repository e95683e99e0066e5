"""The input of an export."""

from dataclasses import dataclass

from torch import nn

from model_export.networks.head import LinearHead
from service.manifest import Preprocessing


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
