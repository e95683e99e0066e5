"""What the loop works on: the module that learns, its optimizer, and the memory that a checkpoint keeps."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from model_export.training.config import Stage
from model_export.training.objective import Objective
from model_export.training.run_folder import Summary


class Trainee(nn.Module):
    """Backbone and objective as one module, so that one call is one step on any number of devices."""

    def __init__(self, descriptor: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.descriptor, self.objective = descriptor, objective

    def forward(
        self, inputs: Tensor, labels: Tensor, domain: str, frozen: Tensor | None
    ) -> dict[str, Tensor]:
        """Pixels (uint8) go through the backbone; descriptors (float32) have been there already."""
        if inputs.dtype == torch.uint8:
            inputs = self.descriptor(inputs)
        # Angles and scaled cosines need more than the three digits of a half-precision number.
        with torch.autocast(inputs.device.type, enabled=False):
            losses: dict[str, Tensor] = self.objective(inputs.float(), labels, domain, frozen)
        return losses

    def train(self, mode: bool = True) -> "Trainee":
        """The backbone stays in eval mode: batches of one domain would ruin its batch statistics."""
        super().train(mode)
        self.descriptor.eval()
        return self


@dataclass
class Memory:
    """Where a run is."""

    stage: int = 0
    step: int = 0  # of the stage
    total_steps: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    best_val: float = -1.0
    best_stage: int = 0
    best_step: int = 0
    best_steps: dict[str, int] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)  # batches of each domain so far
    visits: dict[str, int] = field(default_factory=dict)  # of this stage
    teacher_loss: dict[str, float] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)

    def summary(self, title: str) -> Summary:
        """What the run came to."""
        return Summary(
            title=title,
            best_stage=self.best_stage,
            best_step=self.best_step,
            best_val_r_at_1=self.best_val,
            steps=self.best_steps,
            wall_s=self.wall_s,
            cpu_s=self.cpu_s,
        )

    def checkpoint(self, trainee: Trainee, optimizer: torch.optim.Optimizer, trained: bool) -> dict[str, Any]:
        """All that resuming needs. The backbone is kept once it has been `trained`."""
        return {
            "objective": trainee.objective.state_dict(),
            "descriptor": trainee.descriptor.state_dict() if trained else None,
            "optimizer": optimizer.state_dict(),
            "memory": asdict(self),
        }


class Means:
    """Running means by name."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: dict[str, float]) -> None:
        """One value for each name."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """The means so far."""
        return {name: total / self._counts[name] for name, total in self._sums.items()}


def make_optimizer(trainee: Trainee, stage: Stage) -> torch.optim.Optimizer:
    """AdamW over what the stage trains; everything else is frozen."""
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


def rate_factor(stage: Stage, steps: int) -> Callable[[int], float]:
    """What the stage's rates are multiplied with at each step."""

    def cosine(step: int) -> float:
        warm_up = min(1.0, (step + 1) / (0.05 * steps + 1))
        return warm_up * 0.5 * (1 + math.cos(math.pi * step / steps))

    return cosine if stage.schedule == "cosine" else lambda _: 1.0
