"""Losses of a descriptor: the embedding, its classifiers, and UDON's teachers.

Every batch comes from one domain. The logits of a classifier are scaled cosines to its class centres.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_export.training.config import Classifier, Strategy, Udon

# Only the direction of a centre matters, and a step turns a short one further. So the centres move towards
# the embedding, rather than the embedding towards random centres.
_CENTRE_STD = 0.05


class Classifiers(nn.Module):
    """Class centres, joint for all domains or separate for each."""

    def __init__(self, config: Classifier, classes: Mapping[str, int], dim: int) -> None:
        super().__init__()
        self.config = config
        self.names = list(classes)  # domains may contain dots, which ParameterDict keys may not
        sizes, starts = list(classes.values()), [0] * len(classes)
        if config.kind == "joint":
            sizes, starts = [sum(sizes)], [sum(sizes[:number]) for number in range(len(sizes))]
        self.starts = dict(zip(classes, starts, strict=True))
        self.centres = nn.ParameterList(
            nn.Parameter(nn.init.normal_(torch.empty(size * config.subcentres, dim), std=_CENTRE_STD))
            for size in sizes
        )

    def cosines(self, embedding: Tensor, domain: str) -> Tensor:
        """Return the cosines (B, classes) of embeddings (B, dim) of unit norm."""
        number = 0 if self.config.kind == "joint" else self.names.index(domain)
        centres = functional.normalize(self.centres[number])
        cosines = embedding @ centres.T  # (B, classes * subcentres)
        return cosines.reshape(len(cosines), -1, self.config.subcentres).amax(dim=2)

    def loss(self, embedding: Tensor, labels: Tensor, domain: str) -> Tensor:
        """Return the cross-entropy of scaled cosines, with the margin applied to the true class."""
        labels = labels + self.starts[domain]
        cosines = self.cosines(embedding, domain)
        if self.config.margin:
            true = cosines.gather(1, labels[:, None])
            cosines = cosines.scatter(1, labels[:, None], _with_margin(true, self.config))
        return functional.cross_entropy(cosines * self.config.scale, labels)


def _with_margin(cosine: Tensor, config: Classifier) -> Tensor:
    margin = config.margin
    if config.loss == "cosface":
        return cosine - margin
    # Beyond pi - margin, cos(angle + margin) would rise again, so the penalty continues linearly.
    inside = cosine.clamp(-1 + 1e-6, 1 - 1e-6)
    moved = torch.cos(torch.acos(inside) + margin)
    return torch.where(cosine > math.cos(math.pi - margin), moved, cosine - margin * math.sin(margin))


class Objective(nn.Module):
    """The embedding and the losses that train it."""

    def __init__(
        self,
        strategy: Strategy,
        classes: Mapping[str, int],
        descriptor_dim: int,
        trust: Mapping[str, float] | None = None,
    ) -> None:
        """`trust` is the frozen backbone's R@1 by domain, used by an anchor."""
        super().__init__()
        head, classifier, udon = strategy.head, strategy.classifier, strategy.udon
        self.dropout = head.dropout
        self.embed = nn.Linear(descriptor_dim, head.dim)
        self.classifiers = Classifiers(classifier, classes, head.dim)
        weight = strategy.anchor.weight if strategy.anchor else 0.0
        self.anchor = {domain: weight * share**2 for domain, share in (trust or {}).items()}
        self.teachers = Teachers(udon, classifier, classes, descriptor_dim) if udon else None

    def forward(
        self, descriptor: Tensor, labels: Tensor, domain: str, frozen: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the losses of (B, D), (B,) by name; their sum is minimised.

        `frozen` holds the frozen backbone's descriptors of the same images, (B, D), for the anchor.
        """
        unit = functional.dropout(functional.normalize(descriptor), self.dropout, self.training)
        embedding = functional.normalize(self.embed(unit))
        losses = {"class": self.classifiers.loss(embedding, labels, domain)}
        if self.teachers is not None:
            student = self.classifiers.cosines(embedding, domain)
            losses |= self.teachers(unit, labels, domain, embedding, student)
        if frozen is not None:
            before = functional.normalize(frozen)
            difference = functional.mse_loss(embedding @ embedding.T, before @ before.T)
            losses["anchor"] = self.anchor[domain] * difference
        return losses


class Teachers(nn.Module):
    """UDON: a wider embedding per domain, distilled into the student.

    The loss has four terms of equal weight: the cross-entropies of teacher and student, the divergence of
    their class distributions at a temperature, and the squared difference of their similarities in the batch.
    The targets carry no gradient, so the teacher does not learn from the student.
    """

    def __init__(self, config: Udon, classifier: Classifier, classes: Mapping[str, int], width: int) -> None:
        super().__init__()
        self.names = list(classes)
        self.temperature = config.temperature
        self.embed = nn.ModuleList(nn.Linear(width, config.teacher_dim) for _ in classes)
        self.classifiers = Classifiers(classifier, classes, config.teacher_dim)

    def forward(
        self, unit: Tensor, labels: Tensor, domain: str, student: Tensor, student_cosines: Tensor
    ) -> dict[str, Tensor]:
        embedding = functional.normalize(self.embed[self.names.index(domain)](unit))
        target = self.classifiers.cosines(embedding, domain).detach() / self.temperature
        similar = (embedding @ embedding.T).detach()  # (B, B)
        return {
            "teacher": self.classifiers.loss(embedding, labels, domain),
            "logits": functional.kl_div(
                functional.log_softmax(student_cosines / self.temperature, dim=1),
                functional.log_softmax(target, dim=1),
                reduction="batchmean",
                log_target=True,
            ),
            "similarity": functional.mse_loss(student @ student.T, similar),
        }
