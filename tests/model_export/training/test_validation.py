"""What chooses a checkpoint, what an anchor trusts, and the oracle: on rankings made by hand."""

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.dataset import Dataset
from model_export.descriptors.evaluation import evaluate, with_queries
from model_export.training.data import training_set
from model_export.training.validation import trusted


def by_class(data: Dataset, domain: str, split: str) -> NDArray[np.float32]:
    """Pictures of one class in one direction, no two classes of a domain in the same."""
    classes = [record.class_ids[0] for record in data.records(domain, split)]
    return np.eye(12, dtype=np.float32)[classes]


def test_the_right_directions_score_one(shapes: Dataset) -> None:
    """Domains that share directions are in each other's way, as they are in a merged index."""

    def apart(domain: str, split: str) -> NDArray[np.float32]:
        shift = np.eye(3, dtype=np.float32)[shapes.domains.index(domain)] * 5
        rows = by_class(shapes, domain, split)
        return np.concatenate([rows, np.tile(shift, (len(rows), 1))], axis=1)

    def mixed(domain: str, split: str) -> NDArray[np.float32]:
        return by_class(shapes, domain, split)

    assert evaluate(shapes, shapes.domains, "test", apart).mean == {"R@1": 1.0, "mMP@5": 1.0}
    found = evaluate(shapes, shapes.domains, "test", mixed)
    assert found.domains["discs"].r_at_1 == 1  # ties go to the gallery's order, and discs come first
    assert found.domains["signs"].r_at_1 == 0
    assert evaluate(shapes, ["signs"], "test", mixed).mean["R@1"] == 1


def test_the_oracle_takes_each_domains_own(shapes: Dataset) -> None:
    def right(domain: str, split: str) -> NDArray[np.float32]:
        return np.concatenate([by_class(shapes, domain, split), np.zeros((len(shapes.records(domain, split)), 12))], axis=1).astype(np.float32)  # fmt: skip  # noqa: E501

    def elsewhere(domain: str, split: str) -> NDArray[np.float32]:
        return np.roll(right(domain, split), 12, axis=1)

    def useless(domain: str, split: str) -> NDArray[np.float32]:
        return np.ones((len(shapes.records(domain, split)), 24), dtype=np.float32)

    own = {"discs": right, "plates": elsewhere, "signs": useless}
    found = evaluate(shapes, shapes.domains, "test", own)
    # All alike, signs find the first of them: right for two of six.
    assert [found.domains[name].r_at_1 for name in own] == [1, 1, 2 / 6]


def test_trust_is_the_frozen_backbones_own_r_at_1(shapes: Dataset) -> None:
    images = training_set(shapes, ["discs", "signs"])
    rows = {domain: by_class(shapes, domain, "train") for domain in images.sizes}
    rows["signs"] = np.concatenate([np.zeros_like(rows["signs"]), np.ones_like(rows["signs"])], axis=1)
    rows["discs"] = np.concatenate([rows["discs"], np.zeros_like(rows["discs"])], axis=1)
    trust = trusted(images, rows)
    assert trust["discs"] == 1
    assert 0 < trust["signs"] < 1  # all alike: the first two find each other's class by order alone
    assert trusted(images, {}) == {}


def test_domains_without_queries_are_left_out(shapes: Dataset, tmp_path: Path) -> None:
    empty = tmp_path / "data" / "info_files" / "signs" / "val.json"
    shutil.copytree(shapes.root / "data" / "info_files", tmp_path / "data" / "info_files")
    empty.write_text("[]")
    assert with_queries(Dataset(tmp_path), shapes.domains, "val") == ["discs", "plates"]
