"""Conversion of an fp32 graph to fp16 or int8. Input, normalisation, head, L2 norms and output stay float32.

int8 is static (QDQ, calibrated) if most weights are in convolutions, and dynamic if they are in matrix
products. Both use signed 8-bit weights per channel and unsigned 8-bit activations. docs/decisions/10 lists
the alternatives that were tried.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from model_export.errors import SourceError
from model_export.export.fp32 import save_checked

_WEIGHTED = ("Conv", "MatMul", "Gemm")
_BATCH = 8
# The stem and the first block. int8 does not speed them up (it slows down a stem of three input channels),
# and it doubles the distance of EfficientNet-Lite0's embeddings from fp32's.
_FLOAT_CONVOLUTIONS = 3


def to_fp16(source: Path, out: Path) -> None:
    """Convert weights and arithmetic of the network to float16. Raises SourceError."""
    model = onnx.shape_inference.infer_shapes(onnx.load(source, load_external_data=False))
    onnx.load_external_data_for_model(model, str(source.parent))
    # ONNX Runtime 1.32 crashes when its CPU layout optimiser meets a Mul of float16, as in CLIP's QuickGELU.
    products = [node.name for node in model.graph.node if node.op_type == "Mul"]
    float_nodes = [*_before_network(model), *products, *_head(model)]
    half = OnnxModel(
        convert_float_to_float16(
            model, keep_io_types=True, node_block_list=float_nodes, disable_shape_infer=True
        )
    )
    _remove_rounding(half)
    # The converter appends its casts at the end and keeps outdated types, which other runtimes reject.
    half.topological_sort()
    del half.model.graph.value_info[:]
    save_checked(half.model, out)


def _remove_rounding(half: OnnxModel) -> None:
    """Remove the casts to float16 and back between float32 nodes, with which norms would not be 1."""
    producers = {name: node for node in half.model.graph.node for name in node.output}
    for node in half.model.graph.node:
        producer = producers.get(node.input[0]) if node.op_type == "Cast" else None
        if producer is not None and producer.op_type == "Cast":
            to = next(attribute.i for attribute in producer.attribute if attribute.name == "to")
            if to == onnx.TensorProto.FLOAT16:
                node.input[0] = producer.input[0]
    half.prune_graph()


def to_int8(source: Path, out: Path, calibration: NDArray[np.uint8]) -> None:
    """Quantise to int8; `calibration` is uint8 (N, H, W, 3), used by static int8. Raises SourceError."""
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
            nodes_to_exclude=_with_gemm_parts(_head(model)),
            extra_options={"MatMulConstBOnly": True},
        )


def _static_int8(model: onnx.ModelProto, source: Path, out: Path, calibration: NDArray[np.uint8]) -> None:
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    float_nodes = [*convolutions[:_FLOAT_CONVOLUTIONS], *_with_gemm_parts(_head(model))]
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)  # folds batch norms
        corrected = onnx.load(prepared)
        _correct_biases(corrected, set(float_nodes), calibration)
        onnx.save(corrected, prepared)
        quantize_static(
            prepared,
            out,
            _CalibrationReader(calibration),
            op_types_to_quantize=["Conv", "Add", "Clip", "Relu"],
            nodes_to_exclude=float_nodes,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            # The mean of the images' ranges: the widest range would be determined by a single outlier.
            extra_options={"CalibMovingAverage": True},
        )


def _correct_biases(model: onnx.ModelProto, float_nodes: set[str], calibration: NDArray[np.uint8]) -> None:
    """Subtract from each convolution's bias the shift of its mean output caused by rounding its weights.

    Nagel et al. 2019, arXiv 1906.04721, section 4.2, with measured input means. The rounding errors of the
    nine weights of a depthwise channel do not cancel, which causes most of such a network's loss in int8.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [
        node
        for node in model.graph.node
        if node.op_type == "Conv" and node.name not in float_nodes and len(node.input) == 3
    ]
    for node, means in zip(nodes, _input_means(model, nodes, calibration), strict=True):
        kernel, bias = (numpy_helper.to_array(weights[name]) for name in node.input[1:])
        largest = np.abs(kernel).max(axis=(1, 2, 3), keepdims=True)  # (out, 1, 1, 1)
        scale = np.where(largest > 0, largest, 1) / 127
        rounding = (np.round(kernel / scale) * scale - kernel).sum(axis=(2, 3))  # (out, in / groups)
        groups = means.reshape(-1, rounding.shape[1])  # (groups, in / groups)
        added = (rounding * np.repeat(groups, len(rounding) // len(groups), axis=0)).sum(axis=1)  # (out,)
        corrected = (bias - added).astype(np.float32)
        weights[node.input[2]].CopyFrom(numpy_helper.from_array(corrected, node.input[2]))


def _input_means(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], calibration: NDArray[np.uint8]
) -> list[NDArray[np.float64]]:
    """Average each node's input over images and positions: (channels,)."""
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    names = list(dict.fromkeys(node.input[0] for node in nodes))
    kind = onnx.TensorProto.FLOAT
    observed.graph.output.extend(onnx.helper.make_tensor_value_info(name, kind, None) for name in names)
    session = ort.InferenceSession(observed.SerializeToString(), providers=["CPUExecutionProvider"])
    sums = dict.fromkeys(names, np.float64(0))
    for start in range(0, len(calibration), _BATCH):
        values = session.run(names, {"pixels": calibration[start : start + _BATCH]})
        for name, value in zip(names, values, strict=True):
            sums[name] = sums[name] + value.mean(axis=(2, 3), dtype=np.float64).sum(axis=0)
    return [np.asarray(sums[node.input[0]] / len(calibration)) for node in nodes]


class _CalibrationReader:
    """ONNX Runtime's interface to calibration data: single images, then None."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._images = iter(pixels)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        image = next(self._images, None)
        return None if image is None else {"pixels": image[None]}


def _is_convolutional(model: onnx.ModelProto) -> bool:
    """Return True if convolutions have more weights than matrix products."""
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    counts = dict.fromkeys(_WEIGHTED, 0)
    for node in model.graph.node:
        if node.op_type in counts:
            counts[node.op_type] += sum(sizes.get(name, 0) for name in node.input)
    return counts["Conv"] > counts["MatMul"] + counts["Gemm"]


def _before_network(model: onnx.ModelProto) -> Iterator[str]:
    """Yield the nodes of the normalisation: all before the first with weights."""
    for node in model.graph.node:
        if node.op_type in _WEIGHTED:
            return
        yield node.name


def _head(model: onnx.ModelProto) -> list[str]:
    """Return the nodes from the descriptor to the output. Raises SourceError if there is no head."""
    nodes = list(model.graph.node)
    producers = {name: node for node in nodes for name in node.output}
    projection = next((node for node in nodes if "head.weight" in node.input), None)
    if projection is None:
        raise SourceError("the graph has no head.weight: it was not written by this export")
    unit = producers[projection.input[0]]  # descriptor / norm
    reached, names = {unit.input[0]}, []
    for node in nodes:  # in topological order
        if reached & set(node.input):
            reached |= set(node.output)
            names.append(node.name)
    return names


def _with_gemm_parts(nodes: list[str]) -> list[str]:
    """Add the names of the MatMul and Add that ONNX Runtime makes of a Gemm before it applies exclusions."""
    return [name + suffix for name in nodes for suffix in ("", "_MatMul", "_Add")]
