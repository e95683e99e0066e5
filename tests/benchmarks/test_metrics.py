"""R@1 and mMP@5 of hand-computed rankings."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.datasets.dataset import Record
from benchmarks.errors import RunError
from benchmarks.replay.summary import accuracy
from benchmarks.scoring.measures import DEPTH, Judge, domain_score, mean_over_domains


def record(name: str, domain: str, *class_ids: int) -> Record:
    return Record(name, domain, f"{name}.png", class_ids)


#   domain a: class 0 six times, class 1 twice, class 2 once;  domain b: class 0 once
GALLERY = [
    *(record(f"a0-{n}", "a", 0) for n in range(6)),
    record("a1-0", "a", 1),
    record("a1-1", "a", 1),
    record("a2-0", "a", 2),
    record("b0-0", "b", 0),
]
JUDGE = Judge(GALLERY)


@pytest.mark.parametrize(
    ("query", "hits", "r_at_1", "mmp_at_5", "n_q"),
    [
        # n_q = 6, so m = 5: four of the first five are relevant, the sixth does not count.
        (record("q", "a", 0), ["a0-0", "a0-1", "a1-0", "a0-2", "a0-3", "a0-4"], 1.0, 4 / 5, 6),
        # The query is in the gallery: n_q = 5.
        (GALLERY[0], ["a0-1", "a0-2", "a0-3", "a0-4", "a0-5"], 1.0, 1.0, 5),
        # n_q = 2, so m = 2: the third hit, a relevant one, does not count.
        (record("q", "a", 1), ["a0-0", "a1-1", "a1-0"], 0.0, 1 / 2, 2),
        # The query and one other item are in the gallery: n_q = 1, m = 1.
        (GALLERY[6], ["a1-1", "a0-0"], 1.0, 1.0, 1),
        (GALLERY[6], ["a0-0", "a1-1"], 0.0, 0.0, 1),
        # A class id of another domain is another class.
        (record("q", "b", 0), ["a0-0", "b0-0"], 0.0, 0.0, 1),
        # No other item has its class: no match is possible.
        (GALLERY[8], ["a0-0", "a1-0"], 0.0, 0.0, 0),
        # A class without gallery items.
        (record("q", "a", 99), ["a0-0"], 0.0, 0.0, 0),
        # Two classes: n_q counts the union of both, m = 3.
        (record("q", "a", 1, 2), ["a2-0", "a0-0", "a1-0"], 1.0, 2 / 3, 3),
        # Fewer hits than m: missing hits are wrong.
        (record("q", "a", 0), ["a0-0"], 1.0, 1 / 5, 6),
        (record("q", "a", 0), [], 0.0, 0.0, 6),
        # An id that is not in the gallery is a wrong hit.
        (record("q", "a", 1), ["someone-elses", "a1-0"], 0.0, 1 / 2, 2),
        # A failed query.
        (record("q", "a", 0), None, 0.0, 0.0, 6),
    ],
)
def test_the_score_of_one_query(
    query: Record, hits: list[str] | None, r_at_1: float, mmp_at_5: float, n_q: int
) -> None:
    score = JUDGE.score(query, hits)
    assert (score.r_at_1, score.mmp_at_5, score.n_q) == (r_at_1, mmp_at_5, n_q)


def test_an_item_with_several_classes_matches_any_of_them() -> None:
    judge = Judge([record("both", "a", 3, 4), record("other", "a", 5)])
    assert judge.score(record("q", "a", 4), ["both"]).r_at_1 == 1.0
    assert judge.score(record("q", "a", 4, 5), ["both", "other"]).mmp_at_5 == 1.0
    assert judge.score(record("q", "a", 3, 4), ["both"]).n_q == 1


def test_a_query_among_its_own_hits_is_an_error() -> None:
    with pytest.raises(RunError, match="its own hits"):
        JUDGE.score(GALLERY[0], ["a0-0"])


def test_means_include_failed_queries_and_those_without_a_match() -> None:
    queries = [record("q0", "a", 0), record("q1", "a", 1), record("q2", "a", 99), record("q3", "a", 2)]
    rankings = {
        "q0": ["a0-0", "a0-1", "a0-2", "a0-3", "a0-4"],
        "q1": ["a0-0", "a1-0"],
        "q2": ["a0-0"],
        "q3": None,
    }
    summary = accuracy(JUDGE, {"a": queries}, rankings)
    row = summary.domains["a"]
    assert row.r_at_1 == summary.mean.r_at_1 == 1 / 4
    assert row.mmp_at_5 == (1 + 1 / 2) / 4
    assert (row.queries, row.gallery, row.without_match, row.failed) == (4, 9, 1, 1)


def test_a_query_that_was_never_sent_has_failed() -> None:
    assert accuracy(JUDGE, {"a": [record("q0", "a", 0)]}, {}).domains["a"].failed == 1


def test_by_position_the_query_counts_as_a_match_among_its_hits() -> None:
    judge = Judge(GALLERY, by_position=True)
    assert judge.score(GALLERY[0], ["a0-0"]).r_at_1 == 1
    assert judge.score(GALLERY[0], []).n_q == JUDGE.score(GALLERY[0], []).n_q


def test_all_domains_have_the_same_weight() -> None:
    single = domain_score(np.ones((1, DEPTH), dtype=np.bool_), n_q=np.array([1]), gallery=1, failed=0)
    many = replace(single, queries=1000, r_at_1=0.5, mmp_at_5=0.2)
    assert mean_over_domains({"a": many, "b": single}) == {"R@1": 0.75, "mMP@5": 0.6}
