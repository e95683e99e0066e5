"""An exported fp32 model folder back into its torch network: the run that made it may be gone.

Exporting folded each batch norm into the convolution before it. Here the norms are there again as what is
left of them, a bias: so the network has the layers that it had, and does what the ONNX file does.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from model_export.descriptors.images import describe, read_pixels
from model_export.errors import ParityError, SourceError
from model_export.export.fp32 import MIN_COSINE
from model_export.networks.backbones import BACKBONES, Backbone
from model_export.networks.graph import EmbeddingGraph, descriptor_graph
from model_export.networks.head import LinearHead
from model_export.networks.loaders import in_words
from service.manifest import Manifest, load_canonical, load_manifest

# Pixels are normalised by the backbone's numbers; EfficientNet has a classifier that no descriptor uses.
_NOT_EXPORTED = ("descriptor.0.", "descriptor.1.network._fc.")


def graph_from_onnx(folder: Path) -> EmbeddingGraph:
    """The torch graph of an fp32 folder whose network keeps its names in ONNX, as EfficientNet-Lite does.

    Raises ManifestError, SourceError where it cannot be taken back, or ParityError where the canonical
    picture does not come out as the folder says.
    """
    manifest = load_manifest(folder)
    if manifest.precision != "fp32":
        raise SourceError(f"{folder} is {manifest.precision}: only fp32 goes back into torch")
    initialisers = {
        one.name: torch.from_numpy(numpy_helper.to_array(one).copy())
        for one in onnx.load(folder / "model.onnx").graph.initializer
    }
    row = _backbone_of(manifest, folder)
    graph = EmbeddingGraph(
        descriptor_graph(row, "random"),
        LinearHead(
            np.zeros((manifest.dim, row.descriptor_dim), dtype=np.float32),
            np.zeros(manifest.dim, dtype=np.float32),
        ),
    )
    graph.load_state_dict(_state(graph, initialisers, folder))
    _check_canonical(graph, manifest, folder)
    return graph


def _backbone_of(manifest: Manifest, folder: Path) -> Backbone:
    for row in BACKBONES.values():
        # As `weights_source` says it, of the released weights and of others.
        if manifest.source == row.source or manifest.source.startswith(f"{row.family} {row.architecture}, "):
            return row
    raise SourceError(f"{folder}: its source, {manifest.source!r}, is no backbone's of ours")


def _state(graph: nn.Module, initialisers: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    wanted = graph.state_dict()
    said = {"head.bias": wanted["head.bias"], **initialisers}  # one of zeros, as it is here, is not exported
    convolution = ""
    for name, module in graph.named_modules():
        if isinstance(module, nn.Conv2d):
            convolution = name
        elif isinstance(module, nn.BatchNorm2d):  # registered after the convolution whose output it takes
            zeros, ones = torch.zeros(module.num_features), torch.ones(module.num_features)
            said[f"{name}.running_mean"], said[f"{name}.running_var"] = zeros, ones
            said[f"{name}.weight"] = torch.sqrt(ones + module.eps)
            if (bias := initialisers.get(f"{convolution}.weight_bias")) is not None:
                said[f"{name}.bias"] = bias
            said[f"{name}.num_batches_tracked"] = torch.tensor(0)
    said |= {name: wanted[name] for name in wanted if name.startswith(_NOT_EXPORTED)}
    missing = [name for name in wanted if name not in said or said[name].shape != wanted[name].shape]
    if missing:
        raise SourceError(
            f"{folder} does not go back into torch, {in_words({'not in its ONNX file': missing})}; "
            "the run or the backbone that it was exported from does"
        )
    return {name: said[name] for name in wanted}


def _check_canonical(graph: nn.Module, manifest: Manifest, folder: Path) -> None:
    _, canonical = load_canonical(folder)
    (got,) = describe(graph, read_pixels(folder / "canonical.png", manifest.preprocessing)[None])
    cosine = float(got @ np.asarray(canonical.embedding, dtype=np.float32))
    if not cosine >= MIN_COSINE:
        raise ParityError(f"{folder}: in torch the canonical picture has cosine {cosine:.6f} < {MIN_COSINE}")
