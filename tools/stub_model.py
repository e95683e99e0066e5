"""Write a model folder that takes no time to run, and small images, to measure everything but the model.

PYTHONPATH=. python tools/stub_model.py OUT
UIE_MODEL=OUT/model python -m benchmarks efficiency --data OUT --against OTHER_CHECKOUT
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from model_export.export.canonical import write_canonical
from service.inference.encoder import Encoder
from service.manifest import Manifest, Preprocessing, fingerprint, sha256_of

PX, DIM, IMAGES = 32, 64, 64


def _graph(rng: np.random.Generator) -> onnx.ModelProto:
    weights = numpy_helper.from_array(rng.normal(size=(3, DIM)).astype(np.float32), "weights")
    axes = numpy_helper.from_array(np.array([1, 2]), "axes")
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "weights"], ["projected"]),
        helper.make_node("LpNormalization", ["projected"], ["embedding"], axis=1, p=2),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", PX, PX, 3])
    embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", DIM])
    graph = helper.make_graph(nodes, "stub", [pixels], [embedding], [weights, axes])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _write_model(folder: Path) -> None:
    folder.mkdir(parents=True)
    onnx.save(_graph(np.random.default_rng(0)), folder / "model.onnx")
    preprocessing = Preprocessing(
        input_px=PX, resize="short-side", resize_px=PX, interpolation="bilinear", crop="centre", exif="ignore"
    )
    digest = sha256_of(folder / "model.onnx")
    manifest = Manifest(
        **preprocessing.model_dump(),
        schema_version=1,
        name="stub",
        dim=DIM,
        precision="fp32",
        strategy="random weights",
        mean=(0, 0, 0),
        std=(1, 1, 1),
        domains={},
        data_fingerprint="none",
        source="a random number generator",
        source_sha256="0" * 64,
        licence="CC0-1.0",
        onnx_sha256=digest,
        fingerprint=fingerprint(digest, preprocessing, "fp32"),
        exported="2026-11-30",
        tools={},
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json(indent=1))
    encoder = Encoder(folder, manifest, "cpu", threads=1)
    write_canonical(encoder.encode, preprocessing, folder)


def _write_images(root: Path) -> None:
    images, info = root / "data" / "images", root / "data" / "info_files" / "stub"
    for folder in (images, info):
        folder.mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for number in range(IMAGES):
        pixels = np.kron(
            rng.integers(0, 256, (4, 5, 3), dtype=np.uint8), np.ones((10, 10, 1), dtype=np.uint8)
        )
        rows.append({"path": f"{number}.jpg", "class_id": number})
        Image.fromarray(pixels).save(images / f"{number}.jpg")
    (info / "test.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    _write_model(Path(sys.argv[1]) / "model")
    _write_images(Path(sys.argv[1]))
