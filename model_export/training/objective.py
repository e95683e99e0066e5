"""From a descriptor to the losses: the embedding, its classifiers, and UDON's teachers.

Every batch comes from one domain. A classifier's logits are cosines to its class centres, times a scale.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_export.training.config import Classifier, Strategy, Udon

# Only a centre's direction counts, and a step turns a short one further: centres go to where the embedding
# is, and not the embedding to where they happened to begin.
_SHORT = 0.05


class Classifiers(nn.Module):
    """Class centres, jointly over all domains or separately for each."""

    def __init__(self, said: Classifier, classes: Mapping[str, int], dim: int) -> None:
        super().__init__()
        self.said = said
        self.names = list(classes)  # ParameterDict keys may not hold dots; domains may
        if said.kind == "joint":
            sizes, starts = (
                [sum(classes.values())],
                [sum(list(classes.values())[:n]) for n in range(len(classes))],
            )
        else:
            sizes, starts = list(classes.values()), [0] * len(classes)
        self.starts = dict(zip(classes, starts, strict=True))
        self.centres = nn.ParameterList(
            nn.Parameter(nn.init.normal_(torch.empty(size * said.subcentres, dim), std=_SHORT))
            for size in sizes
        )

    def cosines(self, embedding: Tensor, domain: str) -> Tensor:
        """(B, dim), unit norm -> (B, classes)."""
        which = 0 if self.said.kind == "joint" else self.names.index(domain)
        centres = functional.normalize(self.centres[which])
        cosines = embedding @ centres.T  # (B, classes * subcentres)
        return cosines.reshape(len(cosines), -1, self.said.subcentres).amax(dim=2)

    def loss(self, embedding: Tensor, labels: Tensor, domain: str) -> Tensor:
        """Cross-entropy of scaled cosines, the right class made harder by the margin."""
        labels = labels + self.starts[domain]
        cosines = self.cosines(embedding, domain)
        if self.said.margin:
            right = cosines.gather(1, labels[:, None])
            cosines = cosines.scatter(1, labels[:, None], _harder(right, self.said))
        return functional.cross_entropy(cosines * self.said.scale, labels)


def _harder(cosine: Tensor, said: Classifier) -> Tensor:
    if said.loss == "cosface":
        return cosine - said.margin
    # Past pi - margin, cos(angle + margin) would rise again: there the penalty goes on linearly.
    inside = cosine.clamp(-1 + 1e-6, 1 - 1e-6)
    moved = torch.cos(torch.acos(inside) + said.margin)
    return torch.where(
        cosine > math.cos(math.pi - said.margin), moved, cosine - said.margin * math.sin(said.margin)
    )


class Objective(nn.Module):
    """The embedding and everything that trains it."""

    def __init__(
        self,
        said: Strategy,
        classes: Mapping[str, int],
        descriptor_dim: int,
        trust: Mapping[str, float] | None = None,
    ) -> None:
        """`trust` is the frozen backbone's R@1 of each domain, where an anchor needs it."""
        super().__init__()
        self.dropout = said.head.dropout
        self.embed = nn.Linear(descriptor_dim, said.head.dim)
        self.classifiers = Classifiers(said.classifier, classes, said.head.dim)
        weight = said.anchor.weight if said.anchor else 0.0
        self.anchor = {domain: weight * share**2 for domain, share in (trust or {}).items()}
        self.teachers = Teachers(said.udon, said.classifier, classes, descriptor_dim) if said.udon else None

    def forward(
        self, descriptor: Tensor, labels: Tensor, domain: str, frozen: Tensor | None = None
    ) -> dict[str, Tensor]:
        """(B, D), (B,) -> each loss by name; what is minimised is their sum.

        `frozen` are the frozen backbone's descriptors of the same pictures, (B, D), for the anchor.
        """
        unit = functional.dropout(functional.normalize(descriptor), self.dropout, self.training)
        embedding = functional.normalize(self.embed(unit))
        losses = {"class": self.classifiers.loss(embedding, labels, domain)}
        if self.teachers is not None:
            student = self.classifiers.cosines(embedding, domain)
            losses |= self.teachers(unit, labels, domain, embedding, student)
        if frozen is not None:
            held = functional.normalize(frozen)
            moved = functional.mse_loss(embedding @ embedding.T, held @ held.T)
            losses["anchor"] = self.anchor[domain] * moved
        return losses


class Teachers(nn.Module):
    """UDON: a wider embedding for each domain, whose knowledge the student takes over.

    Four terms of equal weight: the cross-entropies of teacher and student, the divergence of their
    class distributions at a temperature, and the squared difference of their similarities in the batch.
    The student learns from the teacher and not the other way: its targets carry no gradient.
    """

    def __init__(self, said: Udon, classifier: Classifier, classes: Mapping[str, int], width: int) -> None:
        super().__init__()
        self.names = list(classes)
        self.temperature = said.temperature
        self.embed = nn.ModuleList(nn.Linear(width, said.teacher_dim) for _ in classes)
        self.classifiers = Classifiers(classifier, classes, said.teacher_dim)

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
