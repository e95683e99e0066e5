"""Every loss compared with a separate computation in NumPy."""

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from model_export.training.config import Classifier, Strategy, Udon
from model_export.training.objective import Classifiers, Objective, Teachers
from tests.support.shapes import tiny_strategy

Floats = NDArray[np.float64]
CLASSES = {"a": 3, "b": 2}
LABELS = torch.tensor([0, 1, 1, 0])


def embedding(dim: int = 6) -> torch.Tensor:
    return functional.normalize(torch.randn(4, dim, generator=torch.Generator().manual_seed(1)))


def classifiers_of(config: Classifier, dim: int = 6) -> Classifiers:
    torch.manual_seed(2)
    return Classifiers(config, CLASSES, dim)


def centres_of(classifiers: Classifiers) -> list[Floats]:
    return [centre.detach().double().numpy() for centre in classifiers.centres]


def reference_loss(rows: torch.Tensor, centres: Floats, labels: list[int], config: Classifier) -> float:
    """Compute the cross-entropy row by row."""
    total = 0.0
    for row, label in zip(rows.double().numpy(), labels, strict=True):
        cosines = centres @ row / np.linalg.norm(centres, axis=1)
        cosines = cosines.reshape(-1, config.subcentres).max(axis=1)
        if config.loss == "cosface":
            cosines[label] -= config.margin
        if config.loss == "arcface":
            angle = math.acos(cosines[label]) + config.margin
            cosines[label] = (
                math.cos(angle)
                if angle < math.pi
                else cosines[label] - config.margin * math.sin(config.margin)
            )
        logits = config.scale * cosines
        total += math.log(np.exp(logits).sum()) - logits[label]
    return total / len(rows)


@pytest.mark.parametrize(
    "config",
    [
        Classifier(kind="separate"),
        Classifier(kind="joint"),
        Classifier(kind="joint", loss="cosface", margin=0.35, scale=30),
        Classifier(kind="separate", loss="arcface", margin=0.5, scale=30),
        Classifier(kind="separate", loss="arcface", margin=0.5, scale=30, subcentres=3),
        Classifier(kind="joint", loss="arcface", margin=2.5, scale=4, subcentres=2),
    ],
    ids=lambda config: f"{config.kind}-{config.loss}-{config.subcentres}",
)
def test_losses_match_the_reference(config: Classifier) -> None:
    classifiers = classifiers_of(config)
    centres = centres_of(classifiers)
    assert [len(rows) for rows in centres] == [
        size * config.subcentres for size in ([5] if config.kind == "joint" else [3, 2])
    ]
    for number, domain in enumerate(CLASSES):
        own = centres[0] if config.kind == "joint" else centres[number]
        offset = 3 if config.kind == "joint" and domain == "b" else 0
        expected = reference_loss(embedding(), own, [int(label) + offset for label in LABELS], config)
        assert float(classifiers.loss(embedding(), LABELS, domain).detach()) == pytest.approx(
            expected, rel=1e-5
        )


def test_arcface_rises_beyond_pi() -> None:
    """Beyond angle + margin = pi, the plain formula would reward a wrong direction."""
    config = Classifier(kind="joint", loss="arcface", margin=0.5, scale=1)
    classifiers = classifiers_of(config, dim=2)
    with torch.no_grad():
        classifiers.centres[0].zero_()
        classifiers.centres[0][0] = torch.tensor([1.0, 0.0])
    angles = torch.linspace(0, math.pi, 50)
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    losses = [float(classifiers.loss(row[None], torch.tensor([0]), "a").detach()) for row in rows]
    assert all(left < right + 1e-6 for left, right in itertools.pairwise(losses))


def test_separate_classifiers_learn_from_their_domain_only() -> None:
    classifiers = classifiers_of(Classifier(kind="separate"))
    classifiers.loss(embedding(), LABELS, "b").backward()  # type: ignore[no-untyped-call]
    assert classifiers.centres[0].grad is None
    assert float(classifiers.centres[1].grad.abs().sum()) > 0


def test_udon_losses_match_the_reference() -> None:
    torch.manual_seed(3)
    config = Udon(teacher_dim=5, temperature=0.1)
    classifier = Classifier(kind="separate")
    teachers = Teachers(config, classifier, CLASSES, 7)
    unit = functional.normalize(torch.randn(4, 7))
    student, student_cosines = embedding(), classifiers_of(classifier).cosines(embedding(), "a")
    losses = {
        name: float(loss.detach())
        for name, loss in teachers(unit, LABELS, "a", student, student_cosines).items()
    }

    layer = teachers.embed[0]
    assert isinstance(layer, torch.nn.Linear)
    wide = (unit @ layer.weight.T + layer.bias).detach().double().numpy()
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    centres = centres_of(teachers.classifiers)[0]
    centres = centres / np.linalg.norm(centres, axis=1, keepdims=True)

    def softmax(rows: Floats) -> Floats:
        exps = np.exp(rows / 0.1)
        return np.asarray(exps / exps.sum(axis=1, keepdims=True))

    teacher, pupil = softmax(wide @ centres.T), softmax(student_cosines.detach().double().numpy())
    divergence = (teacher * np.log(teacher / pupil)).sum(axis=1).mean()
    small = student.double().numpy()
    expected = {
        "teacher": reference_loss(torch.from_numpy(wide), centres, LABELS.tolist(), classifier),
        "logits": divergence,
        "similarity": ((small @ small.T - wide @ wide.T) ** 2).mean(),
    }
    assert losses == pytest.approx(expected, rel=1e-4)


def test_teacher_does_not_learn_from_the_student() -> None:
    strategy = Strategy.model_validate(
        {**tiny_strategy().model_dump(), "udon": {"teacher_dim": 5}, "classifier": {"kind": "separate"}}
    )
    objective = Objective(strategy, CLASSES, 7)
    losses = objective(torch.randn(4, 7), LABELS, "a")
    assert set(losses) == {"class", "teacher", "logits", "similarity"}
    (losses["class"] + losses["logits"] + losses["similarity"]).backward()
    assert objective.teachers is not None
    assert all(parameter.grad is None for parameter in objective.teachers.parameters())
    assert float(objective.embed.weight.grad.abs().sum()) > 0  # type: ignore[union-attr]


def test_dropout_is_active_in_training_only() -> None:
    objective = Objective(tiny_strategy(head={"dropout": 0.5}), CLASSES, 7)
    rows = torch.randn(4, 7)
    objective.train()
    assert float(objective(rows, LABELS, "a")["class"].detach()) != float(
        objective(rows, LABELS, "a")["class"].detach()
    )
    objective.eval()
    assert float(objective(rows, LABELS, "a")["class"].detach()) == float(
        objective(rows, LABELS, "a")["class"].detach()
    )


def test_anchor_matches_the_reference_scaled_by_trust() -> None:
    strategy = tiny_strategy(anchor={"weight": 10.0})
    frozen = torch.randn(4, 7, generator=torch.Generator().manual_seed(5))
    rows = torch.randn(4, 7, generator=torch.Generator().manual_seed(6))
    objective = Objective(strategy, CLASSES, 7, {"a": 0.5, "b": 1.0}).eval()
    losses = {domain: objective(rows, LABELS, domain, frozen) for domain in CLASSES}
    unit = rows / rows.norm(dim=1, keepdim=True)
    small = functional.normalize(unit @ objective.embed.weight.T + objective.embed.bias).detach().numpy()
    before = (frozen / frozen.norm(dim=1, keepdim=True)).numpy()
    expected = ((small @ small.T - before @ before.T) ** 2).mean()
    assert float(losses["a"]["anchor"].detach()) == pytest.approx(10 * 0.25 * expected, rel=1e-5)
    assert float(losses["b"]["anchor"].detach()) == pytest.approx(10 * 1.0 * expected, rel=1e-5)
    assert "anchor" not in objective(rows, LABELS, "a")
