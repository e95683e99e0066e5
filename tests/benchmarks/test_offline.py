"""Exact search and scoring against hand-computed rankings and a simple implementation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.datasets.dataset import Record
from benchmarks.errors import DataError
from benchmarks.scoring.evaluation import Vectors, rank, score_vectors, unit
from benchmarks.scoring.exact_search import nearest


def records(domain: str, split: str, labels: list[int]) -> list[Record]:
    return [
        Record(f"{domain}/{split}/{row:07d}", domain, f"{row}.png", (label,))
        for row, label in enumerate(labels)
    ]


def test_ties_keep_the_gallerys_order_and_the_query_is_excluded() -> None:
    rows = np.array([[1, 0], [2, 0], [0, 1], [3, 0]], dtype=np.float32)  # three have the same direction
    gallery = Vectors(records("a", "test", [0, 1, 0, 0]), rows)
    ranked = rank({"a": gallery}, {"a": gallery}).merged
    ids = [record.id for record in gallery.records]
    assert ranked[ids[0]] == [ids[1], ids[3], ids[2]]
    assert ranked[ids[1]] == [ids[0], ids[3], ids[2]]
    scores = score_vectors({"a": gallery}, {"a": gallery})["a"]
    # Query 0: the first hit is wrong, m = 2, one of two is right. Query 1: no match. Queries 2 and 3: the
    # first hit is right, the second wrong.
    assert (scores.r_at_1, scores.mmp_at_5, scores.without_match) == (2 / 4, (0.5 + 0 + 0.5 + 0.5) / 4, 1)


def test_a_row_of_zeros_is_a_missing_image() -> None:
    """Otherwise its scores would all be 0, above every negative score."""
    rows = np.array([[0, 0], [1, 0], [-1, 0.1], [-1, 0]], dtype=np.float32)
    gallery = Vectors(records("a", "test", [0, 0, 0, 1]), rows)
    ranked = rank({"a": gallery}, {"a": gallery}).merged
    ids = [record.id for record in gallery.records]
    assert ids[0] not in ranked
    assert ranked[ids[1]] == [ids[2], ids[3]]
    scores = score_vectors({"a": gallery}, {"a": gallery})["a"]
    assert (scores.failed, scores.queries) == (1, 4)


def test_domains_share_a_gallery_and_a_match_has_the_same_domain() -> None:
    first = Vectors(records("a", "test", [0, 0]), np.array([[1, 0], [0.6, 0.8]], dtype=np.float32))
    second = Vectors(records("b", "test", [0]), np.array([[1, 0.1]], dtype=np.float32))
    scores = score_vectors({"a": first}, {"a": first, "b": second})
    assert scores["a"].r_at_1 == 0  # b's item with the same class id is nearer, but does not match
    assert score_vectors({"a": first}, {"a": first})["a"].r_at_1 == 1
    ranked = rank({"a": first}, {"b": second, "a": first})
    assert ranked.merged["a/test/0000000"] == ["b/test/0000000", "a/test/0000001"]
    assert ranked.separate["a/test/0000000"] == ["a/test/0000001"]


def test_by_position_the_first_hit_is_dropped_even_if_it_is_not_the_query() -> None:
    """Of two equal rows, the first is the first hit of both, so the second finds itself."""
    gallery = Vectors(records("a", "test", [0, 0, 1]), np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32))
    ranked = rank({"a": gallery}, {"a": gallery}, "position").merged
    first, second, other = (record.id for record in gallery.records)
    assert ranked == {first: [second, other], second: [second, other], other: [first, second]}


def brute_force(
    queries: NDArray[np.float32], gallery: NDArray[np.float32], own: NDArray[np.int64], k: int
) -> list[list[int]]:
    """Score every pair separately in float64, and sort by score and row."""
    present: NDArray[np.bool_] = np.any(gallery, axis=1)
    ranked = []
    for query, own_row in zip(queries.astype(np.float64), own, strict=True):
        order = np.argsort(-(gallery.astype(np.float64) * query).sum(axis=1), kind="stable")
        hits = order[present[order] & (order != own_row)] if query.any() else order[:0]
        ranked.append(hits[:k].tolist())
    return ranked


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 3))
def test_rankings_equal_those_of_brute_force(seed: int, size: int, dim: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(-2, 3, size=(size, dim)).astype(np.float32)  # many duplicates, ties and zeros
    gallery = Vectors(records("a", "test", list(rng.integers(0, 4, size))), rows)
    expected = brute_force(unit(rows), unit(rows), np.arange(size), 5)
    assert rank({"a": gallery}, {"a": gallery}).merged == {
        query.id: [gallery.records[row].id for row in hits]
        for query, hits, row in zip(gallery.records, expected, rows, strict=True)
        if row.any()
    }


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([3, 64]), st.sampled_from([0.0, 1e-7, 1e-3, 1.0]))
def test_nearly_equal_rows_in_several_tiles(seed: int, dim: int, spread: float) -> None:
    """Rows around a few centres are equal, or so near that float32 cannot order them."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((20, dim))
    rows = unit(centres[rng.integers(0, 20, 1100)] + spread * rng.standard_normal((1100, dim)))
    other = unit(centres[rng.integers(0, 20, 300)] + spread * rng.standard_normal((300, dim)))
    queries, own = np.concatenate([rows[:500], other[:30]]), np.r_[np.arange(500), np.full(30, -1)]
    hits = nearest({"b": queries}, {"a": other, "b": rows}, {"b": own}, 5)["b"]
    separate = brute_force(queries, rows, own, 5)
    assert hits.separate.tolist() == [[row + 300 for row in ranking] for ranking in separate]
    merged = brute_force(queries, np.concatenate([other, rows]), np.where(own < 0, -1, own + 300), 5)
    assert hits.merged.tolist() == merged


def test_thousands_of_equal_images_rank_in_gallery_order() -> None:
    same = np.tile(unit(np.arange(1, 65, dtype=np.float32)[None]), (20_000, 1))
    own = np.array([0, 3, 19_999, -1])
    hits = nearest({"a": same[:4]}, {"b": same[:2], "a": same}, {"a": own}, 5)["a"]
    assert (hits.separate - 2).tolist() == [
        [1, 2, 3, 4, 5],
        [0, 1, 2, 4, 5],
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4],
    ]
    assert hits.merged.tolist() == [[0, 1, 3, 4, 5], *([0, 1, 2, 3, 4] for _ in range(3))]


def test_unit_rows_are_returned_bit_for_bit() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 64)).astype(np.float32)
    assert np.array_equal(unit(unit(rows)), unit(rows))
    assert np.allclose(np.linalg.norm(unit(rows), axis=1), 1, atol=1e-7)


def test_records_and_descriptors_must_agree_in_number() -> None:
    with pytest.raises(DataError, match="1 records, but 2"):
        Vectors(records("a", "test", [0]), np.zeros((2, 4), dtype=np.float32))
