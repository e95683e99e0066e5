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
    activation: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        hidden = self.activation(nn.Dense(4 * x.shape[-1], name="c_fc")(x))
        return nn.Dense(x.shape[-1], name="c_proj")(hidden)


class ClipBlock(nn.Module):
    heads: int
    activation: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        seen = nn.LayerNorm(epsilon=1e-5, name="ln_1")(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, name="attn")(seen, seen)
        return x + ClipMlp(self.activation, name="mlp")(nn.LayerNorm(epsilon=1e-5, name="ln_2")(x))


class ClipBlocks(nn.Module):
    depth: int
    heads: int
    activation: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for i in range(self.depth):
            x = ClipBlock(self.heads, self.activation, name=f"resblocks.{i}")(x)
        return x


class Clip(nn.Module):
    """(N, px, px, 3) -> the class token (N, width)."""

    width: int
    depth: int
    heads: int
    patch: int
    activation: Any = staticmethod(quick_gelu)

    @nn.compact
    def __call__(self, images: Any) -> Any:
        patches = (self.patch, self.patch)
        x = nn.Conv(self.width, patches, strides=patches, use_bias=False, name="conv1")(images)
        x = x.reshape(len(x), -1, self.width)
        token = self.param("class_embedding", nn.initializers.normal(1.0), (self.width,))
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
        x = x + self.param("positional_embedding", nn.initializers.normal(1.0), x.shape[1:])
        x = nn.LayerNorm(epsilon=1e-5, name="ln_pre")(x)
        x = ClipBlocks(self.depth, self.heads, self.activation, name="transformer")(x)
        return nn.LayerNorm(epsilon=1e-5, name="ln_post")(x)[:, 0]


class VitMlp(nn.Module):
    activation: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        hidden = self.activation(nn.Dense(4 * x.shape[-1])(x))  # Dense_0: numbered as they are made
        return nn.Dense(x.shape[-1])(hidden)


class VitBlock(nn.Module):
    heads: int
    activation: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        seen = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads)(seen, seen)
        return x + VitMlp(self.activation, name="MlpBlock_0")(nn.LayerNorm()(x))


class Positions(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return x + self.param("pos_embedding", nn.initializers.normal(1.0), (1, *x.shape[1:]))


class VitBlocks(nn.Module):
    depth: int
    heads: int
    activation: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = Positions(name="posembed_input")(x)
        for i in range(self.depth):
            x = VitBlock(self.heads, self.activation, name=f"encoderblock_{i}")(x)
        return nn.LayerNorm(name="encoder_norm")(x)


class Vit(nn.Module):
    """(N, px, px, 3) -> the class token (N, width)."""

    width: int
    depth: int
    heads: int
    patch: int
    activation: Any = nn.gelu  # the approximation by tanh

    @nn.compact
    def __call__(self, images: Any) -> Any:
        patches = (self.patch, self.patch)
        x = nn.Conv(self.width, patches, strides=patches, padding="VALID", name="embedding")(images)
        x = x.reshape(len(x), -1, self.width)
        token = self.param("cls", nn.initializers.normal(1.0), (1, 1, self.width))
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
        return VitBlocks(self.depth, self.heads, self.activation, name="Transformer")(x)[:, 0]


def random_params(backbone: nn.Module, px: int, seed: int) -> dict[str, Any]:
    """Of the backbone; every array at random, biases and scales too, large enough to bend activations."""
    shapes = jax.eval_shape(backbone.init, jax.random.key(0), jnp.zeros((1, px, px, 3)))["params"]
    rng = np.random.default_rng(seed)

    def fill(path: Any, leaf: Any) -> NDArray[np.float32]:
        name = path[-1].key
        inputs = leaf.size / leaf.shape[-1] if name == "kernel" else 1
        if any(step.key in ("query", "key", "value") for step in path) and name == "kernel":
            inputs = leaf.shape[0]
        values = rng.normal(size=leaf.shape) * (1.5 / np.sqrt(inputs) if name == "kernel" else 0.5)
        return np.asarray(values + (name == "scale"), dtype=np.float32)

    return dict(jax.tree_util.tree_map_with_path(fill, shapes))


def layer(rng: np.random.Generator, inputs: int, outputs: int) -> dict[str, NDArray[np.float32]]:
    """A Dense with bias."""
    return {
        "kernel": rng.normal(size=(inputs, outputs)).astype(np.float32),
        "bias": rng.normal(size=outputs).astype(np.float32),
    }
