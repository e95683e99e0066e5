"""Writing an ONNX graph: one file, or where protobuf's 2 GiB are not enough, its weights beside it."""

from pathlib import Path

import onnx

from service.manifest import WEIGHTS_FILE

_LARGEST_BYTES = 2**31 - 2**24  # protobuf's limit, less room for everything that is not a weight


def save_checked(model: onnx.ModelProto, file: Path) -> None:
    """Write `file`, and WEIGHTS_FILE in its folder if it must be; then have ONNX check what was written."""
    weights_bytes = sum(len(one.raw_data) for one in model.graph.initializer)
    onnx.save(model, file, save_as_external_data=weights_bytes > _LARGEST_BYTES, location=WEIGHTS_FILE)
    onnx.checker.check_model(file, full_check=True)


def load_with_shapes(file: Path) -> onnx.ModelProto:
    """A graph with its weights and the shapes of all its values; of any size."""
    model = onnx.shape_inference.infer_shapes(onnx.load(file, load_external_data=False))
    onnx.load_external_data_for_model(model, str(file.parent))
    return model
