"""Mapping of Flax parameters to torch parameters, for a CLIP ViT and for an ImageNet ViT.

Shapes are written in letters: P patch, D width, T tokens, H heads, K width of a head, M width of the MLP,
E embedding. Their sizes are read from the checkpoint's tree.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from model_export.networks.backbones import CLIP_MEAN, CLIP_STD, HALF

Array = NDArray[Any]
Sizes = dict[str, int]


@dataclass(frozen=True)
class Rule:
    """One torch parameter: Flax parameters of one shape, each transformed by `turn`, then concatenated."""

    flax: tuple[str, ...]  # paths; {i} is the number of the block
    shape: str
    torch: str
    turn: Callable[[Array], Array] = np.asarray  # no change


@dataclass(frozen=True)
class Tree:
    """A family of checkpoints."""

    family: str
    sign: str  # a path found only in this tree
    blocks: str  # pattern of paths inside a block; the group is the block's number
    rules: tuple[Rule, ...]
    mean: tuple[float, float, float]  # of pixels in [0, 255]
    std: tuple[float, float, float]
    build: Callable[[Sizes, int], nn.Module]  # (sizes, number of blocks)

    def expanded(self, blocks: int) -> list[Rule]:
        """Return the rules of a network with this number of blocks."""
        once = [rule for rule in self.rules if "{i}" not in rule.torch]
        each = [rule for rule in self.rules if "{i}" in rule.torch]
        return once + [
            replace(rule, flax=tuple(path.format(i=i) for path in rule.flax), torch=rule.torch.format(i=i))
            for i in range(blocks)
            for rule in each
        ]


def _convolution(kernel: Array) -> Array:
    return kernel.transpose(3, 2, 0, 1)  # (P, P, 3, D) -> (D, 3, P, P)


def _into_heads(kernel: Array) -> Array:
    return kernel.reshape(len(kernel), -1).T  # (D, H, K) -> (H * K, D)


def _out_of_heads(kernel: Array) -> Array:
    return kernel.reshape(-1, kernel.shape[-1]).T  # (H, K, D) -> (D, H * K)


def dense(flax: str, shape: str, torch: str) -> tuple[Rule, Rule]:
    """Return the rules of a linear layer with bias, whose kernel has the shape (in, out)."""
    return (
        Rule((f"{flax}/kernel",), shape, f"{torch}.weight", np.transpose),
        Rule((f"{flax}/bias",), shape.split()[-1], f"{torch}.bias"),
    )


def _norm(flax: str, torch: str) -> tuple[Rule, Rule]:
    return (
        Rule((f"{flax}/scale",), "D", f"{torch}.weight"),
        Rule((f"{flax}/bias",), "D", f"{torch}.bias"),
    )


def _attention(flax: str, inward: str, outward: str) -> tuple[Rule, ...]:
    """Return the rules of an attention layer. Torch stacks query, key and value in one matrix."""
    query_key_value = [f"{flax}/{part}" for part in ("query", "key", "value")]
    return (
        Rule(tuple(f"{part}/kernel" for part in query_key_value), "D H K", f"{inward}weight", _into_heads),
        Rule(tuple(f"{part}/bias" for part in query_key_value), "H K", f"{inward}bias", np.ravel),
        Rule((f"{flax}/out/kernel",), "H K D", f"{outward}.weight", _out_of_heads),
        Rule((f"{flax}/out/bias",), "D", f"{outward}.bias"),
    )


def _clip_rules(flax: str, torch: str) -> tuple[Rule, ...]:
    return (
        Rule(("conv1/kernel",), "P P 3 D", "conv1.weight", _convolution),
        Rule(("class_embedding",), "D", "class_embedding"),
        Rule(("positional_embedding",), "T D", "positional_embedding"),
        *_norm("ln_pre", "ln_pre"),
        *_norm("ln_post", "ln_post"),
        *_norm(f"{flax}/ln_1", f"{torch}.ln_1"),
        *_attention(f"{flax}/attn", f"{torch}.attn.in_proj_", f"{torch}.attn.out_proj"),
        *_norm(f"{flax}/ln_2", f"{torch}.ln_2"),
        *dense(f"{flax}/mlp/c_fc", "D M", f"{torch}.mlp.c_fc"),
        *dense(f"{flax}/mlp/c_proj", "M D", f"{torch}.mlp.c_proj"),
    )


def _imagenet_rules(flax: str, torch: str) -> tuple[Rule, ...]:
    attention = f"{flax}/MultiHeadDotProductAttention_0"
    return (
        Rule(("embedding/kernel",), "P P 3 D", "patch_embed.proj.weight", _convolution),
        Rule(("embedding/bias",), "D", "patch_embed.proj.bias"),
        Rule(("cls",), "1 1 D", "cls_token"),
        Rule(("Transformer/posembed_input/pos_embedding",), "1 T D", "pos_embed"),
        *_norm("Transformer/encoder_norm", "norm"),
        *_norm(f"{flax}/LayerNorm_0", f"{torch}.norm1"),
        *_attention(attention, f"{torch}.attn.qkv.", f"{torch}.attn.proj"),
        *_norm(f"{flax}/LayerNorm_1", f"{torch}.norm2"),
        *dense(f"{flax}/MlpBlock_0/Dense_0", "D M", f"{torch}.mlp.fc1"),
        *dense(f"{flax}/MlpBlock_0/Dense_1", "M D", f"{torch}.mlp.fc2"),
    )


def _build_clip(sizes: Sizes, blocks: int) -> nn.Module:
    from open_clip.transformer import QuickGELU, VisionTransformer  # slow import

    network: nn.Module = VisionTransformer(
        image_size=image_px(sizes),
        patch_size=sizes["P"],
        width=sizes["D"],
        layers=blocks,
        heads=sizes["H"],
        mlp_ratio=_mlp_ratio(sizes),
        act_layer=QuickGELU,  # the eps of LayerNorm is torch's default, 1e-5
    )
    network.proj = None  # type: ignore[assignment]
    return network


def _build_imagenet(sizes: Sizes, blocks: int) -> nn.Module:
    from timm.models import VisionTransformer  # slow import

    network: nn.Module = VisionTransformer(
        img_size=image_px(sizes),
        patch_size=sizes["P"],
        embed_dim=sizes["D"],
        depth=blocks,
        num_heads=sizes["H"],
        mlp_ratio=_mlp_ratio(sizes),
        num_classes=0,
        act_layer="gelu_tanh",  # Flax's gelu is the tanh approximation
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    return network


def image_px(sizes: Sizes) -> int:
    """Return the side of the image: the tokens are a square of patches and the class token."""
    return sizes["P"] * math.isqrt(sizes["T"] - 1)


def _mlp_ratio(sizes: Sizes) -> float:
    return (sizes["M"] + 0.5) / sizes["D"]  # both libraries multiply by D and round down


TREES = (
    Tree(
        family="CLIP ViT",
        sign="class_embedding",
        blocks=r"transformer/resblocks\.(\d+)/",
        rules=_clip_rules("transformer/resblocks.{i}", "transformer.resblocks.{i}"),
        mean=CLIP_MEAN,
        std=CLIP_STD,
        build=_build_clip,
    ),
    Tree(
        family="ImageNet ViT",
        sign="cls",
        blocks=r"Transformer/encoderblock_(\d+)/",
        rules=_imagenet_rules("Transformer/encoderblock_{i}", "blocks.{i}"),
        mean=HALF,
        std=HALF,
        build=_build_imagenet,
    ),
)
