"""fp16 and int8 made of tiny models: what is quantised, what stays, and what the manifest must say."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
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
from model_export.export import quantise, variants
from model_export.export.canonical import drawn_pixels
from model_export.export.fp32 import export_model, write_onnx
from model_export.export.quantise import to_fp16, to_int8
from model_export.export.variants import calibration_pixels, export_variant
from service.errors import ManifestError
from service.inference.encoder import Encoder
from service.inference.images import decode
from service.manifest import WEIGHTS_FILE, load_canonical, load_manifest
from tests.support.tiny import PX, tiny_data, tiny_trained

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Two domains."""
    return tiny_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def bases(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with fp32 models named `conv` and `vit`."""
    folder = tmp_path_factory.mktemp("models")
    for kind in ("conv", "vit"):
        export_model(tiny_trained(kind), data, folder / kind)
    return folder


def embed(folder: Path, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return Encoder(folder, load_manifest(folder), "cpu", 1).encode(pixels)


def weight_types(folder: Path) -> Counter[str]:
    """How many numbers the graph's constants hold, by type."""
    held: Counter[str] = Counter()
    for one in onnx.load(folder / "model.onnx").graph.initializer:
        held[str(numpy_helper.to_array(one).dtype)] += int(np.prod(one.dims))
    return held


def test_weights_too_large_for_one_file_lie_beside_the_graph(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_model(tiny_trained("vit"), data, tmp_path / "whole")
    monkeypatch.setattr("model_export.export.onnx_file._LARGEST_BYTES", 1000)  # protobuf's is 2 GiB
    card = export_model(tiny_trained("vit"), data, tmp_path / "large")
    assert {one.name for one in (tmp_path / "large").iterdir()} - {
        one.name for one in (tmp_path / "whole").iterdir()
    } == {WEIGHTS_FILE}
    pixels = drawn_pixels(5, PX)
    assert np.array_equal(embed(tmp_path / "large", pixels), embed(tmp_path / "whole", pixels))
    for precision in ("fp16", "int8"):
        made = export_variant(tmp_path / "large", precision, data, tmp_path / precision, QUIET)
        assert (embed(tmp_path / precision, pixels) * embed(tmp_path / "large", pixels)).sum(
            axis=1
        ).min() > 0.9
        assert made == load_manifest(tmp_path / precision)
    assert card == load_manifest(tmp_path / "large")
    weights = bytearray((tmp_path / "large" / WEIGHTS_FILE).read_bytes())
    weights[0] ^= 1
    (tmp_path / "large" / WEIGHTS_FILE).write_bytes(weights)
    with pytest.raises(ManifestError, match="is not the file"):
        load_manifest(tmp_path / "large")


@pytest.mark.parametrize("kind", ["conv", "vit"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_variant_is_close_and_says_what_it_costs(
    bases: Path, data: Dataset, tmp_path: Path, kind: str, precision: Literal["fp16", "int8"]
) -> None:
    base, out = bases / kind, tmp_path / "variant"
    card = export_variant(base, precision, data, out, QUIET)
    assert card == load_manifest(out)  # the service reads it; hashes and fingerprint agree
    pixels = drawn_pixels(20, PX)
    cosines = (embed(base, pixels) * embed(out, pixels)).sum(axis=1)
    assert cosines.min() > {"fp16": 0.999, "int8": 0.9}[precision]
    assert not np.array_equal(embed(base, pixels), embed(out, pixels))
    np.testing.assert_allclose(np.linalg.norm(embed(out, pixels), axis=1), 1, atol=1e-6)
    held = weight_types(out)
    assert held[{"fp16": "float16", "int8": "int8"}[precision]] > sum(held.values()) / 2
    assert card.variant_of == load_manifest(base).fingerprint != card.fingerprint
    assert card.accuracy
    for scores in (card.accuracy.fp32, card.accuracy.scores(precision)):
        assert set(scores) == {"animals", "plants", "mean"}
        for measure in ("R@1", "mMP@5"):
            of_domains = [scores["animals"][measure], scores["plants"][measure]]
            assert scores["mean"][measure] == pytest.approx(np.mean(of_domains))
    image, canonical = load_canonical(out)
    own = embed(out, decode(image, card.preprocessing, 10**6)[None])[0]
    np.testing.assert_allclose(own, canonical.embedding, atol=1e-6)
    assert (out / "parity.json").read_bytes() == (base / "parity.json").read_bytes()


def test_int8_is_dynamic_for_matrix_products_and_static_for_convolutions(
    bases: Path, data: Dataset, tmp_path: Path
) -> None:
    found = {}
    for kind in ("conv", "vit"):
        export_variant(bases / kind, "int8", data, tmp_path / kind, QUIET)
        nodes = onnx.load(tmp_path / kind / "model.onnx").graph.node
        found[kind] = Counter(node.op_type for node in nodes)
        made_by = {name: node.op_type for node in nodes for name in node.output}
        head = [node for node in nodes if node.op_type in ("Gemm", "MatMul", "MatMulInteger")][-1]
        assert head.op_type != "MatMulInteger"
        assert made_by[head.input[0]] == "Div"  # the head stays: its input and its weights as they were
        assert made_by.get(head.input[1]) in (None, "Transpose")
        if kind == "conv":
            kernels = [made_by.get(node.input[1]) for node in nodes if node.op_type == "Conv"]
            assert kernels == [None, None, None, "DequantizeLinear", "DequantizeLinear"]
    assert found["vit"]["DynamicQuantizeLinear"]
    assert found["vit"]["MatMulInteger"]
    assert not found["conv"]["DynamicQuantizeLinear"]


def test_rounding_the_weights_does_not_shift_what_a_convolution_gives(
    bases: Path, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the same quantisation without correction, on the pictures that it was calibrated with."""
    pixels = calibration_pixels(data, load_manifest(bases / "conv").preprocessing)
    wanted = embed(bases / "conv", pixels)
    far = {}
    for name in ("corrected", "plain"):
        if name == "plain":
            monkeypatch.setattr(quantise, "_correct_biases", lambda *_: None)
        out = Path(shutil.copytree(bases / "conv", tmp_path / name))
        to_int8(bases / "conv" / "model.onnx", out / "model.onnx", pixels)
        got = Encoder(out, load_manifest(bases / "conv"), "cpu", 1).encode(pixels)
        far[name] = float(np.linalg.norm((got - wanted).mean(axis=0)))
    assert far["corrected"] < 0.8 * far["plain"]


def test_calibration_takes_as_many_of_each_domain(data: Dataset) -> None:
    preprocessing = tiny_trained("conv").preprocessing
    pixels = calibration_pixels(data, preprocessing)
    assert pixels.shape == (12 + 9, PX, PX, 3)  # plants has nine; the domains take turns
    firsts = [data.image(data.records(domain, "train")[0]).read_bytes() for domain in data.domains]
    np.testing.assert_array_equal(pixels[[0, 1]], [decode(one, preprocessing, 10**6) for one in firsts])


class _QuickGelu(nn.Module):
    """CLIP's activation after a matrix product: (N, 3, 32, 32) -> (N, 24)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3 * PX * PX, 24), nn.Linear(24, 24)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(images.flatten(1))
        out: Tensor = self.second(hidden * torch.sigmoid(1.702 * hidden))
        return out


def test_products_stay_out_of_float16(tmp_path: Path) -> None:
    """ONNX Runtime 1.32 dies on them on a CPU, in a graph as large as CLIP's."""
    from model_export.networks.graph import EmbeddingGraph

    trained = tiny_trained("conv")
    descriptor = nn.Sequential(trained.descriptor[0], _QuickGelu())  # type: ignore[index]
    write_onnx(EmbeddingGraph(descriptor, trained.head), PX, tmp_path / "model.onnx")
    to_fp16(tmp_path / "model.onnx", tmp_path / "half.onnx")
    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "half.onnx")).graph
    types = {one.name: one.type.tensor_type.elem_type for one in graph.value_info}
    made = {kind: {types[n.output[0]] for n in graph.node if n.op_type == kind} for kind in ("Mul", "Gemm")}
    assert made["Mul"] == {onnx.TensorProto.FLOAT}
    assert onnx.TensorProto.FLOAT16 in made["Gemm"]


def test_a_variant_is_made_from_fp32_of_our_own_with_all_images(
    bases: Path, data: Dataset, tmp_path: Path
) -> None:
    export_variant(bases / "conv", "fp16", data, tmp_path / "half", QUIET)
    with pytest.raises(SourceError, match="is fp16 itself"):
        export_variant(tmp_path / "half", "int8", data, tmp_path / "out", QUIET)
    with pytest.raises(SourceError, match="a folder of its own"):
        export_variant(bases / "conv", "fp16", data, bases / "vit" / ".." / "conv", QUIET)
    assert load_manifest(bases / "conv").precision == "fp32"
    holed = tiny_data(tmp_path / "data")
    gone = holed.image(holed.records("plants", "test")[3])
    gone.unlink()
    with pytest.raises(SourceError, match=f"1 images .* not there: {gone}"):
        export_variant(bases / "conv", "int8", holed, tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("gone", ["plants", "animals/index"])
def test_a_variant_is_made_without_the_images_that_are_missing(
    bases: Path, tmp_path: Path, gone: str
) -> None:
    root = tiny_data(tmp_path / "data").root
    for record in Dataset(root).records("plants", "test") + Dataset(root).records("animals", "index"):
        if record.id.startswith(gone):
            Dataset(root).image(record).unlink()
    present = Dataset(root, present_only=True)
    card = export_variant(bases / "conv", "int8", present, tmp_path / "out", QUIET)
    assert card.accuracy
    left = {"plants": {"animals", "mean"}, "animals/index": {"animals", "plants", "mean"}}
    assert set(card.accuracy.scores("int8")) == left[gone]
    for domain in ("plants", "animals"):
        for record in present.records(domain, "test"):
            present.image(record).unlink()
    with pytest.raises(SourceError, match="no test queries"):
        export_variant(bases / "conv", "int8", Dataset(root, present_only=True), tmp_path / "none", QUIET)


def test_a_variant_that_cannot_be_written_leaves_nothing(
    bases: Path, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: Sequence[object]) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(variants, "write_manifest", full_disk)
    with pytest.raises(WriteError, match="No space left"):
        export_variant(bases / "conv", "fp16", data, tmp_path / "out", QUIET)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left_out", ["accuracy", "variant_of"])
def test_a_variant_without_its_accuracy_is_no_model(
    bases: Path, data: Dataset, tmp_path: Path, left_out: str
) -> None:
    export_variant(bases / "conv", "fp16", data, tmp_path / "half", QUIET)
    file = tmp_path / "half" / "manifest.json"
    said = json.loads(file.read_text())
    del said[left_out]
    file.write_text(json.dumps(said))
    with pytest.raises(ManifestError, match="precision fp16 needs variant_of and its accuracy"):
        load_manifest(tmp_path / "half")
