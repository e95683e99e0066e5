"""Conversion of an exported fp32 model folder to its torch network, for models whose run is not available.

The export folds each batch norm into the preceding convolution. Here the norms are restored with the folded
bias only, so the network has its original layers and the same output as the ONNX file.
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
from model_export.networks.loaders import format_faults
from service.manifest import Manifest, load_canonical, load_manifest

# The normalisation comes from the backbone's row; EfficientNet's classifier is not part of the descriptor.
_NOT_EXPORTED = ("descriptor.0.", "descriptor.1.network._fc.")


def graph_from_onnx(folder: Path) -> EmbeddingGraph:
    """Rebuild the torch graph of an fp32 folder whose ONNX file kept the names of torch's parameters.

    Raises ManifestError, SourceError if the conversion is not possible, or ParityError if the canonical
    image's embedding differs.
    """
    manifest = load_manifest(folder)
    if manifest.precision != "fp32":
        raise SourceError(f"{folder} is {manifest.precision}: only fp32 can be converted to torch")
    initialisers = {
        tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
        for tensor in onnx.load(folder / "model.onnx").graph.initializer
    }
    row = _backbone_of(manifest, folder)
    dim, width = manifest.dim, row.descriptor_dim
    head = LinearHead(np.zeros((dim, width), dtype=np.float32), np.zeros(dim, dtype=np.float32))
    graph = EmbeddingGraph(descriptor_graph(row, "random"), head)
    graph.load_state_dict(_state(graph, initialisers, folder))
    _, canonical = load_canonical(folder)
    (embedding,) = describe(graph, read_pixels(folder / "canonical.png", manifest.preprocessing)[None])
    cosine = float(embedding @ np.asarray(canonical.embedding, dtype=np.float32))
    if not cosine >= MIN_COSINE:
        raise ParityError(f"{folder}: in torch the canonical image has cosine {cosine:.6f} < {MIN_COSINE}")
    return graph


def _backbone_of(manifest: Manifest, folder: Path) -> Backbone:
    for row in BACKBONES.values():
        # The formats of `weights_source`, for released and other weights.
        if manifest.source == row.source or manifest.source.startswith(f"{row.family} {row.architecture}, "):
            return row
    raise SourceError(f"{folder}: its source, {manifest.source!r}, is not a known backbone")


def _state(graph: nn.Module, initialisers: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    expected = graph.state_dict()
    state = {"head.bias": expected["head.bias"], **initialisers}  # a bias of zeros is not exported
    convolution = ""
    for name, module in graph.named_modules():
        if isinstance(module, nn.Conv2d):
            convolution = name
        elif isinstance(module, nn.BatchNorm2d):  # registered after its convolution
            zeros, ones = torch.zeros(module.num_features), torch.ones(module.num_features)
            state[f"{name}.running_mean"], state[f"{name}.running_var"] = zeros, ones
            state[f"{name}.weight"] = torch.sqrt(ones + module.eps)
            if (bias := initialisers.get(f"{convolution}.weight_bias")) is not None:
                state[f"{name}.bias"] = bias
            state[f"{name}.num_batches_tracked"] = torch.tensor(0)
    state |= {name: expected[name] for name in expected if name.startswith(_NOT_EXPORTED)}
    missing = [name for name in expected if name not in state or state[name].shape != expected[name].shape]
    if missing:
        raise SourceError(
            f"{folder} cannot be converted to torch: {format_faults({'not in its ONNX file': missing})}; "
            "use the run or the backbone that it was exported from"
        )
    return {name: state[name] for name in expected}
