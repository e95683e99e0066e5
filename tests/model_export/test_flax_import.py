"""Released Flax checkpoints do in torch what they do in Flax; what is not one is refused by name."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.serialization
import numpy as np
import optax
import pytest
import torch
from flax.training.train_state import TrainState
from numpy.typing import NDArray
from torch import nn

from model_export.checkpoints.flax import UNED_CLASSES, ImportedModel, import_checkpoint
from model_export.networks.backbones import BACKBONES
from tests.support.flax_models import Clip, Vit, dense, random_params
from tests.support.pictures import unit

SMALL = {"width": 64, "depth": 2, "heads": 4, "patch": 8}
PX = 32
HEADS = {"UnED": "projection", "UDON": "universal_student_projection_domain_0"}
Params = dict[str, Any]


def whole_tree(backbone: Params, width: int, method: str, dim: int = 64) -> Params:
    """With the head, and with what serves training alone, as the reference code names it."""
    rng = np.random.default_rng(1)
    classes = dict(enumerate(UNED_CLASSES.values()))
    if method == "UnED":
        used: Params = {"projection": dense(rng, width, dim)}
        unused = {f"output_projection_{at}": {"kernel": np.ones((1, n))} for at, n in classes.items()}
        return backbone | used | unused
    used = {HEADS["UDON"]: {"Dense_0": dense(rng, width, dim)}}
    for at, count in classes.items():
        used[f"teacher_projection_domain_{at}"] = {"Dense_0": dense(rng, width, 256)}
        used[f"teacher_output_projection_{at}"] = {"kernel": np.ones((1, count))}
        used[f"universal_student_output_projection_{at}"] = {"kernel": np.ones((1, count))}
    return backbone | used


def save(tree: Params, file: Path, **state: Any) -> Path:
    file.write_bytes(flax.serialization.msgpack_serialize({"params": tree, **state}))
    return file


def images_of(px: int) -> NDArray[np.float32]:
    return np.random.default_rng(2).normal(size=(3, px, px, 3)).astype(np.float32)


def by_torch(model: ImportedModel, images: NDArray[np.float32]) -> NDArray[np.float64]:
    with torch.inference_mode():
        found = model.network(torch.from_numpy(images).permute(0, 3, 1, 2))
    return np.asarray(found.numpy(), dtype=np.float64)


def by_flax(network: Any, params: Params, images: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(network.apply({"params": params}, images), dtype=np.float64)


@pytest.fixture(scope="module", params=[Clip, Vit], ids=["CLIP", "ImageNet"])
def small(request: pytest.FixtureRequest) -> tuple[Any, Params]:
    """A network in Flax and its parameters."""
    network = request.param(**SMALL)
    return network, random_params(network, PX, seed=0)


@pytest.fixture
def clip_tree() -> Params:
    """A small, whole CLIP checkpoint, to be spoilt."""
    return whole_tree(random_params(Clip(**SMALL), PX, seed=0), SMALL["width"], "UnED")


@pytest.mark.parametrize("method", ["UnED", "UDON"])
def test_embeddings_are_those_of_flax(method: str, small: tuple[Any, Params], tmp_path: Path) -> None:
    network, params = small
    tree = whole_tree(params, 64, method, dim=48)
    model = import_checkpoint(save(tree, tmp_path / "named_after_something_else", global_step=7))
    images = images_of(PX)
    wanted = by_flax(network, params, images)  # (3, 64)
    got = by_torch(model, images)
    assert np.abs(got - wanted).max() < 1e-5
    layer = tree[HEADS[method]].get("Dense_0", tree[HEADS[method]])
    embeddings = unit(np.asarray(unit(wanted) @ layer["kernel"] + layer["bias"], dtype=np.float64))
    ours = unit(np.asarray(unit(got) @ model.head.weight.T + model.head.bias, dtype=np.float64))
    assert embeddings.shape == (3, 48)
    assert np.abs(ours - embeddings).max() < 1e-6
    assert model.method == method
    assert method in model.strategy
    assert model.domains == UNED_CLASSES


@pytest.mark.parametrize(
    ("kind", "width", "heads"), [(Clip, 768, 12), (Vit, 384, 6)], ids=["CLIP ViT-B/16", "ImageNet ViT-S/16"]
)
def test_at_full_size(kind: Any, width: int, heads: int, tmp_path: Path) -> None:
    """As released: 12 blocks, 224 px; the largest difference seen is 5e-6."""
    network = kind(width=width, depth=12, heads=heads, patch=16)
    params = random_params(network, 224, seed=0)
    model = import_checkpoint(save(whole_tree(params, width, "UnED"), tmp_path / "checkpoint"))
    images = images_of(224)
    assert np.abs(by_torch(model, images) - by_flax(network, params, images)).max() < 5e-5
    assert model.preprocessing.input_px == model.preprocessing.resize_px == 224
    row = BACKBONES["clip-vit-b16" if kind is Clip else "imagenet-vit-s16"]
    assert (model.mean, model.std) == (row.mean, row.std)


def _other_activation(network: nn.Module) -> None:
    for block in network.modules():
        for name in dict(block.named_children()).keys() & {"gelu", "act"}:  # of open_clip and timm
            setattr(block, name, nn.GELU())


def _other_eps(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6 if module.eps == 1e-5 else 1e-5


@pytest.mark.parametrize("change", [_other_activation, _other_eps])
def test_activation_and_eps_matter(
    change: Callable[[nn.Module], None], small: tuple[Any, Params], tmp_path: Path
) -> None:
    """Plain GELU instead of QuickGELU or tanh's, or the other library's eps, would be noticed."""
    network, params = small
    model = import_checkpoint(save(whole_tree(params, 64, "UnED"), tmp_path / "checkpoint"))
    images = images_of(PX)
    wanted = by_flax(network, params, images)
    assert np.abs(by_torch(model, images) - wanted).max() < 1e-5
    change(model.network)
    assert np.abs(by_torch(model, images) - wanted).max() > 1e-4


def test_each_number_is_where_the_table_says(clip_tree: Params, tmp_path: Path) -> None:
    """By index, without reshape or transpose: head h's k-th row of the value is row 2 D + h K + k."""
    state = import_checkpoint(save(clip_tree, tmp_path / "checkpoint")).network.state_dict()
    attention = clip_tree["transformer"]["resblocks.1"]["attn"]
    block = "transformer.resblocks.1"
    for h, k, d in [(0, 0, 0), (1, 3, 5), (3, 15, 63)]:
        for at, part in enumerate(("query", "key", "value")):
            row = at * 64 + h * 16 + k
            assert state[f"{block}.attn.in_proj_weight"][row, d] == attention[part]["kernel"][d, h, k]
            assert state[f"{block}.attn.in_proj_bias"][row] == attention[part]["bias"][h, k]
        assert state[f"{block}.attn.out_proj.weight"][d, h * 16 + k] == attention["out"]["kernel"][h, k, d]
    assert state["conv1.weight"][63, 2, 1, 4] == clip_tree["conv1"]["kernel"][1, 4, 2, 63]
    mlp = clip_tree["transformer"]["resblocks.1"]["mlp"]
    assert state[f"{block}.mlp.c_proj.weight"][5, 200] == mlp["c_proj"]["kernel"][200, 5]
    assert "proj" not in state


def test_a_whole_train_state_in_chunks(
    clip_tree: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a training writes it: with its optimiser's state; and large arrays in pieces."""
    wanted = import_checkpoint(save(copy.deepcopy(clip_tree), tmp_path / "plain"))
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 5000)
    state = TrainState.create(apply_fn=None, params=clip_tree, tx=optax.adam(1e-3))
    (tmp_path / "state").write_bytes(flax.serialization.to_bytes(state))
    model = import_checkpoint(tmp_path / "state")
    own, other = model.network.state_dict(), wanted.network.state_dict()
    assert all(torch.equal(own[name], other[name]) for name in other)
    assert model.source_sha256 != wanted.source_sha256


@pytest.mark.parametrize(
    ("classes", "domains", "said"),
    [
        ({0: 316446}, UNED_CLASSES, "one classifier"),
        ({0: 78}, {"cars": 78}, "one classifier"),
        ({0: 900, 1: 5}, {"food2k": 900, "domain 1": 5}, "2 separate classifiers"),
        ({}, {}, "not in the file"),
    ],
)
def test_domains_are_read_off_the_classifiers(
    classes: dict[int, int], domains: dict[str, int], said: str, clip_tree: Params, tmp_path: Path
) -> None:
    tree = {name: clip_tree[name] for name in clip_tree if not name.startswith("output_projection")}
    tree |= {f"output_projection_{at}": {"kernel": np.ones((64, n))} for at, n in classes.items()}
    model = import_checkpoint(save(tree, tmp_path / "checkpoint"))
    assert model.domains == domains
    assert said in model.strategy
