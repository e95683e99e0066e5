"""The domains and the images of batches, with hand-computed counts."""

from collections import Counter

import numpy as np
import pytest

from model_export.errors import ConfigError
from model_export.training.config import Sampling
from model_export.training.sampling import Planner, domain_plan

SIZES = {"big": 60, "middle": 30, "small": 10}


def planner(kind: str, batch: int = 8, steps: int = 100, seed: int = 0, **more: object) -> Planner:
    config = Sampling.model_validate({"kind": kind, **more})
    return Planner(config, SIZES, batch, steps, seed, {})


def test_round_robin_alternates() -> None:
    assert domain_plan(Sampling(), SIZES, 5, 0) == ["big", "middle", "small", "big", "middle"]


@pytest.mark.parametrize(
    ("config", "counts"),
    [
        (Sampling(kind="dataset-size"), (60, 30, 10)),
        (Sampling(kind="dataset-size", size_power=0.5), (46, 32, 19)),  # 7.746 : 5.477 : 3.162, of 97
        (Sampling(kind="balanced"), (33, 32, 32)),
        (Sampling(kind="steps", steps={"big": 1, "middle": 1, "small": 2}), (24, 24, 49)),
    ],
    ids=lambda value: value.kind if isinstance(value, Sampling) else "",
)
def test_shares_are_exact_and_the_order_is_random(config: Sampling, counts: tuple[int, ...]) -> None:
    steps = sum(counts)
    plan = domain_plan(config, SIZES, steps, 0)
    assert Counter(plan) == dict(zip(SIZES, counts, strict=True))
    assert plan == domain_plan(config, SIZES, steps, 0)
    assert plan != domain_plan(config, SIZES, steps, 1)
    assert plan != sorted(plan)


def test_steps_must_name_the_domains_of_the_data() -> None:
    with pytest.raises(ConfigError, match="small"):
        domain_plan(Sampling(kind="steps", steps={"big": 1}), SIZES, 10, 0)


def test_all_images_of_a_domain_are_used_before_any_is_repeated() -> None:
    rows = [batch.rows for batch in planner("balanced").segment(0, 100) if batch.domain == "middle"]
    flat = np.concatenate(rows)
    for number in range(len(flat) // 30):
        assert sorted(flat[number * 30 : (number + 1) * 30]) == list(range(30))
    assert list(flat[:30]) != list(flat[30:60])


def test_small_domain_is_used_whole() -> None:
    for batch in planner("balanced", batch=16).segment(0, 30):
        assert len(batch.rows) == min(16, SIZES[batch.domain])
        if batch.domain == "small":
            assert sorted(batch.rows) == list(range(10))


@pytest.mark.parametrize("kind", ["round-robin", "dataset-size", "balanced"])
def test_resumed_plan_continues_the_same(kind: str) -> None:
    complete = planner(kind).segment(0, 100)
    first = planner(kind)
    head = first.segment(0, 37)
    config = Sampling.model_validate({"kind": kind})
    tail = Planner(config, SIZES, 8, 100, 0, first.visits).segment(37, 100)
    for expected, batch in zip(complete, head + tail, strict=True):
        assert batch.domain == expected.domain
        assert np.array_equal(batch.rows, expected.rows)


def test_teachers_with_higher_loss_are_sampled_more_often() -> None:
    udon = planner("teacher-loss", steps=200)
    assert udon.segment(0, 30)  # equal shares, as there are no losses yet
    for domain, loss in (("big", 1.0), ("middle", 1.0), ("small", 2.0)):
        udon.learned(domain, loss)
    assert Counter(batch.domain for batch in udon.segment(30, 70)) == {"big": 10, "middle": 10, "small": 20}
    udon.learned("small", 0.0)
    assert udon.teacher_loss["small"] == pytest.approx(1.8)


def test_teachers_without_loss_are_sampled_equally() -> None:
    udon = planner("teacher-loss", steps=60)
    for domain in SIZES:
        udon.learned(domain, 0.0)
    assert Counter(batch.domain for batch in udon.segment(30, 60)) == {"big": 10, "middle": 10, "small": 10}
