"""The released UnED and UDON checkpoints (Flax) as torch networks.

Trees, shapes and activations are those of the reference code (`nikosips/Universal-Image-Embeddings` and
`nikosips/UDON`). The method and all sizes are read from the checkpoint's tree, never from its name.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from model_export.checkpoints.flax_msgpack import read_params
from model_export.checkpoints.flax_rules import TREES, Array, Rule, Sizes, Tree, dense, image_px
from model_export.errors import SourceError
from model_export.networks.graph import Normalise, Trained
from model_export.networks.head import LinearHead
from model_export.networks.loaders import format_faults
from service.manifest import Preprocessing, sha256_of

# Number of classes of UnED's training splits, different for every domain.
UNED_CLASSES = {
    "cars": 78,
    "sop": 9054,
    "inshop": 3198,
    "inat": 4552,
    "met": 224408,
    "gldv2": 73182,
    "food2k": 900,
    "rp2k": 1074,
}


@dataclass(frozen=True)
class _Method:
    """Training method, recognised by the tree."""

    name: Literal["UnED", "UDON"]
    head: str  # layer that outputs the embedding
    classifier: str  # pattern of the classifiers of the embedding
    dropped: str  # pattern of parameters used in training only
    paper: str


_UNED = _Method(
    name="UnED",
    head="projection",
    classifier=r"output_projection_(\d+)/kernel",
    dropped=r"output_projection_\d+/kernel",
    paper="arXiv 2309.01858",
)
_UDON = _Method(
    name="UDON",
    head="universal_student_projection_domain_0/Dense_0",
    classifier=r"universal_student_output_projection_(\d+)/kernel",
    dropped=r"(universal_student|teacher)_output_projection_\d+/kernel"
    r"|teacher_projection_domain_\d+/(Dense|LayerNorm)_\d+/(kernel|scale|bias)",
    paper="arXiv 2406.08332",
)


def import_checkpoint(file: Path) -> Trained:
    """Load a released checkpoint, every parameter of it. Raises SourceError.

    `domains` is empty if the file has no classifiers.
    """
    params = read_params(file)
    tree = _tree_of(params, file)
    method = _UDON if any(path.startswith("universal_student_") for path in params) else _UNED
    used = {path: array for path, array in params.items() if not re.fullmatch(method.dropped, path)}
    numbers = [int(match[1]) for path in used if (match := re.match(tree.blocks, path))]
    blocks = min(max(numbers, default=0) + 1, len(used))  # bounded by the number of parameters
    rules = [*tree.expanded(blocks), *dense(method.head, "D E", "head")]
    sizes = _sizes(rules, used, file)
    state = {
        rule.torch: np.concatenate([rule.turn(used[path].astype(np.float32)) for path in rule.flax])
        for rule in rules
    }
    head = LinearHead(state.pop("head.weight"), state.pop("head.bias"))
    network = tree.build(sizes, blocks)
    network.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in state.items()})
    matches = {path: re.fullmatch(method.classifier, path) for path in params}
    classes = {int(match[1]): params[path].shape[-1] for path, match in matches.items() if match}
    px = image_px(sizes)
    return Trained(
        descriptor=nn.Sequential(Normalise(tree.mean, tree.std), network).eval(),
        head=head,
        preprocessing=Preprocessing(
            input_px=px,
            resize="short-side",
            resize_px=px,
            interpolation="bilinear-no-antialias",
            crop="centre",
            exif="ignore",
        ),
        mean=tree.mean,
        std=tree.std,
        strategy=_strategy(method, tree, len(classes), sizes["E"]),
        domains=_domains(classes),
        data_fingerprint="not stated in the checkpoint",
        source=f"Flax checkpoint {file.name}: a {method.name} model ({method.paper})",
        source_sha256=sha256_of(file),
        licence="not stated by its publishers",
    )


def _tree_of(params: Mapping[str, Array], file: Path) -> Tree:
    for tree in TREES:
        if tree.sign in params:
            return tree
    tops = sorted({path.split("/")[0] for path in params})
    signs = " nor ".join(f"{tree.sign} ({tree.family})" for tree in TREES)
    raise SourceError(
        f"{file} is not a UnED or UDON model: no {signs}; {format_faults({'its parameters': tops})}"
    )


def _sizes(rules: list[Rule], params: Mapping[str, Array], file: Path) -> Sizes:
    """Resolve the letters of the shapes. Raises SourceError unless every name and shape agrees."""
    expected = [path for rule in rules for path in rule.flax]
    faults = {
        "missing": [path for path in expected if path not in params],
        "unknown": sorted(set(params) - set(expected)),
        "not finite": [path for path in params if not np.isfinite(params[path]).all()],
    }
    sizes: Sizes = {"1": 1, "3": 3}
    shapes = []
    for path, letters in [(path, rule.shape.split()) for rule in rules for path in rule.flax]:
        if path in params and not _agrees(params[path].shape, letters, sizes):
            shape = ", ".join(str(sizes.get(letter, letter)) for letter in letters)
            shapes.append(f"{path} {params[path].shape} instead of ({shape})")
    if text := format_faults({**faults, "wrong shape": shapes}):
        raise SourceError(f"{file} does not fit the network: {text}")
    if sizes["H"] * sizes["K"] != sizes["D"]:
        raise SourceError(f"{file}: {sizes['H']} heads of {sizes['K']} are not the width {sizes['D']}")
    if sizes["T"] < 2 or math.isqrt(sizes["T"] - 1) ** 2 != sizes["T"] - 1:
        raise SourceError(f"{file}: {sizes['T']} positions are not a square and a class token")
    return sizes


def _agrees(shape: tuple[int, ...], letters: list[str], sizes: Sizes) -> bool:
    """Compare a shape with its letters. A letter without a size yet gets the one in the shape."""
    if len(shape) != len(letters):
        return False
    return all(sizes.setdefault(letter, size) == size for letter, size in zip(letters, shape, strict=True))


def _domains(classes: Mapping[int, int]) -> dict[str, int]:
    names = {count: domain for domain, count in UNED_CLASSES.items()}
    if list(classes.values()) == [sum(UNED_CLASSES.values())]:  # one joint classifier
        return UNED_CLASSES
    return {names.get(classes[at], f"domain {at}"): classes[at] for at in sorted(classes)}


def _strategy(method: _Method, tree: Tree, classifiers: int, dim: int) -> str:
    if method.name == "UDON":
        training = f"a {dim}-d student distilled online from the teachers of its {classifiers} domains"
    else:
        kinds = {0: "classifiers that are not in the file", 1: "one classifier"}
        kind = kinds.get(classifiers, f"{classifiers} separate classifiers")
        training = f"the whole network and a {dim}-d projection trained with {kind}"
    return f"{method.name} on {tree.family}: {training} (the domain sampling is not in the file)"
