"""Offline scoring against rankings that can be made by hand, and against an obvious implementation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.dataset import Record
from benchmarks.errors import DataError
from benchmarks.offline import Vectors, rank, score_vectors, unit


def records(domain: str, split: str, labels: list[int]) -> list[Record]:
    return [
        Record(f"{domain}/{split}/{row:07d}", domain, f"{row}.png", (label,))
        for row, label in enumerate(labels)
    ]


def test_ties_keep_the_gallerys_order_and_the_query_is_left_out() -> None:
    rows = np.array([[1, 0], [2, 0], [0, 1], [3, 0]], dtype=np.float32)  # three of the same direction
    gallery = Vectors(records("a", "test", [0, 1, 0, 0]), rows)
    ranked = rank(gallery, gallery)
    ids = [record.id for record in gallery.records]
    assert ranked[ids[0]] == [ids[1], ids[3], ids[2]]
    assert ranked[ids[1]] == [ids[0], ids[3], ids[2]]
    scores = score_vectors({"a": gallery}, {"a": gallery})["a"]
    # Query 0: first hit is class 1; m = 2, one of two right. Query 1: alone. Query 2: first hit right,
    # second wrong. Query 3: first hit right, second wrong.
    assert (scores.r_at_1, scores.mmp_at_5, scores.without_match) == (2 / 4, (0.5 + 0 + 0.5 + 0.5) / 4, 1)


def test_a_row_of_zeros_is_an_image_that_was_not_there() -> None:
    """Without the rule its scores would all tie at 0, above every negative one."""
    rows = np.array([[0, 0], [1, 0], [-1, 0.1], [-1, 0]], dtype=np.float32)
    gallery = Vectors(records("a", "test", [0, 0, 0, 1]), rows)
    ranked = rank(gallery, gallery)
    ids = [record.id for record in gallery.records]
    assert ids[0] not in ranked
    assert ranked[ids[1]] == [ids[2], ids[3]]
    scores = score_vectors({"a": gallery}, {"a": gallery})["a"]
    assert (scores.failed, scores.queries) == (1, 4)


def test_domains_share_one_gallery_and_a_match_needs_the_domain() -> None:
    one = Vectors(records("a", "test", [0, 0]), np.array([[1, 0], [0.6, 0.8]], dtype=np.float32))
    other = Vectors(records("b", "test", [0]), np.array([[1, 0.1]], dtype=np.float32))
    scores = score_vectors({"a": one}, {"a": one, "b": other})
    assert scores["a"].r_at_1 == 0  # b's item with the same class number is nearer, and is no match
    assert score_vectors({"a": one}, {"a": one})["a"].r_at_1 == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(1, 3))
def test_against_the_obvious_way(seed: int, size: int, dim: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(-2, 3, size=(size, dim)).astype(np.float32)  # duplicates, ties and zeros abound
    gallery = Vectors(records("a", "test", list(rng.integers(0, 4, size))), rows)
    scores = unit(rows) @ unit(rows).T
    wanted = {
        query.id: [
            gallery.records[row].id
            for row in sorted(range(size), key=lambda row, at=at: (-scores[at, row], row))  # type: ignore[misc]
            if row != at and rows[row].any()  # zeros: an image that was not there
        ][:5]
        for at, query in enumerate(gallery.records)
        if rows[at].any()
    }
    assert rank(gallery, gallery) == wanted


def test_lengths_must_agree() -> None:
    with pytest.raises(DataError, match="1 records, but 2"):
        Vectors(records("a", "test", [0]), np.zeros((2, 4), dtype=np.float32))
