"""From what was trained to a model folder: `model.onnx`, `manifest.json`, the known answers.

A model folder is always whole, and nothing is written that does not do what torch does.
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
from model_export.export.canonical import (
    drawn_pixels,
    parity_pixels,
    parity_records,
    write_canonical,
    write_parity,
)
from model_export.export.onnx_file import save_checked
from model_export.folders import whole_model_folder
from model_export.networks.graph import EmbeddingGraph
from model_export.networks.trained import Trained
from service.manifest import Manifest, fingerprint, onnx_sha256

MIN_COSINE = 0.99999  # of fp32 ONNX Runtime against torch, on every picture tried
_DRAWN = 16
_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "pillow", "numpy")


def export_model(trained: Trained, data: Dataset | None, out: Path) -> Manifest:
    """Export, check against torch on photos of `data` (without any, on drawn pictures), write `out`.

    Raises SourceError, ParityError or WriteError, and then writes nothing.
    """
    graph = EmbeddingGraph(trained.descriptor, trained.head)
    px = trained.preprocessing.input_px
    if data and not parity_records(data):  # all of them missing, and allowed to be
        data = None
    pixels = parity_pixels(data, trained.preprocessing) if data else drawn_pixels(_DRAWN, px)
    with whole_model_folder(out) as folder:
        onnx_file = folder / "model.onnx"
        write_onnx(graph, px, onnx_file)
        wanted = describe(graph, pixels)  # (N, dim)
        check_parity(wanted, onnx_file, pixels)
        if data:
            write_parity(data, wanted, folder)
        write_canonical(lambda one: describe(graph, one), trained.preprocessing, folder)
        stamp(onnx_file, {"name": out.name, "precision": "fp32", **_said(trained)})
        manifest = _manifest(trained, onnx_file, out.name)
        write_manifest(manifest, folder)
    return manifest


def write_onnx(graph: nn.Module, input_px: int, file: Path) -> None:
    """Trace and write; the batch is dynamic."""
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
    # The exporter notes in every node where in whose source it came from; that is nobody's business.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    save_checked(model, file)


def check_parity(wanted: NDArray[np.float32], onnx_file: Path, pixels: NDArray[np.uint8]) -> float:
    """Torch's embeddings against ONNX Runtime at batch 1 and 7, and batch 7 against batch 1.

    Returns the lowest cosine; raises ParityError where it is under MIN_COSINE, or a norm is not 1.
    """
    session = ort.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])

    def by_batches_of(batch: int) -> NDArray[np.float32]:
        starts = range(0, len(pixels), batch)
        parts = [session.run(None, {"pixels": pixels[start : start + batch]})[0] for start in starts]
        return np.asarray(np.concatenate(parts))

    singles, sevens = by_batches_of(1), by_batches_of(7)
    for rows in (wanted, singles, sevens):
        if not np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-5:
            raise ParityError("the embeddings are not of unit norm")
    pairs = ((singles, wanted), (sevens, wanted), (sevens, singles))
    lowest = min(float((one * other).sum(axis=1).min()) for one, other in pairs)
    if not lowest >= MIN_COSINE:
        raise ParityError(f"torch and ONNX Runtime disagree: lowest cosine {lowest:.6f} < {MIN_COSINE}")
    return lowest


def stamp(onnx_file: Path, said: dict[str, Any]) -> None:
    """What the file says of itself away from its folder, as ONNX metadata; values as JSON where not text."""
    model = onnx.load(onnx_file, load_external_data=False)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in said.items()}
    onnx.helper.set_model_props(model, texts)
    onnx.save(model, onnx_file)


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """`manifest.json`."""
    (folder / "manifest.json").write_text(manifest.model_dump_json(indent=2, exclude_none=True) + "\n")


def made_now(onnx_file: Path) -> dict[str, Any]:
    """What a manifest says of the moment and the file."""
    return {
        "onnx_sha256": onnx_sha256(onnx_file.parent),
        "exported": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "tools": {tool: importlib.metadata.version(tool) for tool in _TOOLS},
    }


def _manifest(trained: Trained, onnx_file: Path, name: str) -> Manifest:
    made = made_now(onnx_file)
    return Manifest(
        schema_version=1,
        name=name,
        precision="fp32",
        fingerprint=fingerprint(made["onnx_sha256"], trained.preprocessing, "fp32"),
        **made,
        **_said(trained),
    )


def _said(trained: Trained) -> dict[str, Any]:
    return {
        "dim": len(trained.head.bias),
        "strategy": trained.strategy,
        "mean": trained.mean,
        "std": trained.std,
        "domains": trained.domains,
        "data_fingerprint": trained.data_fingerprint,
        "source": trained.source,
        "source_sha256": trained.source_sha256,
        "licence": trained.licence,
        **trained.preprocessing.model_dump(),
    }
