"""Released Flax checkpoints give the same results in torch as in Flax."""

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

from model_export.checkpoints.flax import UNED_CLASSES, import_checkpoint
from model_export.networks.backbones import BACKBONES
from model_export.networks.graph import Trained
from tests.support.flax_models import (
    HEADS,
    SMALL,
    SMALL_PX,
    Clip,
    Params,
    Vit,
    clip_tree,
    complete_tree,
    random_params,
    save_checkpoint,
)
from tests.support.images import unit


def images_of(px: int, count: int = 3) -> NDArray[np.float32]:
    return np.random.default_rng(2).normal(size=(count, px, px, 3)).astype(np.float32)


def network_of(model: Trained) -> nn.Module:
    """Return the network without the normalisation of pixels."""
    assert isinstance(model.descriptor, nn.Sequential)
    return model.descriptor[1]


def by_torch(model: Trained, images: NDArray[np.float32]) -> NDArray[np.float64]:
    with torch.inference_mode():
        descriptors = network_of(model)(torch.from_numpy(images).permute(0, 3, 1, 2))
    return np.asarray(descriptors.numpy(), dtype=np.float64)


def by_flax(network: Any, params: Params, images: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(network.apply({"params": params}, images), dtype=np.float64)


@pytest.fixture(scope="module", params=[Clip, Vit], ids=["CLIP", "ImageNet"])
def small(request: pytest.FixtureRequest) -> tuple[Any, Params]:
    """A Flax network and its parameters."""
    network = request.param(**SMALL)
    return network, random_params(network, SMALL_PX, seed=0)


@pytest.mark.parametrize("method", ["UnED", "UDON"])
def test_embeddings_are_those_of_flax(method: str, small: tuple[Any, Params], tmp_path: Path) -> None:
    network, params = small
    tree = complete_tree(params, 64, method, dim=48)
    model = import_checkpoint(save_checkpoint(tree, tmp_path / "named_after_something_else", global_step=7))
    images = images_of(SMALL_PX)
    expected = by_flax(network, params, images)  # (3, 64)
    actual = by_torch(model, images)
    assert np.abs(actual - expected).max() < 1e-5
    layer = tree[HEADS[method]].get("Dense_0", tree[HEADS[method]])
    embeddings = unit(np.asarray(unit(expected) @ layer["kernel"] + layer["bias"], dtype=np.float64))
    imported = unit(np.asarray(unit(actual) @ model.head.weight.T + model.head.bias, dtype=np.float64))
    assert embeddings.shape == (3, 48)
    assert np.abs(imported - embeddings).max() < 1e-6
    assert model.strategy.startswith(f"{method} on ")
    assert model.domains == UNED_CLASSES


@pytest.mark.parametrize(
    ("kind", "width", "heads"), [(Clip, 768, 12), (Vit, 384, 6)], ids=["CLIP ViT-B/16", "ImageNet ViT-S/16"]
)
def test_at_full_size(kind: Any, width: int, heads: int, tmp_path: Path) -> None:
    """The released size: 12 blocks, 224 px. The largest difference observed is 5e-6."""
    network = kind(width=width, depth=12, heads=heads, patch=16)
    params = random_params(network, 224, seed=0)
    model = import_checkpoint(save_checkpoint(complete_tree(params, width, "UnED"), tmp_path / "checkpoint"))
    images = images_of(224, 1)
    assert np.abs(by_torch(model, images) - by_flax(network, params, images)).max() < 5e-5
    assert model.preprocessing.input_px == model.preprocessing.resize_px == 224
    row = BACKBONES["clip-vit-b16" if kind is Clip else "imagenet-vit-s16"]
    assert (model.mean, model.std) == (row.mean, row.std)


def _other_activation(network: nn.Module) -> None:
    for block in network.modules():
        for name in dict(block.named_children()).keys() & {"gelu", "act"}:  # names in open_clip and timm
            setattr(block, name, nn.GELU())


def _other_eps(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6 if module.eps == 1e-5 else 1e-5


@pytest.mark.parametrize("change", [_other_activation, _other_eps])
def test_activation_and_eps_matter(
    change: Callable[[nn.Module], None], small: tuple[Any, Params], tmp_path: Path
) -> None:
    """Plain GELU instead of QuickGELU or tanh, or the eps of the other library, changes the result."""
    network, params = small
    model = import_checkpoint(save_checkpoint(complete_tree(params, 64, "UnED"), tmp_path / "checkpoint"))
    images = images_of(SMALL_PX)
    expected = by_flax(network, params, images)
    assert np.abs(by_torch(model, images) - expected).max() < 1e-5
    change(network_of(model))
    assert np.abs(by_torch(model, images) - expected).max() > 1e-4


def test_every_weight_is_at_its_index(tmp_path: Path) -> None:
    """Indices without reshape or transpose: row k of head h of the value is row 2 D + h K + k."""
    tree = clip_tree()
    state = network_of(import_checkpoint(save_checkpoint(tree, tmp_path / "checkpoint"))).state_dict()
    attention = tree["transformer"]["resblocks.1"]["attn"]
    block = "transformer.resblocks.1"
    for h, k, d in [(0, 0, 0), (1, 3, 5), (3, 15, 63)]:
        for at, part in enumerate(("query", "key", "value")):
            row = at * 64 + h * 16 + k
            assert state[f"{block}.attn.in_proj_weight"][row, d] == attention[part]["kernel"][d, h, k]
            assert state[f"{block}.attn.in_proj_bias"][row] == attention[part]["bias"][h, k]
        assert state[f"{block}.attn.out_proj.weight"][d, h * 16 + k] == attention["out"]["kernel"][h, k, d]
    assert state["conv1.weight"][63, 2, 1, 4] == tree["conv1"]["kernel"][1, 4, 2, 63]
    mlp = tree["transformer"]["resblocks.1"]["mlp"]
    assert state[f"{block}.mlp.c_proj.weight"][5, 200] == mlp["c_proj"]["kernel"][200, 5]
    assert "proj" not in state


def test_train_state_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A train state with the optimizer's state, its large arrays split into chunks."""
    plain = import_checkpoint(save_checkpoint(clip_tree(), tmp_path / "plain"))
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 5000)
    state = TrainState.create(apply_fn=None, params=clip_tree(), tx=optax.adam(1e-3))
    (tmp_path / "state").write_bytes(flax.serialization.to_bytes(state))
    model = import_checkpoint(tmp_path / "state")
    chunked, expected = network_of(model).state_dict(), network_of(plain).state_dict()
    assert all(torch.equal(chunked[name], expected[name]) for name in expected)
    assert model.source_sha256 != plain.source_sha256


@pytest.mark.parametrize(
    ("classes", "domains", "text"),
    [
        ({0: 316446}, UNED_CLASSES, "one classifier"),
        ({0: 78}, {"cars": 78}, "one classifier"),
        ({0: 900, 1: 5}, {"food2k": 900, "domain 1": 5}, "2 separate classifiers"),
        ({}, {}, "not in the file"),
    ],
)
def test_domains_are_read_from_the_classifiers(
    classes: dict[int, int], domains: dict[str, int], text: str, tmp_path: Path
) -> None:
    tree = {name: part for name, part in clip_tree().items() if not name.startswith("output_projection")}
    tree |= {f"output_projection_{at}": {"kernel": np.ones((64, n))} for at, n in classes.items()}
    model = import_checkpoint(save_checkpoint(tree, tmp_path / "checkpoint"))
    assert model.domains == domains
    assert text in model.strategy
