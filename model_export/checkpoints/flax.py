"""The released UnED and UDON checkpoints (Flax) as torch networks.

Trees, shapes and activations are those of the reference code (`nikosips/Universal-Image-Embeddings` and
`nikosips/UDON`). What a checkpoint is, and all of its sizes, are read off its tree and never off its name.
"""

import hashlib
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
from model_export.networks.head import LinearHead
from model_export.networks.loaders import in_words
from service.manifest import Preprocessing

# Classes of UnED's training splits: no two domains have as many.
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
class ImportedModel:
    """A released model: embedding = normalise(head(normalise(network(images))))."""

    network: nn.Module  # eval mode: normalised float (N, 3, H, W) -> CLS descriptor (N, D)
    head: LinearHead
    preprocessing: Preprocessing
    mean: tuple[float, float, float]  # of pixels in [0, 255]
    std: tuple[float, float, float]
    family: str  # of the network
    method: Literal["UnED", "UDON"]
    strategy: str  # a sentence for the manifest
    domains: dict[str, int]  # number of classes; empty where the file has no classifiers
    source: str
    source_sha256: str
    licence: str


@dataclass(frozen=True)
class _Method:
    """How the embedding was trained, as the tree tells it."""

    name: Literal["UnED", "UDON"]
    head: str  # the layer that makes the embedding
    classifier: str  # pattern of the classifiers that look at the embedding
    dropped: str  # pattern of everything that serves training alone
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


def import_checkpoint(file: Path) -> ImportedModel:
    """Every parameter of a released checkpoint in its place in torch. Raises SourceError."""
    params = read_params(file)
    tree = _tree_of(params, file)
    method = _UDON if any(path.startswith("universal_student_") for path in params) else _UNED
    kept = {path: array for path, array in params.items() if not re.fullmatch(method.dropped, path)}
    numbers = [int(found[1]) for path in kept if (found := re.match(tree.blocks, path))]
    blocks = min(max(numbers, default=0) + 1, len(kept))  # no more than there are parameters
    rules = [*tree.expanded(blocks), *dense(method.head, "D E", "head")]
    sizes = _sizes(rules, kept, file)
    state = {
        rule.torch: np.concatenate([rule.turn(kept[path].astype(np.float32)) for path in rule.flax])
        for rule in rules
    }
    head = LinearHead(state.pop("head.weight"), state.pop("head.bias"))
    network = tree.build(sizes, blocks)
    network.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in state.items()})
    classes = _classes(params, method)
    with file.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return ImportedModel(
        network=network.eval(),
        head=head,
        preprocessing=_preprocessing(sizes),
        mean=tree.mean,
        std=tree.std,
        family=tree.family,
        method=method.name,
        strategy=_strategy(method, tree, len(classes), sizes["E"]),
        domains=_domains(classes),
        source=f"Flax checkpoint {file.name}: a {method.name} model ({method.paper})",
        source_sha256=sha256,
        licence="not stated by its publishers",
    )


def _tree_of(params: Mapping[str, Array], file: Path) -> Tree:
    for tree in TREES:
        if tree.sign in params:
            return tree
    tops = sorted({path.split("/")[0] for path in params})
    signs = " nor ".join(f"{tree.sign} ({tree.family})" for tree in TREES)
    raise SourceError(f"{file} is not a UnED or UDON model: no {signs}, but {in_words({'parameters': tops})}")


def _sizes(rules: list[Rule], params: Mapping[str, Array], file: Path) -> Sizes:
    """What the letters of the shapes stand for; every name and shape must agree. Raises SourceError."""
    wanted = [path for rule in rules for path in rule.flax]
    faults = {
        "missing": [path for path in wanted if path not in params],
        "unknown": sorted(set(params) - set(wanted)),
        "not finite": [path for path in params if not np.isfinite(params[path]).all()],
    }
    sizes: Sizes = {"1": 1, "3": 3}
    shapes = []
    for path, letters in [(path, rule.shape.split()) for rule in rules for path in rule.flax]:
        if path in params and not _agrees(params[path].shape, letters, sizes):
            said = ", ".join(str(sizes.get(letter, letter)) for letter in letters)
            shapes.append(f"{path} {params[path].shape} instead of ({said})")
    if words := in_words({**faults, "of another shape": shapes}):
        raise SourceError(f"{file} does not fit the tree: {words}")
    if sizes["H"] * sizes["K"] != sizes["D"]:
        raise SourceError(f"{file}: {sizes['H']} heads of {sizes['K']} are not the width {sizes['D']}")
    if sizes["T"] < 2 or math.isqrt(sizes["T"] - 1) ** 2 != sizes["T"] - 1:
        raise SourceError(f"{file}: {sizes['T']} positions are not a square and a class token")
    return sizes


def _agrees(shape: tuple[int, ...], letters: list[str], sizes: Sizes) -> bool:
    """A letter that has no size yet takes the one it finds."""
    if len(shape) != len(letters):
        return False
    return all(sizes.setdefault(letter, size) == size for letter, size in zip(letters, shape, strict=True))


def _preprocessing(sizes: Sizes) -> Preprocessing:
    px = image_px(sizes)
    return Preprocessing(
        input_px=px,
        resize="short-side",
        resize_px=px,
        interpolation="bilinear-no-antialias",
        crop="centre",
        exif="ignore",
    )


def _classes(params: Mapping[str, Array], method: _Method) -> dict[int, int]:
    """By the classifier's position: number of classes."""
    found = {path: re.fullmatch(method.classifier, path) for path in params}
    return {int(match[1]): params[path].shape[-1] for path, match in found.items() if match}


def _domains(classes: Mapping[int, int]) -> dict[str, int]:
    names = {count: domain for domain, count in UNED_CLASSES.items()}
    if list(classes.values()) == [sum(UNED_CLASSES.values())]:  # one classifier for all
        return UNED_CLASSES
    return {names.get(classes[at], f"domain {at}"): classes[at] for at in sorted(classes)}


def _strategy(method: _Method, tree: Tree, classifiers: int, dim: int) -> str:
    if method.name == "UDON":
        how = f"a {dim}-d student distilled online from the teachers of its {classifiers} domains"
    else:
        kinds = {0: "classifiers that are not in the file", 1: "one classifier"}
        kind = kinds.get(classifiers, f"{classifiers} separate classifiers")
        how = f"the whole network and a {dim}-d projection trained with {kind}"
    return f"{method.name} on {tree.family}: {how} (which domain a batch came from is not in the file)"
