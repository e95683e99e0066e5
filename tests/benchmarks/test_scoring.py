"""`benchmarks score` against a slow and simple implementation of UnED's protocol."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rich.console import Console
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import DataError
from benchmarks.scoring.descriptor_folder import score_folder
from benchmarks.scoring.evaluation import Scores, SelfExclusion, UnitVectors, score, unit
from benchmarks.scoring.relevance import Relevance

QUIET = Console(quiet=True)


@dataclass(frozen=True)
class Split:
    """One info file and its descriptors."""

    classes: list[list[int]]
    rows: NDArray[np.float32]


@dataclass(frozen=True)
class Domain:
    """Queries and gallery of a domain."""

    queries: Split
    gallery: Split  # the same object if the queries are the gallery


def brute_force(
    domains: dict[str, Domain], setting: str, by_position: bool
) -> dict[str, tuple[float, float, int]]:
    """R@1, mMP@5 and the number of queries without a match of each domain."""
    scores = {}
    for name, domain in domains.items():
        searched = domains if setting == "merged" else {name: domain}
        r_at_1, mmp_at_5, without_match = [], [], 0
        self_search = domain.queries is domain.gallery
        for row, classes in enumerate(domain.queries.classes):
            n_q = sum(bool(set(classes) & set(other)) for other in domain.gallery.classes)
            n_q -= self_search and bool(classes)
            hits = ranked(domain.queries.rows[row], searched)
            if self_search:
                hits = hits[1:] if by_position else [hit for hit in hits if hit != (name, row)]
            right = [
                other == name and bool(set(classes) & set(domain.gallery.classes[hit])) for other, hit in hits
            ]
            m = min(n_q, 5)
            without_match += n_q == 0
            r_at_1.append(float(any(right[: min(m, 1)])))
            mmp_at_5.append(sum(right[:m]) / m if m else 0.0)
        scores[name] = (float(np.mean(r_at_1)), float(np.mean(mmp_at_5)), without_match)
    return scores


def ranked(query: NDArray[np.float32], searched: dict[str, Domain]) -> list[tuple[str, int]]:
    unit_query = unit(query[None])[0].astype(np.float64)
    scored = [
        (-float((unit_query * item).sum()), name, row)
        for name, domain in sorted(searched.items())
        for row, item in enumerate(unit(domain.gallery.rows).astype(np.float64))
        if item.any()
    ]
    return [(name, row) for _, name, row in sorted(scored)] if unit_query.any() else []


def random_split(rng: np.random.Generator, size: int, dim: int) -> Split:
    """Two of three rows have small integers, so duplicates, ties and rows of zeros are frequent."""
    rows = rng.integers(-1, 2, size=(size, dim)).astype(np.float32)
    rows[::3] += rng.standard_normal((len(rows[::3]), dim)).astype(np.float32)
    return Split([rng.integers(0, 4, rng.integers(0, 4)).tolist() for _ in range(size)], rows)


@st.composite
def random_domains(draw: st.DrawFn) -> dict[str, Domain]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dim = draw(st.integers(1, 5))
    domains = {}
    for name in ("a", "b", "c")[: draw(st.integers(1, 3))]:
        queries = random_split(rng, draw(st.integers(1, 12)), dim)
        separate = draw(st.booleans())
        domains[name] = Domain(
            queries, random_split(rng, draw(st.integers(0, 50)), dim) if separate else queries
        )
    return domains


def scored(domains: dict[str, Domain], self_exclusion: SelfExclusion) -> Scores:
    def unit_vectors(split: Split) -> UnitVectors:
        return UnitVectors(unit(split.rows), [tuple(class_ids) for class_ids in split.classes])

    own = {
        name: np.arange(len(domain.queries.rows))
        if domain.queries is domain.gallery
        else np.full(len(domain.queries.rows), -1)
        for name, domain in domains.items()
    }
    queries = {name: unit_vectors(domain.queries) for name, domain in domains.items()}
    gallery = {name: unit_vectors(domain.gallery) for name, domain in domains.items()}
    return score(queries, gallery, own, self_exclusion)


@settings(max_examples=150, deadline=None)
@given(random_domains(), st.sampled_from(["id", "position"]))
def test_scores_equal_those_of_brute_force(domains: dict[str, Domain], self_exclusion: SelfExclusion) -> None:
    scores = scored(domains, self_exclusion)
    for setting, by_domain in (("merged", scores.merged), ("separate", scores.separate)):
        expected = brute_force(domains, setting, self_exclusion == "position")
        assert by_domain.keys() == expected.keys()
        for name, row in by_domain.items():
            values = (row.r_at_1, row.mmp_at_5, row.without_match)
            assert values == pytest.approx(expected[name], abs=1e-12), (setting, name)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.integers(-2, 5), max_size=4), max_size=12),
    st.lists(st.lists(st.integers(-2, 5), max_size=4), max_size=12),
)
def test_relevance_is_a_shared_class(queries: list[list[int]], gallery: list[list[int]]) -> None:
    relevance = Relevance(enumerate(gallery))
    for class_ids in queries:
        expected = {row for row, others in enumerate(gallery) if set(class_ids) & set(others)}
        assert relevance.items(class_ids) == expected


def test_by_position_the_first_hit_is_dropped() -> None:
    """Two equal images of different classes find each other by id; by position, the second finds itself."""
    rows = np.array([[1, 0], [1, 0], [0, 1], [0.1, 1]], dtype=np.float32)
    split = Split([[0], [1], [0], [1]], rows)
    domains = {"a": Domain(split, split)}
    assert scored(domains, "id").merged["a"].r_at_1 == 0
    assert scored(domains, "position").merged["a"].r_at_1 == 1 / 4


# Classes of the files below. Domain a is its own gallery; b has an index, and a small one for val.
SPLITS: dict[str, dict[str, list[Any]]] = {
    "a": {"test": [0, 0, [1, 2], 2], "val": [0, 0]},
    "b": {"test": [0, 7], "index": [0, 1, [1, 0]], "val": [1], "small_index": [1, 0]},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for domain, splits in SPLITS.items():
        for part in ("data/data/info_files", "vectors"):
            (tmp_path / part / domain).mkdir(parents=True)
        for split, classes in splits.items():
            rows = [
                {"path": f"{domain}/{row}.png", "class_id": class_id} for row, class_id in enumerate(classes)
            ]
            (tmp_path / "data/data/info_files" / domain / f"{split}.json").write_text(json.dumps(rows))
            vectors = rng.standard_normal((len(rows), 4)).astype(np.float32)
            np.save(tmp_path / "vectors" / domain / f"{split}.npy", vectors)
    return tmp_path


def run(folder: Path, *options: str) -> dict[str, Any]:
    command = ["score", str(folder / "data"), "--vectors", str(folder / "vectors"), "--json", *options]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0
    body: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return body


@pytest.mark.parametrize("split", ["test", "val"])
@pytest.mark.parametrize("self_exclusion", ["id", "position"])
def test_the_command_scores_a_folder_of_descriptors(folder: Path, split: str, self_exclusion: str) -> None:
    def read(domain: str, split: str) -> Split:
        classes = [value if isinstance(value, list) else [value] for value in SPLITS[domain][split]]
        return Split(classes, np.load(folder / "vectors" / domain / f"{split}.npy"))

    own, index = read("a", split), read("b", {"test": "index", "val": "small_index"}[split])
    domains = {"a": Domain(own, own), "b": Domain(read("b", split), index)}
    body = run(folder, "--split", split, "--self-exclusion", self_exclusion)
    for setting in ("merged", "separate"):
        expected = brute_force(domains, setting, self_exclusion == "position")
        means = [float(np.mean([row[at] for row in expected.values()])) for at in (0, 1)]
        assert set(body[setting]) == {"a", "b", "mean"}
        assert body[setting]["mean"] == pytest.approx({"R@1": means[0], "mMP@5": means[1]})
        for domain, (r_at_1, mmp_at_5, without_match) in expected.items():
            count = len(SPLITS[domain][split])
            counts = {"queries": count, "without_match": without_match}
            assert body[setting][domain] == pytest.approx({"R@1": r_at_1, "mMP@5": mmp_at_5, **counts})
            for measure, value in (("R@1", r_at_1), ("mMP@5", mmp_at_5)):
                low, high = body["intervals"][setting][domain][measure]
                assert low <= value <= high
        assert set(body["intervals"][setting]) == set(body[setting])


def test_reference_rounding_precedes_the_mean(folder: Path) -> None:
    exact, body = run(folder)["merged"], run(folder, "--reference-rounding")
    assert body["reference_rounding"] is True
    rounded = {name: round(exact[name]["mMP@5"], 3) for name in ("a", "b")}
    assert {name: body["merged"][name]["mMP@5"] for name in rounded} == rounded
    assert body["merged"]["mean"]["mMP@5"] == pytest.approx(sum(rounded.values()) / 2, abs=1e-15)


def test_a_domain_without_descriptors_is_left_out_and_reported(folder: Path) -> None:
    (folder / "vectors/b/test.npy").unlink()
    body = run(folder)
    assert set(body["merged"]) == {"a", "mean"}
    assert "b/test.npy" in body["left_out"]["b"]


def save(rows: Any) -> Callable[[Path], None]:
    return lambda file: np.save(file, rows)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("a/test", lambda file: file.write_bytes(b"no array"), "a/test.npy is not a NumPy array"),
        ("a/test", save(np.zeros((4, 4))), r"holds float64 \(4, 4\), not float32 \(N, D\)"),
        ("a/test", save(np.zeros(4, np.float32)), r"holds float32 \(4,\)"),
        ("a/test", save(np.zeros((4, 0), np.float32)), r"holds float32 \(4, 0\)"),
        ("a/test", save(np.zeros((3, 4), np.float32)), "has 3 rows, but a/test.json has 4"),
        ("a/test", save(np.ones((4, 3), np.float32)), "3 dimensions, b's queries 4"),
        ("b/index", save(np.array([[0, 0, 0, 0], [0, 0, 0, np.nan], [0] * 4], np.float32)), "NaN.*row 1"),
        ("b/index", lambda file: file.unlink(), "b/index.npy does not exist"),
        ("c/test", save(np.zeros((1, 4), np.float32)), "descriptors of c, unknown to"),
    ],
)
def test_invalid_descriptors_are_data_errors(
    folder: Path, name: str, damage: Callable[[Path], None], message: str
) -> None:
    file = folder / "vectors" / f"{name}.npy"
    file.parent.mkdir(exist_ok=True)
    damage(file)
    with pytest.raises(DataError, match=message):
        score_folder(Dataset(folder / "data"), folder / "vectors", "test", "id", QUIET)


def test_a_folder_without_descriptors_is_a_data_error(folder: Path) -> None:
    data = Dataset(folder / "data")
    with pytest.raises(DataError, match="is not a folder"):
        score_folder(data, folder / "nowhere", "test", "id", QUIET)
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"no <domain>/test\.npy"):
        score_folder(data, folder / "empty", "test", "id", QUIET)
