"""Validation scores, the oracle, and the trust of an anchor, on constructed descriptors."""

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.dataset import Dataset
from benchmarks.scoring.measures import mean_over_domains
from model_export.descriptors.evaluation import domains_with_queries, evaluate
from model_export.training.data import training_set


def by_class(data: Dataset, domain: str, split: str) -> NDArray[np.float32]:
    """Return one direction per class, different for all classes of a domain."""
    classes = [record.class_ids[0] for record in data.records(domain, split)]
    return np.eye(12, dtype=np.float32)[classes]


def test_correct_directions_score_one(shapes: Dataset) -> None:
    """Domains that share directions compete in the merged index."""

    def apart(domain: str, split: str) -> NDArray[np.float32]:
        shift = np.eye(3, dtype=np.float32)[shapes.domains.index(domain)] * 5
        rows = by_class(shapes, domain, split)
        return np.concatenate([rows, np.tile(shift, (len(rows), 1))], axis=1)

    def mixed(domain: str, split: str) -> NDArray[np.float32]:
        return by_class(shapes, domain, split)

    assert mean_over_domains(evaluate(shapes, shapes.domains, "test", apart)) == {"R@1": 1.0, "mMP@5": 1.0}
    scores = evaluate(shapes, shapes.domains, "test", mixed)
    assert scores["discs"].r_at_1 == 1  # ties follow the order of the gallery, and discs come first
    assert scores["signs"].r_at_1 == 0
    assert evaluate(shapes, ["signs"], "test", mixed)["signs"].r_at_1 == 1


def test_oracle_uses_the_embedding_of_each_domain(shapes: Dataset) -> None:
    def right(domain: str, split: str) -> NDArray[np.float32]:
        rows = by_class(shapes, domain, split)
        return np.concatenate([rows, np.zeros_like(rows)], axis=1)

    def elsewhere(domain: str, split: str) -> NDArray[np.float32]:
        return np.roll(right(domain, split), 12, axis=1)

    def useless(domain: str, split: str) -> NDArray[np.float32]:
        return np.ones((len(shapes.records(domain, split)), 24), dtype=np.float32)

    by_domain = {"discs": right, "plates": elsewhere, "signs": useless}
    scores = evaluate(shapes, shapes.domains, "test", by_domain)
    # All signs are equal, so each finds the first one: correct for two of six.
    assert [scores[domain].r_at_1 for domain in by_domain] == [1, 1, 2 / 6]


def test_trust_is_r_at_1_among_the_training_images(shapes: Dataset) -> None:
    images = training_set(shapes, ["discs", "signs"])
    rows = {domain: by_class(shapes, domain, "train") for domain in images.sizes}
    rows["signs"] = np.concatenate([np.zeros_like(rows["signs"]), np.ones_like(rows["signs"])], axis=1)
    rows["discs"] = np.concatenate([rows["discs"], np.zeros_like(rows["discs"])], axis=1)
    trust = images.r_at_1(rows)
    assert trust["discs"] == 1
    assert 0 < trust["signs"] < 1  # all equal: only the first find their class, by order
    assert images.r_at_1({}) == {}


def test_domains_without_queries_are_ignored(shapes: Dataset, tmp_path: Path) -> None:
    empty = tmp_path / "data" / "info_files" / "signs" / "val.json"
    shutil.copytree(shapes.root / "data" / "info_files", tmp_path / "data" / "info_files")
    empty.write_text("[]")
    assert domains_with_queries(Dataset(tmp_path), shapes.domains, "val") == ["discs", "plates"]
