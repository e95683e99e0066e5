"""Export of a trained model to a model folder: `model.onnx`, `manifest.json`, reference embeddings.

The folder is written atomically, and only if ONNX Runtime reproduces torch.
"""

import datetime
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.datasets.dataset import Dataset
from model_export.descriptors.images import describe
from model_export.errors import ParityError
from model_export.export import canonical
from model_export.folders import atomic_model_folder
from model_export.networks.graph import EmbeddingGraph, Trained
from service.manifest import WEIGHTS_FILE, Manifest, Precision, Preprocessing, fingerprint, onnx_sha256

MIN_COSINE = 0.99999  # of fp32 ONNX Runtime against torch, for every image compared
_LARGEST_BYTES = 2**31 - 2**24  # protobuf's limit, less a margin for everything that is not a weight
_GENERATED = 16
_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "pillow", "numpy")
_COPIED = ("strategy", "mean", "std", "domains", "data_fingerprint", "source", "source_sha256", "licence")


def export_model(trained: Trained, data: Dataset | None, out: Path) -> Manifest:
    """Write the model folder `out`, compared with torch on photos of `data`, or on generated images.

    Raises SourceError, ParityError or WriteError; `out` is then unchanged.
    """
    graph = EmbeddingGraph(trained.descriptor, trained.head)
    px = trained.preprocessing.input_px
    if data and not canonical.parity_records(data):  # all images are missing, and allowed to be
        data = None
    pixels = (
        canonical.parity_pixels(data, trained.preprocessing)
        if data
        else canonical.generated_pixels(_GENERATED, px)
    )
    with atomic_model_folder(out) as folder:
        onnx_file = folder / "model.onnx"
        write_onnx(graph, px, onnx_file)
        embeddings = describe(graph, pixels)  # (N, dim)
        check_parity(embeddings, onnx_file, pixels)
        if data:
            canonical.write_parity(data, embeddings, folder)
        canonical.write_canonical(lambda image: describe(graph, image), trained.preprocessing, folder)
        metadata = {
            "name": out.name,
            "precision": "fp32",
            "dim": len(trained.head.bias),
            **{field: getattr(trained, field) for field in _COPIED},
            **trained.preprocessing.model_dump(),
        }
        write_metadata(onnx_file, metadata)
        manifest = Manifest(
            schema_version=1, **metadata, **file_fields(folder, trained.preprocessing, "fp32")
        )
        write_manifest(manifest, folder)
    return manifest


def write_onnx(graph: nn.Module, input_px: int, file: Path) -> None:
    """Trace the graph with a dynamic batch and write it."""
    example = torch.zeros((2, input_px, input_px, 3), dtype=torch.uint8)  # a batch of 1 would be specialised
    program = torch.onnx.export(
        graph,
        (example,),
        input_names=["pixels"],
        output_names=["embedding"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    # The exporter adds source locations, with local paths, to every node.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    save_checked(model, file)


def check_parity(expected: NDArray[np.float32], onnx_file: Path, pixels: NDArray[np.uint8]) -> float:
    """Compare torch's embeddings with ONNX Runtime at batch 1 and 7, and batch 7 with batch 1.

    Returns the lowest cosine. Raises ParityError if it is below MIN_COSINE, or a norm is not 1.
    """
    session = ort.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])

    def in_batches(size: int) -> NDArray[np.float32]:
        starts = range(0, len(pixels), size)
        parts = [session.run(None, {"pixels": pixels[start : start + size]})[0] for start in starts]
        return np.asarray(np.concatenate(parts))

    singles, sevens = in_batches(1), in_batches(7)
    for rows in (expected, singles, sevens):
        if not np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-5:
            raise ParityError("the embeddings are not of unit norm")
    pairs = ((singles, expected), (sevens, expected), (sevens, singles))
    lowest = min(float((left * right).sum(axis=1).min()) for left, right in pairs)
    if not lowest >= MIN_COSINE:
        raise ParityError(f"torch and ONNX Runtime disagree: lowest cosine {lowest:.6f} < {MIN_COSINE}")
    return lowest


def write_metadata(onnx_file: Path, metadata: dict[str, Any]) -> None:
    """Store metadata in the ONNX file, so that it identifies itself outside its folder.

    Values that are not strings are stored as JSON.
    """
    model = onnx.load(onnx_file, load_external_data=False)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    onnx.helper.set_model_props(model, texts)
    onnx.save(model, onnx_file)


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write `manifest.json`."""
    (folder / "manifest.json").write_text(manifest.model_dump_json(indent=2, exclude_none=True) + "\n")


def file_fields(folder: Path, preprocessing: Preprocessing, precision: Precision) -> dict[str, Any]:
    """Return the manifest's fields that depend on the ONNX file and the time of the export."""
    sha256 = onnx_sha256(folder)
    return {
        "onnx_sha256": sha256,
        "fingerprint": fingerprint(sha256, preprocessing, precision),
        "exported": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "tools": {tool: importlib.metadata.version(tool) for tool in _TOOLS},
    }


def save_checked(model: onnx.ModelProto, file: Path) -> None:
    """Write `file`, with WEIGHTS_FILE beside it if the weights are too large, and run ONNX's checker."""
    weights_bytes = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    onnx.save(model, file, save_as_external_data=weights_bytes > _LARGEST_BYTES, location=WEIGHTS_FILE)
    onnx.checker.check_model(file, full_check=True)
