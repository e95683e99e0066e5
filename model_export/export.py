"""From a backbone and a data set to a model folder: `model.onnx`, `manifest.json`, the canonical image.

Everything is written to a folder of another name and renamed at the end: a model folder is always whole.
"""

import datetime
import hashlib
import importlib.metadata
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from benchmarks.dataset import Dataset
from model_export.backbones import Backbone, weights_sha256
from model_export.descriptors import describe, read_pixels, train_descriptors
from model_export.errors import ParityError, SourceError
from model_export.graph import EmbeddingGraph, descriptor_graph
from model_export.head import fit_pca
from service.manifest import Canonical, Manifest, fingerprint, sha256_of

DIM = 64
MIN_COSINE = 0.99999  # of fp32 ONNX Runtime against torch, on every photo tried
_PARITY_PHOTOS = 15
_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "pillow", "numpy")


def export_model(row: Backbone, data: Dataset, out: Path) -> Manifest:
    """Fit PCA-64 on the training images of all domains, export, check against torch, write `out`.

    Raises SourceError or ParityError, and then writes nothing.
    """
    if out.exists() and not (out / "manifest.json").exists():
        raise SourceError(f"{out} exists and is not a model folder: it is left alone")
    descriptor = descriptor_graph(row)
    head = fit_pca(train_descriptors(descriptor, data, row.preprocessing), DIM)
    graph = EmbeddingGraph(descriptor, head)
    unfinished = out.with_name(out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        onnx_file = unfinished / "model.onnx"
        write_onnx(graph, row, onnx_file)
        check_parity(graph, onnx_file, parity_photos(data, row))
        manifest = _manifest(row, data, onnx_file, out.name)
        (unfinished / "manifest.json").write_text(manifest.model_dump_json(indent=2) + "\n")
        _write_canonical(graph, row, unfinished)
        _replace(out, unfinished)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return manifest


def _replace(out: Path, finished: Path) -> None:
    """The old model goes when the new one is in its place, and not before."""
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    finished.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def write_onnx(graph: nn.Module, row: Backbone, file: Path) -> None:
    """Trace and write one file, weights inside; the batch is dynamic."""
    px = row.preprocessing.input_px
    example = torch.zeros((2, px, px, 3), dtype=torch.uint8)  # a batch of 1 would be specialised
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
    onnx.checker.check_model(model)
    onnx.save(model, file)


def check_parity(graph: nn.Module, onnx_file: Path, pixels: NDArray[np.uint8]) -> float:
    """Torch against ONNX Runtime at batch 1 and 7, and batch 7 against batch 1.

    Returns the lowest cosine; raises ParityError where it is under MIN_COSINE, or a norm is not 1.
    """
    wanted = describe(graph, pixels)  # (N, dim), unit norm
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


def parity_photos(data: Dataset, row: Backbone) -> NDArray[np.uint8]:
    """Real pictures of all domains, in turn: uint8 (N, H, W, 3)."""
    domains = [data.records(domain, "train") for domain in data.domains]
    turns = [rows[turn] for turn in range(_PARITY_PHOTOS) for rows in domains if turn < len(rows)]
    files = [data.image(record) for record in turns[:_PARITY_PHOTOS]]
    return np.stack([read_pixels(file, row.preprocessing) for file in files])


def canonical_picture() -> Image.Image:
    """A picture of our own making, 320 x 256: shapes and colours, so that no licence is asked."""
    y, x = np.mgrid[0:256, 0:320].astype(np.float64)
    red = 127 + 127 * np.sin(x / 17) * np.cos(y / 29)
    green = np.where((x - 200) ** 2 + (y - 120) ** 2 < 70**2, 220, x * 255 / 319)
    blue = np.where((x // 40 + y // 32) % 2 == 0, 40, y * 255 / 255)
    return Image.fromarray(np.stack([red, green, blue], axis=-1).round().astype(np.uint8))


def _write_canonical(graph: nn.Module, row: Backbone, folder: Path) -> None:
    file = folder / "canonical.png"
    canonical_picture().save(file, optimize=True)
    (embedding,) = describe(graph, np.stack([read_pixels(file, row.preprocessing)]))
    said = Canonical(
        image_sha256=hashlib.sha256(file.read_bytes()).hexdigest(), embedding=tuple(embedding.tolist())
    )
    (folder / "canonical.json").write_text(json.dumps(said.model_dump(), indent=1) + "\n")


def _manifest(row: Backbone, data: Dataset, onnx_file: Path, name: str) -> Manifest:
    onnx_sha256 = sha256_of(onnx_file)
    counts = {
        domain: len({one for record in data.records(domain, "train") for one in record.class_ids})
        for domain in data.domains
    }
    return Manifest(
        schema_version=1,
        name=name,
        dim=DIM,
        precision="fp32",
        strategy=f"frozen backbone, PCA to {DIM} over all domains, equally weighted",
        mean=row.mean,
        std=row.std,
        domains=counts,
        data_fingerprint=data.fingerprint,
        source=row.source,
        source_sha256=weights_sha256(row),
        licence=row.licence,
        onnx_sha256=onnx_sha256,
        fingerprint=fingerprint(onnx_sha256, row.preprocessing, "fp32"),
        exported=datetime.datetime.now(datetime.UTC).date().isoformat(),
        tools={tool: importlib.metadata.version(tool) for tool in _TOOLS},
        **row.preprocessing.model_dump(),
    )
