"""State of the training loop: the trained module, its optimizer, and the progress stored in a checkpoint."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.scoring.measures import DomainScore, mean_over_domains
from model_export.training.config import Stage
from model_export.training.objective import Objective
from model_export.training.run_folder import Summary


class Trainee(nn.Module):
    """Backbone and objective in one module, so that a step is a single call on any number of devices."""

    def __init__(self, descriptor: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.descriptor, self.objective = descriptor, objective

    def forward(
        self, inputs: Tensor, labels: Tensor, domain: str, frozen: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the losses of pixels (uint8), or of descriptors (float32), which skip the backbone."""
        if inputs.dtype == torch.uint8:
            inputs = self.descriptor(inputs)
        # Half precision, with three digits, is too coarse for angles and scaled cosines.
        with torch.autocast(inputs.device.type, enabled=False):
            losses: dict[str, Tensor] = self.objective(inputs.float(), labels, domain, frozen)
        return losses

    def train(self, mode: bool = True) -> "Trainee":
        """Keep the backbone in eval mode: single-domain batches would distort its batch statistics."""
        super().train(mode)
        self.descriptor.eval()
        return self


@dataclass
class Memory:
    """Progress of a run."""

    stage: int = 0
    step: int = 0  # in the stage
    total_steps: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    best_val: float = -1.0
    best_stage: int = 0
    best_step: int = 0
    best_steps: dict[str, int] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)  # batches by domain so far
    visits: dict[str, int] = field(default_factory=dict)  # in this stage
    teacher_loss: dict[str, float] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)

    def record(self, stage: int, scores: dict[str, DomainScore], losses: dict[str, float]) -> bool:
        """Log an evaluation. Return True if its mean R@1 is the highest so far."""
        mean = mean_over_domains(scores)
        self.log.append(
            {
                "stage": stage,
                "step": self.step,
                "total_steps": self.total_steps,
                "val R@1": mean["R@1"],
                "val mMP@5": mean["mMP@5"],
                **{f"loss {name}": value for name, value in losses.items()},
                **{f"R@1 {domain}": score.r_at_1 for domain, score in scores.items()},
                "wall_s": round(self.wall_s, 1),
                "cpu_s": round(self.cpu_s, 1),
            }
        )
        if mean["R@1"] <= self.best_val:
            return False
        self.best_val, self.best_steps = mean["R@1"], dict(self.steps)
        self.best_stage, self.best_step = stage, self.step
        return True

    def summary(self, title: str) -> Summary:
        """Summarise the finished run."""
        return Summary(
            title=title,
            best_stage=self.best_stage,
            best_step=self.best_step,
            best_val_r_at_1=self.best_val,
            steps=self.best_steps,
            wall_s=self.wall_s,
            cpu_s=self.cpu_s,
        )


def make_optimizer(trainee: Trainee, stage: Stage) -> torch.optim.Optimizer:
    """Create AdamW for the parameters that the stage trains, and freeze the others."""
    groups = [{"params": list(trainee.objective.parameters()), "lr": stage.lr}]
    trained = []
    for name, parameter in trainee.descriptor.named_parameters():
        frozen = stage.train == "head" or name.startswith(tuple(stage.freeze))
        parameter.requires_grad_(not frozen)
        if not frozen:
            trained.append(parameter)
    if trained:
        groups.append({"params": trained, "lr": stage.backbone_lr})
    return torch.optim.AdamW(groups, weight_decay=stage.weight_decay)


def rate_factor(stage: Stage, step: int, steps: int) -> float:
    """Return the factor of the learning rates at a step of a stage."""
    if stage.schedule == "constant":
        return 1.0
    warm_up = min(1.0, (step + 1) / (0.05 * steps + 1))
    return warm_up * 0.5 * (1 + math.cos(math.pi * step / steps))
