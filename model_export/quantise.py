"""An fp32 graph to fp16 or int8. Input, normalisation, head, L2 norms and output stay float32.

int8 is static (QDQ, calibrated) where most weights are convolutions, and dynamic where they are matrix
products. Both are signed 8-bit weights per channel and unsigned 8-bit activations; docs/decisions/10 has
what else was tried.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationMethod,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

from model_export.errors import SourceError

_WEIGHTED = ("Conv", "MatMul", "Gemm")
_CALIBRATION_BATCH = 8


def to_fp16(source: Path, out: Path) -> None:
    """Weights and arithmetic of the network in float16. Raises SourceError."""
    model = onnx.load(source)
    # ONNX Runtime 1.32 dies of a segmentation fault where its layout optimiser for CPUs meets a Mul of
    # float16 (CLIP's QuickGELU has one).
    products = [node.name for node in model.graph.node if node.op_type == "Mul"]
    kept = [*_before_network(model), *products, *_head(model)]
    onnx.save(convert_float_to_float16(model, keep_io_types=True, node_block_list=kept), out)


def to_int8(source: Path, out: Path, calibration: NDArray[np.uint8]) -> None:
    """`calibration`: uint8 (N, H, W, 3), used where activations have fixed ranges. Raises SourceError."""
    model = onnx.load(source)
    if _is_convolutional(model):
        _static_int8(model, source, out, calibration)
    else:
        quantize_dynamic(
            source,
            out,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_head(model),
            extra_options={"MatMulConstBOnly": True},
        )


def _static_int8(model: onnx.ModelProto, source: Path, out: Path, calibration: NDArray[np.uint8]) -> None:
    # The first convolution has three input channels: in int8 it is slower than in float, and less exact.
    first = next(node.name for node in model.graph.node if node.op_type == "Conv")
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            out,
            _Batches(calibration),
            op_types_to_quantize=["Conv", "Add", "Clip", "Relu"],
            nodes_to_exclude=[first, *_head(model)],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )


class _Batches:
    """What ONNX Runtime asks of calibration data: one batch after the other, then None."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        starts = range(0, len(pixels), _CALIBRATION_BATCH)
        self._batches = iter([pixels[start : start + _CALIBRATION_BATCH] for start in starts])

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"pixels": batch}


def _is_convolutional(model: onnx.ModelProto) -> bool:
    """Whether more weights are in convolutions than in matrix products."""
    sizes = {one.name: int(np.prod(one.dims)) for one in model.graph.initializer}
    held = dict.fromkeys(_WEIGHTED, 0)
    for node in model.graph.node:
        if node.op_type in held:
            held[node.op_type] += sum(sizes.get(name, 0) for name in node.input)
    return held["Conv"] > held["MatMul"] + held["Gemm"]


def _before_network(model: onnx.ModelProto) -> Iterator[str]:
    """The nodes that normalise: all before the first that has weights."""
    for node in model.graph.node:
        if node.op_type in _WEIGHTED:
            return
        yield node.name


def _head(model: onnx.ModelProto) -> list[str]:
    """The nodes from the descriptor to the output. Raises SourceError where there is no head of ours."""
    nodes = list(model.graph.node)
    made_by = {name: node for node in nodes for name in node.output}
    projection = next((node for node in nodes if "head.weight" in node.input), None)
    if projection is None:
        raise SourceError("the graph has no head.weight: it was not written by this export")
    unit = made_by[projection.input[0]]  # descriptor / norm
    reached, names = {unit.input[0]}, []
    for node in nodes:  # in topological order
        if reached & set(node.input):
            reached |= set(node.output)
            names.append(node.name)
    return names
