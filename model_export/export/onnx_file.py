"""ONNX files: a single file, or separate weights if protobuf's limit of 2 GiB is exceeded."""

from pathlib import Path

import onnx

from service.manifest import WEIGHTS_FILE

_LARGEST_BYTES = 2**31 - 2**24  # protobuf's limit, less a margin for everything that is not a weight


def save_checked(model: onnx.ModelProto, file: Path) -> None:
    """Write `file`, with WEIGHTS_FILE beside it if the weights are too large, and run ONNX's checker."""
    weights_bytes = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    onnx.save(model, file, save_as_external_data=weights_bytes > _LARGEST_BYTES, location=WEIGHTS_FILE)
    onnx.checker.check_model(file, full_check=True)
