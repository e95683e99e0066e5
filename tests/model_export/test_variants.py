"""fp16 and int8 variants of tiny models: the quantised nodes, the float nodes, the manifest."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from rich.console import Console
from torch import Tensor, nn

from benchmarks.datasets.dataset import Dataset
from model_export.errors import SourceError, WriteError
from model_export.export import quantise
from model_export.export.canonical import generated_pixels
from model_export.export.fp32 import export_model, write_onnx
from model_export.export.quantise import to_fp16, to_int8
from model_export.export.variants import calibration_pixels, export_variant
from model_export.networks.graph import EmbeddingGraph
from service.errors import ManifestError
from service.inference.encoder import Encoder
from service.inference.images import decode
from service.manifest import WEIGHTS_FILE, load_canonical, load_manifest
from tests.support.tiny import PX, tiny_data, tiny_trained

QUIET = Console(quiet=True)


def embed(folder: Path, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return Encoder(folder, load_manifest(folder), "cpu", 1).encode(pixels)


def weight_types(folder: Path) -> Counter[str]:
    """Count the values of the graph's constants by type."""
    counts: Counter[str] = Counter()
    for tensor in onnx.load(folder / "model.onnx").graph.initializer:
        counts[str(numpy_helper.to_array(tensor).dtype)] += int(np.prod(tensor.dims))
    return counts


def test_weights_too_large_for_one_file_are_separate(
    tiny_models: Path, tiny_set: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_export.export.fp32._LARGEST_BYTES", 1000)  # instead of protobuf's 2 GiB
    large, single = tmp_path / "large", tiny_models / "vit"
    manifest = export_model(tiny_trained("vit"), tiny_set, large)
    names, single_names = ({file.name for file in folder.iterdir()} for folder in (large, single))
    assert names - single_names == {WEIGHTS_FILE}
    pixels = generated_pixels(5, PX)
    assert np.array_equal(embed(large, pixels), embed(single, pixels))
    for precision in ("fp16", "int8"):
        variant = export_variant(large, precision, tiny_set, tmp_path / precision, QUIET)
        assert (embed(tmp_path / precision, pixels) * embed(large, pixels)).sum(axis=1).min() > 0.9
        assert variant == load_manifest(tmp_path / precision)
    assert manifest == load_manifest(large)
    weights = bytearray((large / WEIGHTS_FILE).read_bytes())
    weights[0] ^= 1
    (large / WEIGHTS_FILE).write_bytes(weights)
    with pytest.raises(ManifestError, match="is not the file"):
        load_manifest(large)


@pytest.mark.parametrize("kind", ["conv", "vit"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_variant_is_close_and_records_its_accuracy(
    tiny_models: Path, tiny_set: Dataset, tmp_path: Path, kind: str, precision: Literal["fp16", "int8"]
) -> None:
    base, out = tiny_models / kind, tmp_path / "variant"
    manifest = export_variant(base, precision, tiny_set, out, QUIET)
    assert manifest == load_manifest(out)  # checks hashes and fingerprint
    pixels = generated_pixels(20, PX)
    cosines = (embed(base, pixels) * embed(out, pixels)).sum(axis=1)
    assert cosines.min() > {"fp16": 0.999, "int8": 0.9}[precision]
    assert not np.array_equal(embed(base, pixels), embed(out, pixels))
    np.testing.assert_allclose(np.linalg.norm(embed(out, pixels), axis=1), 1, atol=1e-6)
    counts = weight_types(out)
    assert counts[{"fp16": "float16", "int8": "int8"}[precision]] > sum(counts.values()) / 2
    assert manifest.variant_of == load_manifest(base).fingerprint != manifest.fingerprint
    assert manifest.accuracy
    for scores in (manifest.accuracy.fp32, manifest.accuracy.scores(precision)):
        assert set(scores) == {"animals", "plants", "mean"}
        for measure in ("R@1", "mMP@5"):
            values = [scores["animals"][measure], scores["plants"][measure]]
            assert scores["mean"][measure] == pytest.approx(np.mean(values))
    image, canonical = load_canonical(out)
    embedding = embed(out, decode(image, manifest.preprocessing, 10**6)[None])[0]
    np.testing.assert_allclose(embedding, canonical.embedding, atol=1e-6)
    assert (out / "parity.json").read_bytes() == (base / "parity.json").read_bytes()


def test_int8_is_dynamic_for_matrix_products_and_static_for_convolutions(
    tiny_models: Path, tiny_set: Dataset, tmp_path: Path
) -> None:
    node_types = {}
    for kind in ("conv", "vit"):
        export_variant(tiny_models / kind, "int8", tiny_set, tmp_path / kind, QUIET)
        nodes = onnx.load(tmp_path / kind / "model.onnx").graph.node
        node_types[kind] = Counter(node.op_type for node in nodes)
        producers = {name: node.op_type for node in nodes for name in node.output}
        head = [node for node in nodes if node.op_type in ("Gemm", "MatMul", "MatMulInteger")][-1]
        assert head.op_type != "MatMulInteger"
        assert producers[head.input[0]] == "Div"  # the head's input and weights stay in float
        assert producers.get(head.input[1]) in (None, "Transpose")
        if kind == "conv":
            kernels = [producers.get(node.input[1]) for node in nodes if node.op_type == "Conv"]
            assert kernels == [None, None, None, "DequantizeLinear", "DequantizeLinear"]
    assert node_types["vit"]["DynamicQuantizeLinear"]
    assert node_types["vit"]["MatMulInteger"]
    assert not node_types["conv"]["DynamicQuantizeLinear"]


def test_bias_correction_removes_the_shift_of_rounded_weights(
    tiny_models: Path, tiny_set: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference is the same quantisation without the correction, on the calibration images."""
    pixels = calibration_pixels(tiny_set, load_manifest(tiny_models / "conv").preprocessing)
    expected = embed(tiny_models / "conv", pixels)
    distance = {}
    for name in ("corrected", "plain"):
        if name == "plain":
            monkeypatch.setattr(quantise, "_correct_biases", lambda *_: None)
        out = Path(shutil.copytree(tiny_models / "conv", tmp_path / name))
        to_int8(tiny_models / "conv" / "model.onnx", out / "model.onnx", pixels)
        actual = Encoder(out, load_manifest(tiny_models / "conv"), "cpu", 1).encode(pixels)
        distance[name] = float(np.linalg.norm((actual - expected).mean(axis=0)))
    assert distance["corrected"] < 0.8 * distance["plain"]


def test_calibration_alternates_between_domains(tiny_set: Dataset) -> None:
    preprocessing = tiny_trained("conv").preprocessing
    pixels = calibration_pixels(tiny_set, preprocessing)
    assert pixels.shape == (12 + 9, PX, PX, 3)  # plants has nine
    firsts = [
        tiny_set.image(tiny_set.records(domain, "train")[0]).read_bytes() for domain in tiny_set.domains
    ]
    np.testing.assert_array_equal(pixels[[0, 1]], [decode(image, preprocessing, 10**6) for image in firsts])


class _QuickGelu(nn.Module):
    """A matrix product followed by CLIP's activation: (N, 3, 32, 32) -> (N, 24)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3 * PX * PX, 24), nn.Linear(24, 24)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(images.flatten(1))
        out: Tensor = self.second(hidden * torch.sigmoid(1.702 * hidden))
        return out


def test_mul_nodes_stay_in_float32(tmp_path: Path) -> None:
    """ONNX Runtime 1.32 crashes on a Mul of float16 on a CPU, in a graph as large as CLIP's."""
    trained = tiny_trained("conv")
    descriptor = nn.Sequential(trained.descriptor[0], _QuickGelu())  # type: ignore[index]
    write_onnx(EmbeddingGraph(descriptor, trained.head), PX, tmp_path / "model.onnx")
    to_fp16(tmp_path / "model.onnx", tmp_path / "half.onnx")
    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "half.onnx")).graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    outputs = {
        kind: {types[node.output[0]] for node in graph.node if node.op_type == kind}
        for kind in ("Mul", "Gemm")
    }
    assert outputs["Mul"] == {onnx.TensorProto.FLOAT}
    assert onnx.TensorProto.FLOAT16 in outputs["Gemm"]


def test_variant_needs_an_fp32_base_and_all_images(
    tiny_models: Path, tiny_set: Dataset, tmp_path: Path
) -> None:
    export_variant(tiny_models / "conv", "fp16", tiny_set, tmp_path / "half", QUIET)
    with pytest.raises(SourceError, match="is fp16"):
        export_variant(tmp_path / "half", "int8", tiny_set, tmp_path / "out", QUIET)
    with pytest.raises(SourceError, match="separate folder"):
        export_variant(tiny_models / "conv", "fp16", tiny_set, tiny_models / "vit" / ".." / "conv", QUIET)
    assert load_manifest(tiny_models / "conv").precision == "fp32"
    incomplete = tiny_data(tmp_path / "data")
    missing = incomplete.image(incomplete.records("plants", "test")[3])
    missing.unlink()
    with pytest.raises(SourceError, match=f"1 images .* missing: {missing}"):
        export_variant(tiny_models / "conv", "int8", incomplete, tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["plants", "animals/index"])
def test_missing_images_may_be_ignored(tiny_models: Path, tmp_path: Path, missing: str) -> None:
    root = tiny_data(tmp_path / "data").root
    for record in Dataset(root).records("plants", "test") + Dataset(root).records("animals", "index"):
        if record.id.startswith(missing):
            Dataset(root).image(record).unlink()
    present = Dataset(root, present_only=True)
    manifest = export_variant(tiny_models / "conv", "int8", present, tmp_path / "out", QUIET)
    assert manifest.accuracy
    scored = {"plants": {"animals", "mean"}, "animals/index": {"animals", "plants", "mean"}}
    assert set(manifest.accuracy.scores("int8")) == scored[missing]
    for domain in ("plants", "animals"):
        for record in present.records(domain, "test"):
            present.image(record).unlink()
    with pytest.raises(SourceError, match="no test queries"):
        export_variant(
            tiny_models / "conv", "int8", Dataset(root, present_only=True), tmp_path / "none", QUIET
        )


def test_variant_that_cannot_be_written_leaves_nothing(
    tiny_models: Path, tiny_set: Dataset, tmp_path: Path, full_disk: Callable[[str], None]
) -> None:
    full_disk("manifest.json")
    with pytest.raises(WriteError, match="No space left"):
        export_variant(tiny_models / "conv", "fp16", tiny_set, tmp_path / "out", QUIET)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left_out", ["accuracy", "variant_of"])
def test_variant_without_its_accuracy_is_invalid(
    tiny_models: Path, tiny_set: Dataset, tmp_path: Path, left_out: str
) -> None:
    export_variant(tiny_models / "conv", "fp16", tiny_set, tmp_path / "half", QUIET)
    file = tmp_path / "half" / "manifest.json"
    body = json.loads(file.read_text())
    del body[left_out]
    file.write_text(json.dumps(body))
    with pytest.raises(ManifestError, match="accuracy"):
        load_manifest(tmp_path / "half")
