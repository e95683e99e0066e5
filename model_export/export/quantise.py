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
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationMethod,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from model_export.errors import SourceError
from model_export.export.onnx_file import load_with_shapes, save_checked

_WEIGHTED = ("Conv", "MatMul", "Gemm")
_BATCH = 8
# The stem and the first block. They gain nothing in int8 (a stem of three input channels even loses), and
# with them in int8 EfficientNet-Lite0's embeddings are twice as far from fp32's.
_FLOAT_CONVOLUTIONS = 3


def to_fp16(source: Path, out: Path) -> None:
    """Weights and arithmetic of the network in float16. Raises SourceError."""
    model = load_with_shapes(source)
    # ONNX Runtime 1.32 dies of a segmentation fault where its layout optimiser for CPUs meets a Mul of
    # float16 (CLIP's QuickGELU has one).
    products = [node.name for node in model.graph.node if node.op_type == "Mul"]
    kept = [*_before_network(model), *products, *_head(model)]
    half = OnnxModel(
        convert_float_to_float16(model, keep_io_types=True, node_block_list=kept, disable_shape_infer=True)
    )
    _unround(half)
    # The converter leaves its casts at the end, and types of before. ONNX Runtime does not mind; others do.
    half.topological_sort()
    del half.model.graph.value_info[:]
    save_checked(half.model, out)


def _unround(half: OnnxModel) -> None:
    """Between two nodes that stay float32 the converter goes by way of float16: norms would not be 1."""
    made_by = {name: node for node in half.model.graph.node for name in node.output}
    for node in half.model.graph.node:
        before = made_by.get(node.input[0]) if node.op_type == "Cast" else None
        if before is not None and before.op_type == "Cast" and _casts_to(before) == onnx.TensorProto.FLOAT16:
            node.input[0] = before.input[0]
    half.prune_graph()


def _casts_to(node: onnx.NodeProto) -> int:
    return next(int(one.i) for one in node.attribute if one.name == "to")


def to_int8(source: Path, out: Path, calibration: NDArray[np.uint8]) -> None:
    """`calibration`: uint8 (N, H, W, 3), used where activations have fixed ranges. Raises SourceError."""
    model = onnx.load(source, load_external_data=False)
    if _is_convolutional(model):
        _static_int8(model, source, out, calibration)
    else:
        quantize_dynamic(
            source,
            out,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_under_new_names(_head(model)),
            extra_options={"MatMulConstBOnly": True},
        )


def _static_int8(model: onnx.ModelProto, source: Path, out: Path, calibration: NDArray[np.uint8]) -> None:
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    kept = [*convolutions[:_FLOAT_CONVOLUTIONS], *_under_new_names(_head(model))]
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)  # folds batch norms
        corrected = onnx.load(prepared)
        _correct_biases(corrected, set(kept), calibration)
        onnx.save(corrected, prepared)
        quantize_static(
            prepared,
            out,
            _Pictures(calibration),
            op_types_to_quantize=["Conv", "Add", "Clip", "Relu"],
            nodes_to_exclude=kept,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            # The mean of each picture's own range: the widest of all spends its steps on one odd picture.
            extra_options={"CalibMovingAverage": True},
        )


def _correct_biases(model: onnx.ModelProto, kept: set[str], calibration: NDArray[np.uint8]) -> None:
    """Take out of each convolution's bias what rounding its weights adds to its mean output.

    Nagel et al. 2019, arXiv 1906.04721, section 4.2, with the inputs' means measured. Nine weights of a
    depthwise channel do not round to a sum of zero: this is most of what int8 costs a network of them.
    """
    weights = {one.name: one for one in model.graph.initializer}
    nodes = [
        node
        for node in model.graph.node
        if node.op_type == "Conv" and node.name not in kept and len(node.input) == 3
    ]
    for node, means in zip(nodes, _input_means(model, nodes, calibration), strict=True):
        kernel, bias = (numpy_helper.to_array(weights[name]) for name in node.input[1:])
        largest = np.abs(kernel).max(axis=(1, 2, 3), keepdims=True)  # (out, 1, 1, 1)
        scale = np.where(largest > 0, largest, 1) / 127
        rounding = (np.round(kernel / scale) * scale - kernel).sum(axis=(2, 3))  # (out, in a group)
        groups = means.reshape(-1, rounding.shape[1])  # (groups, in a group)
        added = (rounding * np.repeat(groups, len(rounding) // len(groups), axis=0)).sum(axis=1)  # (out,)
        corrected = (bias - added).astype(np.float32)
        weights[node.input[2]].CopyFrom(numpy_helper.from_array(corrected, node.input[2]))


def _input_means(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], calibration: NDArray[np.uint8]
) -> list[NDArray[np.float64]]:
    """Each node's input, averaged over pictures and places: (channels,)."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    names = list(dict.fromkeys(node.input[0] for node in nodes))
    kind = onnx.TensorProto.FLOAT
    watched.graph.output.extend(onnx.helper.make_tensor_value_info(name, kind, None) for name in names)
    session = ort.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    sums = dict.fromkeys(names, np.float64(0))
    for start in range(0, len(calibration), _BATCH):
        values = session.run(names, {"pixels": calibration[start : start + _BATCH]})
        for name, value in zip(names, values, strict=True):
            sums[name] = sums[name] + value.mean(axis=(2, 3), dtype=np.float64).sum(axis=0)
    return [np.asarray(sums[node.input[0]] / len(calibration)) for node in nodes]


class _Pictures:
    """What ONNX Runtime asks of calibration data: one picture after the other, then None."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._coming = iter(pixels)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        picture = next(self._coming, None)
        return None if picture is None else {"pixels": picture[None]}


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


def _under_new_names(nodes: list[str]) -> list[str]:
    """ONNX Runtime makes a MatMul and an Add of each Gemm before it looks for what to leave out."""
    return [name + suffix for name in nodes for suffix in ("", "_MatMul", "_Add")]
