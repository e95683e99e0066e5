"""Training strategies, read from TOML files.

`extends = "other.toml"` inherits from another file. Tables are merged; other values are replaced.
"""

import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, PositiveInt, ValidationError, model_validator

from model_export.errors import ConfigError


class _Table(BaseModel, frozen=True, extra="forbid"):
    """Base class of the tables."""


class Head(_Table):
    """A linear layer with bias on the L2-normalised descriptor."""

    dim: int = Field(64, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1, description="On the descriptor.")
    init: Literal["random", "whitened"] = Field("random", description="whitened: from the whitened PCA.")


class Classifier(_Table):
    """The classifier that trains the embedding, discarded after training."""

    kind: Literal["joint", "separate"] = Field("joint", description="One for all domains, or one per domain.")
    loss: Literal["normface", "arcface", "cosface"] = "normface"
    scale: float = Field(16.0, gt=0)
    margin: float = Field(0.0, ge=0, description="arcface: an angle in radians; cosface: of the cosine.")
    subcentres: int = Field(1, ge=1, description="Centres per class; the nearest one counts.")

    @model_validator(mode="after")
    def _margin_fits_loss(self) -> Self:
        if (self.loss == "normface") != (self.margin == 0):
            raise ValueError(
                f"{self.loss} with margin {self.margin}: normface takes no margin, the others need one"
            )
        return self


class Sampling(_Table):
    """Distribution of the batches over domains (UnED, section 4; `steps` is in its code only)."""

    kind: Literal["round-robin", "dataset-size", "balanced", "steps", "teacher-loss"] = "round-robin"
    steps: dict[str, PositiveInt] = Field({}, description="Batches per domain, for kind `steps`.")
    size_power: float = Field(
        1.0, ge=0, le=1, description="dataset-size: shares are proportional to size to this power."
    )


class Udon(_Table):
    """One teacher per domain, distilled into a shared student (arXiv 2406.08332)."""

    teacher_dim: int = Field(256, ge=1)
    temperature: float = Field(0.1, gt=0)


class Anchor(_Table):
    """Keeps the embedding close to the similarities of the frozen backbone, if those are reliable.

    The loss is the squared difference of the batch's cosines, times `weight`, times the square of the frozen
    backbone's R@1 on the domain's training images. Domains that the backbone separates badly are hardly held.
    """

    weight: float = Field(gt=0)


class Stage(_Table):
    """A part of the training with separate learning rates."""

    train: Literal["head", "all"]
    epochs: float = Field(gt=0, description="Passes over all training images.")
    batch: int = Field(128, ge=1)
    lr: float = Field(1e-3, gt=0, description="Of head and classifiers.")
    backbone_lr: float = Field(1e-5, gt=0)
    weight_decay: float = Field(1e-6, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    views: int = Field(
        1, ge=1, description="train = head: cached descriptors per image, all but one augmented."
    )
    augment: bool = Field(False, description="train = all: crops, colours, blur, small rotations.")
    freeze: list[str] = Field([], description="train = all: name prefixes of frozen parameters.")
    evaluations: int = Field(10, ge=1, description="Number of validations and checkpoints.")


class Strategy(_Table):
    """A complete strategy."""

    title: str
    backbone: str
    weights: str = "pretrained"
    domains: list[str] = Field([], description="Domains to train on; all if empty.")
    seed: int = 0
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    head: Head = Head()
    classifier: Classifier = Classifier()
    sampling: Sampling = Sampling()
    udon: Udon | None = None
    anchor: Anchor | None = None
    stages: list[Stage] = Field(min_length=1)

    @property
    def sentence(self) -> str:
        """Summary of the strategy for a model's manifest."""
        loss = self.classifier
        margin = f" (margin {loss.margin:g})" if loss.margin else ""
        centres = f", {loss.subcentres} centres a class" if loss.subcentres > 1 else ""
        trained = {"head": "head", "all": "whole network"}
        parts = [
            f"{loss.kind} {loss.loss}{margin}{centres}, scale {loss.scale:g}",
            f"sampling by {self.sampling.kind}",
            *(["teachers of each domain (UDON)"] if self.udon else []),
            *([f"anchor {self.anchor.weight:g}"] if self.anchor else []),
            *(f"{trained[stage.train]} {stage.epochs:g} epochs" for stage in self.stages),
        ]
        return f"{self.title}: {'; '.join(parts)}; seed {self.seed}"

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.sampling.kind == "teacher-loss" and self.udon is None:
            raise ValueError("sampling by teacher-loss needs teachers: add a table [udon]")
        if (self.sampling.kind == "steps") != bool(self.sampling.steps):
            raise ValueError("sampling.steps and sampling.kind = 'steps' must be used together")
        if self.udon is not None and self.classifier.kind != "separate":
            raise ValueError("UDON needs separate classifiers: classifier.kind = 'separate'")
        kinds = [stage.train for stage in self.stages]
        if ("all", "head") in pairwise(kinds):
            raise ValueError("a stage `head` cannot follow a stage `all`: it would use the untuned network")
        return self


def load_strategy(file: Path, **changes: Any) -> Strategy:
    """Read a TOML file. `changes` replace top-level values. Raises ConfigError."""
    try:
        return Strategy.model_validate({**_read(file), **changes})
    except ValidationError as error:
        unknown = "unknown key; see docs/training.md"
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: "
            f"{unknown if fault['type'] == 'extra_forbidden' else fault['msg']}"
            for fault in error.errors()
        )
        raise ConfigError(f"{file}: {faults}") from error


def _read(file: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    if file.resolve() in children:
        raise ConfigError(f"{file} extends itself")
    try:
        table = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: {getattr(error, 'strerror', None) or error}") from error
    parent = table.pop("extends", None)
    if parent is None:
        return table
    if not isinstance(parent, str):
        raise ConfigError(f"{file}: extends = {parent!r} is not a file name")
    return _merged(_read(file.parent / parent, (*children, file.resolve())), table)


def _merged(parent: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    merged = dict(parent)
    for key, value in child.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
