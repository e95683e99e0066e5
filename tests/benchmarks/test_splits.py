import pytest

from benchmarks.datasets.splits import SEED, split_classes
from benchmarks.errors import DataError


@pytest.mark.parametrize("n_classes", [*range(3, 40), 490, 1636])
def test_splits_are_disjoint_and_cover_all_classes(n_classes: int) -> None:
    classes = [f"class {number}" for number in range(n_classes)]
    split = split_classes("icons", classes)
    assert sorted(split.train + split.val + split.test) == sorted(classes)
    assert len(split.labels) == n_classes
    assert min(len(split.train), len(split.val), len(split.test)) >= (1 if n_classes < 8 else 2)
    assert n_classes == 3 or len(split.test) == -(-n_classes // 2)
    if n_classes >= 15:
        assert len(split.val) == max(2, round(n_classes / 10))


def test_a_split_ignores_order_and_repetition_of_classes() -> None:
    assert split_classes("food", "edcbaabc") == split_classes("food", "abcde")


def test_a_split_depends_on_domain_and_seed() -> None:
    classes = [str(number) for number in range(20)]
    split = split_classes("food", classes)
    assert split != split_classes("tools", classes)
    assert split != split_classes("food", classes, seed=SEED + 1)


def test_the_split_of_the_fixed_seed_is_pinned() -> None:
    split = split_classes("tools", "abcdefgh")
    assert (split.train, split.val, split.test) == (("f", "h"), ("b", "c"), ("a", "d", "e", "g"))


def test_two_classes_are_refused() -> None:
    with pytest.raises(DataError, match="food: 2 classes"):
        split_classes("food", "ab")
