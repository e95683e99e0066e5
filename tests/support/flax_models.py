"""The published networks, written again in Flax after their trees: what an import is compared with."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray


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
        seen = nn.LayerNorm(epsilon=1e-5, name="ln_1")(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, name="attn")(seen, seen)
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
        # Layers without a name are numbered as they are made; nn.gelu is the approximation by tanh.
        hidden = nn.gelu(nn.Dense(4 * x.shape[-1])(x))
        return nn.Dense(x.shape[-1])(hidden)


class VitBlock(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        seen = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads)(seen, seen)
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


# What goes into the first norm is made faint: where its variance is no larger than the eps, the eps shows.
_FAINT = {"conv1", "class_embedding", "positional_embedding", "embedding", "cls", "posembed_input"}


def random_params(backbone: nn.Module, px: int, seed: int) -> dict[str, Any]:
    """Of the backbone: every array random, and large enough for activations to bend."""
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
        if _FAINT & set(path):
            values *= 0.02
        return np.asarray(values, dtype=np.float32)

    return dict(jax.tree_util.tree_map_with_path(fill, shapes))


def dense(rng: np.random.Generator, inputs: int, outputs: int) -> dict[str, NDArray[np.float32]]:
    """A layer with bias."""
    return {
        "kernel": rng.normal(size=(inputs, outputs)).astype(np.float32),
        "bias": rng.normal(size=outputs).astype(np.float32),
    }
