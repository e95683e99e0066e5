"""The published networks in Flax, written from their trees: the reference for imports."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from model_export.checkpoints.flax import UNED_CLASSES

Params = dict[str, Any]
SMALL = {"width": 64, "depth": 2, "heads": 4, "patch": 8}
SMALL_PX = 32
HEADS = {"UnED": "projection", "UDON": "universal_student_projection_domain_0"}


def quick_gelu(x: Any) -> Any:
    return x * jax.nn.sigmoid(1.702 * x)


class ClipMlp(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        hidden = quick_gelu(nn.Dense(4 * x.shape[-1], name="c_fc")(x))
        return nn.Dense(x.shape[-1], name="c_proj")(hidden)


class ClipBlock(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        normed = nn.LayerNorm(epsilon=1e-5, name="ln_1")(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, name="attn")(normed, normed)
        return x + ClipMlp(name="mlp")(nn.LayerNorm(epsilon=1e-5, name="ln_2")(x))


class ClipBlocks(nn.Module):
    depth: int
    heads: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for i in range(self.depth):
            x = ClipBlock(self.heads, name=f"resblocks.{i}")(x)
        return x


class Clip(nn.Module):
    """(N, px, px, 3) -> the class token (N, width)."""

    width: int
    depth: int
    heads: int
    patch: int

    @nn.compact
    def __call__(self, images: Any) -> Any:
        patches = (self.patch, self.patch)
        x = nn.Conv(self.width, patches, strides=patches, use_bias=False, name="conv1")(images)
        x = x.reshape(len(x), -1, self.width)
        token = self.param("class_embedding", nn.initializers.normal(1.0), (self.width,))
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
        x = x + self.param("positional_embedding", nn.initializers.normal(1.0), x.shape[1:])
        x = nn.LayerNorm(epsilon=1e-5, name="ln_pre")(x)
        x = ClipBlocks(self.depth, self.heads, name="transformer")(x)
        return nn.LayerNorm(epsilon=1e-5, name="ln_post")(x)[:, 0]


class VitMlp(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        # Unnamed layers are numbered in order of creation; nn.gelu is the tanh approximation.
        hidden = nn.gelu(nn.Dense(4 * x.shape[-1])(x))
        return nn.Dense(x.shape[-1])(hidden)


class VitBlock(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        normed = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads)(normed, normed)
        return x + VitMlp(name="MlpBlock_0")(nn.LayerNorm()(x))


class Positions(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return x + self.param("pos_embedding", nn.initializers.normal(1.0), (1, *x.shape[1:]))


class VitBlocks(nn.Module):
    depth: int
    heads: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = Positions(name="posembed_input")(x)
        for i in range(self.depth):
            x = VitBlock(self.heads, name=f"encoderblock_{i}")(x)
        return nn.LayerNorm(name="encoder_norm")(x)


class Vit(nn.Module):
    """(N, px, px, 3) -> the class token (N, width)."""

    width: int
    depth: int
    heads: int
    patch: int

    @nn.compact
    def __call__(self, images: Any) -> Any:
        patches = (self.patch, self.patch)
        x = nn.Conv(self.width, patches, strides=patches, padding="VALID", name="embedding")(images)
        x = x.reshape(len(x), -1, self.width)
        token = self.param("cls", nn.initializers.normal(1.0), (1, 1, self.width))
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
        return VitBlocks(self.depth, self.heads, name="Transformer")(x)[:, 0]


# The input of the first norm is kept small, so that a different eps changes the result.
_SMALL_INPUTS = {"conv1", "class_embedding", "positional_embedding", "embedding", "cls", "posembed_input"}


def random_params(backbone: nn.Module, px: int, seed: int) -> Params:
    """Return random parameters, large enough for the activations to be nonlinear."""
    shapes = jax.eval_shape(backbone.init, jax.random.key(0), jnp.zeros((1, px, px, 3)))["params"]
    rng = np.random.default_rng(seed)

    def fill(steps: Any, leaf: Any) -> NDArray[np.float32]:
        path = [step.key for step in steps]
        values = rng.normal(size=leaf.shape) / 2
        if path[-1] == "kernel":
            into_heads = path[-2] in ("query", "key", "value")
            inputs = leaf.shape[0] if into_heads else leaf.size / leaf.shape[-1]
            values *= 3 / np.sqrt(inputs)
        elif path[-1] == "scale":
            values += 1
        if _SMALL_INPUTS & set(path):
            values *= 0.02
        return np.asarray(values, dtype=np.float32)

    return dict(jax.tree_util.tree_map_with_path(fill, shapes))


def dense(rng: np.random.Generator, inputs: int, outputs: int) -> dict[str, NDArray[np.float32]]:
    """Return random parameters of a layer with bias."""
    return {
        "kernel": rng.normal(size=(inputs, outputs)).astype(np.float32),
        "bias": rng.normal(size=outputs).astype(np.float32),
    }


def complete_tree(backbone: Params, width: int, method: str, dim: int = 64) -> Params:
    """Add the head and the parameters used in training only, named as in the reference code."""
    rng = np.random.default_rng(1)
    classes = dict(enumerate(UNED_CLASSES.values()))
    if method == "UnED":
        head: Params = {"projection": dense(rng, width, dim)}
        unused = {f"output_projection_{at}": {"kernel": np.ones((1, n))} for at, n in classes.items()}
        return backbone | head | unused
    tree: Params = {HEADS["UDON"]: {"Dense_0": dense(rng, width, dim)}}
    for at, count in classes.items():
        tree[f"teacher_projection_domain_{at}"] = {"Dense_0": dense(rng, width, 256)}
        tree[f"teacher_output_projection_{at}"] = {"kernel": np.ones((1, count))}
        tree[f"universal_student_output_projection_{at}"] = {"kernel": np.ones((1, count))}
    return backbone | tree


def clip_tree() -> Params:
    """Return a small, complete CLIP checkpoint."""
    return complete_tree(random_params(Clip(**SMALL), SMALL_PX, seed=0), SMALL["width"], "UnED")


def save_checkpoint(tree: Params, file: Path, **state: Any) -> Path:
    """Write a train state as the reference code does."""
    file.write_bytes(flax.serialization.msgpack_serialize({"params": tree, **state}))
    return file
