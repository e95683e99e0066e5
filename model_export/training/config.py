"""A training strategy, as a TOML file says it.

`extends = "other.toml"` takes everything from another file, table by table, and changes what is said here.
"""

import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from model_export.errors import ConfigError


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Head(_Table):
    """A linear layer with bias on the L2-normalised descriptor."""

    dim: int = Field(64, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1, description="On the descriptor.")
    init: Literal["random", "whitened"] = Field("random", description="whitened: from the whitened PCA.")


class Classifier(_Table):
    """What the embedding is trained with, and what is thrown away afterwards."""

    kind: Literal["joint", "separate"] = Field("joint", description="One over all domains, or one for each.")
    loss: Literal["normface", "arcface", "cosface"] = "normface"
    scale: float = Field(16.0, gt=0)
    margin: float = Field(0.0, ge=0, description="arcface: an angle in radians; cosface: of the cosine.")
    subcentres: int = Field(1, ge=1, description="Centres of each class; the nearest counts.")

    @model_validator(mode="after")
    def _margin_belongs_to_the_loss(self) -> Self:
        if (self.loss == "normface") != (self.margin == 0):
            raise ValueError(f"{self.loss} with margin {self.margin}: normface has none, the others need one")
        return self


class Sampling(_Table):
    """Which domain each batch comes from (UnED, section 4; `steps` is of its code only)."""

    kind: Literal["round-robin", "dataset-size", "balanced", "steps", "teacher-loss"] = "round-robin"
    steps: dict[str, PositiveInt] = Field({}, description="Batches of each domain, for kind `steps`.")
    size_power: float = Field(1.0, ge=0, le=1, description="dataset-size: shares go with size to this power.")


class Udon(_Table):
    """Teachers of each domain, distilled into the shared student (arXiv 2406.08332)."""

    teacher_dim: int = Field(256, ge=1)
    temperature: float = Field(0.1, gt=0)


class Anchor(_Table):
    """Holds the embedding to the frozen backbone's similarities, as far as those can be trusted.

    Squared difference of the batch's cosines, times `weight`, times the square of the frozen backbone's own
    R@1 on the domain's training pictures: what it can do already is kept, what it cannot is learned freely.
    """

    weight: float = Field(gt=0)


class Stage(_Table):
    """A part of the training with its own rates."""

    train: Literal["head", "all"]
    epochs: float = Field(gt=0, description="Of all training images taken together.")
    batch: int = Field(128, ge=1)
    lr: float = Field(1e-3, gt=0, description="Of head and classifiers.")
    backbone_lr: float = Field(1e-5, gt=0)
    weight_decay: float = Field(1e-6, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    views: int = Field(
        1, ge=1, description="train = head: descriptors kept of each image, all but one augmented."
    )
    augment: bool = Field(False, description="train = all: crops, colours, blur, small turns.")
    freeze: list[str] = Field([], description="train = all: beginnings of parameters' names that stay.")
    evaluations: int = Field(10, ge=1, description="Validated, and saved, this often.")


class Strategy(_Table):
    """A whole configuration."""

    title: str
    backbone: str
    weights: str = "pretrained"
    domains: list[str] = Field([], description="Train on these only; all if empty.")
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
        """For a model's manifest."""
        said = self.classifier
        margin = f" (margin {said.margin:g})" if said.margin else ""
        centres = f", {said.subcentres} centres a class" if said.subcentres > 1 else ""
        trained = {"head": "head", "all": "whole network"}
        parts = [
            f"{said.kind} {said.loss}{margin}{centres}, scale {said.scale:g}",
            f"sampling by {self.sampling.kind}",
            *(["teachers of each domain (UDON)"] if self.udon else []),
            *([f"anchor {self.anchor.weight:g}"] if self.anchor else []),
            *(f"{trained[stage.train]} {stage.epochs:g} epochs" for stage in self.stages),
        ]
        return f"{self.title}: {'; '.join(parts)}; seed {self.seed}"

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.sampling.kind == "teacher-loss" and self.udon is None:
            raise ValueError("sampling by teacher-loss needs teachers: a table [udon]")
        if (self.sampling.kind == "steps") != bool(self.sampling.steps):
            raise ValueError("sampling.steps and sampling.kind = 'steps' go together")
        if self.udon is not None and self.classifier.kind != "separate":
            raise ValueError("UDON's teachers and student have separate classifiers")
        kinds = [stage.train for stage in self.stages]
        if ("all", "head") in pairwise(kinds):
            raise ValueError("a stage `head` after a stage `all`: it would train on the untuned network")
        return self


def load_strategy(file: Path, **changes: Any) -> Strategy:
    """Read a TOML file; `changes` replace its top-level values. Raises ConfigError."""
    try:
        return Strategy.model_validate({**_read(file), **changes})
    except ValidationError as error:
        said = ((".".join(map(str, one["loc"])), one["type"], one["msg"]) for one in error.errors())
        faults = "; ".join(f"{place}: {_said(kind, message)}" for place, kind, message in said)
        raise ConfigError(f"{file}: {faults}") from error


def _said(kind: str, message: str) -> str:
    return "no such word; docs/training.md says where they are" if kind == "extra_forbidden" else message


def _read(file: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    if file.resolve() in children:
        raise ConfigError(f"{file} extends itself")
    try:
        said = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: {getattr(error, 'strerror', None) or error}") from error
    parent = said.pop("extends", None)
    if parent is None:
        return said
    if not isinstance(parent, str):
        raise ConfigError(f"{file}: extends = {parent!r} is not a file's name")
    return _merged(_read(file.parent / parent, (*children, file.resolve())), said)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        both[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both
