"""Every loss against a computation of its own in NumPy."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from model_export.training.config import Classifier, Strategy, Udon
from model_export.training.objective import Classifiers, Objective, Teachers
from tests.model_export.training.conftest import tiny

CLASSES = {"a": 3, "b": 2}
LABELS = torch.tensor([0, 1, 1, 0])


def embedding(dim: int = 6) -> torch.Tensor:
    return functional.normalize(torch.randn(4, dim, generator=torch.Generator().manual_seed(1)))


def made(said: Classifier, dim: int = 6) -> Classifiers:
    torch.manual_seed(2)
    return Classifiers(said, CLASSES, dim)


def centres_of(classifiers: Classifiers) -> list["np.ndarray[tuple[int, ...], np.dtype[np.float64]]"]:
    return [one.detach().double().numpy() for one in classifiers.centres]


def by_hand(
    rows: torch.Tensor, centres: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]", labels: list[int],
    said: Classifier,
) -> float:  # fmt: skip
    """Cross-entropy, one query at a time."""
    total = 0.0
    for row, label in zip(rows.double().numpy(), labels, strict=True):
        cosines = centres @ row / np.linalg.norm(centres, axis=1)
        cosines = cosines.reshape(-1, said.subcentres).max(axis=1)
        if said.loss == "cosface":
            cosines[label] -= said.margin
        if said.loss == "arcface":
            angle = math.acos(cosines[label]) + said.margin
            cosines[label] = (
                math.cos(angle) if angle < math.pi else cosines[label] - said.margin * math.sin(said.margin)
            )
        logits = said.scale * cosines
        total += math.log(np.exp(logits).sum()) - logits[label]
    return total / len(rows)


@pytest.mark.parametrize(
    "said",
    [
        Classifier(kind="separate"),
        Classifier(kind="joint"),
        Classifier(kind="joint", loss="cosface", margin=0.35, scale=30),
        Classifier(kind="separate", loss="arcface", margin=0.5, scale=30),
        Classifier(kind="separate", loss="arcface", margin=0.5, scale=30, subcentres=3),
        Classifier(kind="joint", loss="arcface", margin=2.5, scale=4, subcentres=2),
    ],
    ids=lambda said: f"{said.kind}-{said.loss}-{said.subcentres}",
)
def test_losses_by_hand(said: Classifier) -> None:
    classifiers = made(said)
    centres = centres_of(classifiers)
    assert [len(one) for one in centres] == [
        size * said.subcentres for size in ([5] if said.kind == "joint" else [3, 2])
    ]
    for number, domain in enumerate(CLASSES):
        mine = centres[0] if said.kind == "joint" else centres[number]
        offset = 3 if said.kind == "joint" and domain == "b" else 0
        wanted = by_hand(embedding(), mine, [int(one) + offset for one in LABELS], said)
        assert float(classifiers.loss(embedding(), LABELS, domain).detach()) == pytest.approx(
            wanted, rel=1e-5
        )


def test_arcface_goes_on_rising_past_pi() -> None:
    """Where angle + margin passes pi, the plain formula would reward a wrong direction."""
    said = Classifier(kind="joint", loss="arcface", margin=0.5, scale=1)
    classifiers = made(said, dim=2)
    with torch.no_grad():
        classifiers.centres[0].zero_()
        classifiers.centres[0][0] = torch.tensor([1.0, 0.0])
    angles = torch.linspace(0, math.pi, 50)
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    losses = [float(classifiers.loss(row[None], torch.tensor([0]), "a").detach()) for row in rows]
    assert all(one < other + 1e-6 for one, other in itertools.pairwise(losses))


def test_separate_classifiers_learn_from_their_domain_alone() -> None:
    classifiers = made(Classifier(kind="separate"))
    classifiers.loss(embedding(), LABELS, "b").backward()  # type: ignore[no-untyped-call]
    assert classifiers.centres[0].grad is None
    assert float(classifiers.centres[1].grad.abs().sum()) > 0


def test_udons_four_losses_by_hand() -> None:
    torch.manual_seed(3)
    said = Udon(teacher_dim=5, temperature=0.1)
    classifier = Classifier(kind="separate")
    teachers = Teachers(said, classifier, CLASSES, 7)
    unit = functional.normalize(torch.randn(4, 7))
    student, student_cosines = embedding(), made(classifier).cosines(embedding(), "a")
    losses = {
        name: float(one.detach())
        for name, one in teachers(unit, LABELS, "a", student, student_cosines).items()
    }

    layer = teachers.embed[0]
    assert isinstance(layer, torch.nn.Linear)
    wide = (unit @ layer.weight.T + layer.bias).detach().double().numpy()
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    centres = centres_of(teachers.classifiers)[0]
    centres = centres / np.linalg.norm(centres, axis=1, keepdims=True)

    def softmax(rows: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]") -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":  # fmt: skip  # noqa: E501
        exps = np.exp(rows / 0.1)
        return np.asarray(exps / exps.sum(axis=1, keepdims=True))

    theirs, ours = softmax(wide @ centres.T), softmax(student_cosines.detach().double().numpy())
    divergence = (theirs * np.log(theirs / ours)).sum(axis=1).mean()
    small = student.double().numpy()
    wanted = {
        "teacher": by_hand(torch.from_numpy(wide), centres, LABELS.tolist(), classifier),
        "logits": divergence,
        "similarity": ((small @ small.T - wide @ wide.T) ** 2).mean(),
    }
    assert losses == pytest.approx(wanted, rel=1e-4)


def test_the_teacher_learns_nothing_from_the_student() -> None:
    said = Strategy.model_validate(
        {**tiny().model_dump(), "udon": {"teacher_dim": 5}, "classifier": {"kind": "separate"}}
    )
    objective = Objective(said, CLASSES, 7)
    losses = objective(torch.randn(4, 7), LABELS, "a")
    assert set(losses) == {"class", "teacher", "logits", "similarity"}
    (losses["class"] + losses["logits"] + losses["similarity"]).backward()
    assert objective.teachers is not None
    assert all(parameter.grad is None for parameter in objective.teachers.parameters())
    assert float(objective.embed.weight.grad.abs().sum()) > 0  # type: ignore[union-attr]


def test_dropout_is_of_the_training_alone() -> None:
    objective = Objective(tiny(head={"dropout": 0.5}), CLASSES, 7)
    rows = torch.randn(4, 7)
    objective.train()
    assert float(objective(rows, LABELS, "a")["class"].detach()) != float(
        objective(rows, LABELS, "a")["class"].detach()
    )
    objective.eval()
    assert float(objective(rows, LABELS, "a")["class"].detach()) == float(
        objective(rows, LABELS, "a")["class"].detach()
    )


def test_the_anchor_by_hand_and_as_far_as_it_is_trusted() -> None:
    said = tiny(anchor={"weight": 10.0})
    frozen = torch.randn(4, 7, generator=torch.Generator().manual_seed(5))
    rows = torch.randn(4, 7, generator=torch.Generator().manual_seed(6))
    objective = Objective(said, CLASSES, 7, {"a": 0.5, "b": 1.0}).eval()
    losses = {domain: objective(rows, LABELS, domain, frozen) for domain in CLASSES}
    unit = rows / rows.norm(dim=1, keepdim=True)
    small = functional.normalize(unit @ objective.embed.weight.T + objective.embed.bias).detach().numpy()
    held = (frozen / frozen.norm(dim=1, keepdim=True)).numpy()
    wanted = ((small @ small.T - held @ held.T) ** 2).mean()
    assert float(losses["a"]["anchor"].detach()) == pytest.approx(10 * 0.25 * wanted, rel=1e-5)
    assert float(losses["b"]["anchor"].detach()) == pytest.approx(10 * 1.0 * wanted, rel=1e-5)
    assert "anchor" not in objective(rows, LABELS, "a")
