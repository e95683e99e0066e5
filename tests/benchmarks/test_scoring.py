"""`benchmarks score`: a folder of descriptors against a slow, obvious implementation of UnED's protocol."""

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
    queries: Split
    gallery: Split  # the same object where queries search themselves


def slow(domains: dict[str, Domain], setting: str, by_position: bool) -> dict[str, tuple[float, float, int]]:
    """R@1, mMP@5 and queries without a match of each domain, one query at a time."""
    found = {}
    for name, domain in domains.items():
        searched = domains if setting == "merged" else {name: domain}
        r_at_1, mmp_at_5, without_match = [], [], 0
        itself = domain.queries is domain.gallery
        for row, classes in enumerate(domain.queries.classes):
            n_q = sum(bool(set(classes) & set(other)) for other in domain.gallery.classes)
            n_q -= itself and bool(classes)
            hits = ranked(domain.queries.rows[row], searched)
            if itself:
                hits = hits[1:] if by_position else [hit for hit in hits if hit != (name, row)]
            right = [
                where == name and bool(set(classes) & set(domain.gallery.classes[hit])) for where, hit in hits
            ]
            m = min(n_q, 5)
            without_match += n_q == 0
            r_at_1.append(float(any(right[: min(m, 1)])))
            mmp_at_5.append(sum(right[:m]) / m if m else 0.0)
        found[name] = (float(np.mean(r_at_1)), float(np.mean(mmp_at_5)), without_match)
    return found


def ranked(query: NDArray[np.float32], searched: dict[str, Domain]) -> list[tuple[str, int]]:
    asked = unit(query[None])[0].astype(np.float64)
    scored = [
        (-float((asked * item).sum()), name, row)
        for name, domain in sorted(searched.items())
        for row, item in enumerate(unit(domain.gallery.rows).astype(np.float64))
        if item.any()
    ]
    return [(name, row) for _, name, row in sorted(scored)] if asked.any() else []


def a_split(rng: np.random.Generator, size: int, dim: int) -> Split:
    """Two directions in three are of few, so duplicates, ties and rows of zeros abound."""
    rows = rng.integers(-1, 2, size=(size, dim)).astype(np.float32)
    rows[::3] += rng.standard_normal((len(rows[::3]), dim)).astype(np.float32)
    return Split([rng.integers(0, 4, rng.integers(0, 4)).tolist() for _ in range(size)], rows)


@st.composite
def some_domains(draw: st.DrawFn) -> dict[str, Domain]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dim = draw(st.integers(1, 5))
    domains = {}
    for name in ("a", "b", "c")[: draw(st.integers(1, 3))]:
        queries = a_split(rng, draw(st.integers(1, 12)), dim)
        apart = draw(st.booleans())
        domains[name] = Domain(queries, a_split(rng, draw(st.integers(0, 50)), dim) if apart else queries)
    return domains


def scored(domains: dict[str, Domain], self_exclusion: SelfExclusion) -> Scores:
    def unit_vectors(split: Split) -> UnitVectors:
        return UnitVectors(unit(split.rows), [tuple(class_ids) for class_ids in split.classes])

    own = {
        name: np.arange(len(one.queries.rows))
        if one.queries is one.gallery
        else -np.ones(len(one.queries.rows), int)
        for name, one in domains.items()
    }
    queries = {name: unit_vectors(one.queries) for name, one in domains.items()}
    return score(
        queries, {name: unit_vectors(one.gallery) for name, one in domains.items()}, own, self_exclusion
    )


@settings(max_examples=150, deadline=None)
@given(some_domains(), st.sampled_from(["id", "position"]))
def test_against_the_obvious_way(domains: dict[str, Domain], self_exclusion: SelfExclusion) -> None:
    scores = scored(domains, self_exclusion)
    for setting, of in (("merged", scores.merged), ("separate", scores.separate)):
        wanted = slow(domains, setting, self_exclusion == "position")
        assert of.keys() == wanted.keys()
        for name, one in of.items():
            found = (one.r_at_1, one.mmp_at_5, one.without_match)
            assert found == pytest.approx(wanted[name], abs=1e-12), (setting, name)


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


def test_position_drops_whatever_comes_first() -> None:
    """Two equal pictures of different classes: by id each finds the other, by position the second itself."""
    rows = np.array([[1, 0], [1, 0], [0, 1], [0.1, 1]], dtype=np.float32)
    split = Split([[0], [1], [0], [1]], rows)
    domains = {"a": Domain(split, split)}
    assert scored(domains, "id").merged["a"].r_at_1 == 0
    assert scored(domains, "position").merged["a"].r_at_1 == 1 / 4


# In files. Domain a searches itself; b has an index, and a small one for val.
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
            rows = [{"path": f"{domain}/{row}.png", "class_id": one} for row, one in enumerate(classes)]
            (tmp_path / "data/data/info_files" / domain / f"{split}.json").write_text(json.dumps(rows))
            vectors = rng.standard_normal((len(rows), 4)).astype(np.float32)
            np.save(tmp_path / "vectors" / domain / f"{split}.npy", vectors)
    return tmp_path


def run(folder: Path, *options: str) -> dict[str, Any]:
    asked = ["score", str(folder / "data"), "--vectors", str(folder / "vectors"), "--json", *options]
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert done.exit_code == 0
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


@pytest.mark.parametrize("split", ["test", "val"])
@pytest.mark.parametrize("self_exclusion", ["id", "position"])
def test_a_folder_of_descriptors(folder: Path, split: str, self_exclusion: str) -> None:
    def read(domain: str, split: str) -> Split:
        classes = [one if isinstance(one, list) else [one] for one in SPLITS[domain][split]]
        return Split(classes, np.load(folder / "vectors" / domain / f"{split}.npy"))

    alone, index = read("a", split), read("b", {"test": "index", "val": "small_index"}[split])
    domains = {"a": Domain(alone, alone), "b": Domain(read("b", split), index)}
    said = run(folder, "--split", split, "--self-exclusion", self_exclusion)
    for setting in ("merged", "separate"):
        wanted = slow(domains, setting, self_exclusion == "position")
        means = [float(np.mean([row[at] for row in wanted.values()])) for at in (0, 1)]
        assert set(said[setting]) == {"a", "b", "mean"}
        assert said[setting]["mean"] == pytest.approx({"R@1": means[0], "mMP@5": means[1]})
        for domain, (r_at_1, mmp_at_5, without_match) in wanted.items():
            count = len(SPLITS[domain][split])
            counts = {"queries": count, "without_match": without_match}
            assert said[setting][domain] == pytest.approx({"R@1": r_at_1, "mMP@5": mmp_at_5, **counts})
            for measure, value in (("R@1", r_at_1), ("mMP@5", mmp_at_5)):
                low, high = said["intervals"][setting][domain][measure]
                assert low <= value <= high
        assert set(said["intervals"][setting]) == set(said[setting])


def test_reference_rounding_comes_before_the_mean(folder: Path) -> None:
    exact, said = run(folder)["merged"], run(folder, "--reference-rounding")
    assert said["reference_rounding"] is True
    rounded = {name: round(exact[name]["mMP@5"], 3) for name in ("a", "b")}
    assert {name: said["merged"][name]["mMP@5"] for name in rounded} == rounded
    assert said["merged"]["mean"]["mMP@5"] == pytest.approx(sum(rounded.values()) / 2, abs=1e-15)


def test_what_is_not_there_is_left_out_and_said(folder: Path) -> None:
    (folder / "vectors/b/test.npy").unlink()
    said = run(folder)
    assert set(said["merged"]) == {"a", "mean"}
    assert "b/test.npy" in said["left_out"]["b"]


def save(rows: Any) -> Callable[[Path], None]:
    return lambda file: np.save(file, rows)


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
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
def test_bad_descriptors_are_a_sentence(
    folder: Path, name: str, spoil: Callable[[Path], None], message: str
) -> None:
    file = folder / "vectors" / f"{name}.npy"
    file.parent.mkdir(exist_ok=True)
    spoil(file)
    with pytest.raises(DataError, match=message):
        score_folder(Dataset(folder / "data"), folder / "vectors", "test", "id", QUIET)


def test_no_descriptors_at_all_is_a_sentence(folder: Path) -> None:
    data = Dataset(folder / "data")
    with pytest.raises(DataError, match="is not a folder"):
        score_folder(data, folder / "nowhere", "test", "id", QUIET)
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"no <domain>/test\.npy"):
        score_folder(data, folder / "empty", "test", "id", QUIET)
