"""Data sets, runs and their summaries."""

import base64
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import DataError, RunError
from benchmarks.replay.records import Unanswered
from benchmarks.replay.summary import summarise
from benchmarks.runs.latency import group_latencies_ms, latency, stage_means, tail_of
from benchmarks.runs.records import RunRecord
from benchmarks.runs.run import PACKED, Run, to_line
from tests.support.observed import RECORD, begun, observe, seen


def info_file(root: Path, domain: str, split: str, rows: object) -> None:
    file = root / "data" / "info_files" / domain / f"{split}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(rows if isinstance(rows, str) else json.dumps(rows))


@pytest.fixture
def small(tmp_path: Path) -> Dataset:
    """Two domains: `a` searches itself, `b` has a separate index."""
    info_file(tmp_path, "a", "test", [{"path": f"a/{n}.png", "class_id": n // 2} for n in range(4)])
    info_file(tmp_path, "b", "test", [{"path": "b/q.png", "class_id": [7, 8]}])
    info_file(
        tmp_path, "b", "index", [{"path": "b/0.png", "class_id": 8}, {"path": "b/1.png", "class_id": 9}]
    )
    return Dataset(tmp_path)


def test_uned_layout(small: Dataset) -> None:
    assert small.domains == ["a", "b"]
    assert [record.id for record in small.gallery("a")] == [f"a/test/000000{n}" for n in range(4)]
    assert [record.id for record in small.gallery("b")] == ["b/index/0000000", "b/index/0000001"]
    (query,) = small.queries("b")
    assert query.class_ids == (7, 8)
    assert small.label(query) == "7,8"
    assert small.image(query) == small.root / "data" / "images" / "b" / "q.png"


def test_class_names_of_the_data_set_are_used(small: Dataset) -> None:
    (small.root / "dataset.json").write_text(json.dumps({"domains": {"a": {"labels": ["cat", "dog"]}}}))
    named = Dataset(small.root)
    assert [named.label(record) for record in named.queries("a")] == ["cat", "cat", "dog", "dog"]


@pytest.mark.parametrize(
    "rows", ["{", [1], [{"path": "x"}], {"path": "x"}, [{"path": "x", "class_id": "one"}]]
)
def test_a_malformed_info_file_is_named(tmp_path: Path, rows: object) -> None:
    info_file(tmp_path, "a", "test", rows)
    with pytest.raises(DataError, match=r"test\.json"):
        Dataset(tmp_path).queries("a")


def test_a_folder_that_is_not_a_data_set(tmp_path: Path, small: Dataset) -> None:
    with pytest.raises(DataError, match="is not a data set"):
        Dataset(tmp_path / "nothing")
    with pytest.raises(DataError, match="does not exist"):
        small.records("a", "val")


A = [f"a/test/000000{n}" for n in range(4)]
Q, B0, B1 = "b/test/0000000", "b/index/0000000", "b/index/0000001"


def run_over(data: Dataset, folder: Path, **changes: object) -> Run:
    return begun(Run(folder), data_fingerprint=data.fingerprint, **changes)


def test_a_hand_computed_summary(small: Dataset, tmp_path: Path) -> None:
    run = run_over(small, tmp_path / "run", left_out={"c": "no such package"})
    observe(
        run,
        [
            seen(A[0], [A[1], A[2]], 0.0, 0.010, cache="hit"),
            seen(A[1], [A[2], A[0]], 0.0, 0.030, cache="miss"),
            seen(A[2], [], 0.5, 0.5, status=500, error="broken"),
            seen(A[3], [A[2]], 0.090, 0.010),
            seen(Q, [], 0.1, 0.1, segment=0, status=429),
            seen(Q, [B1, B0], 0.1, 0.1, segment=1),
        ],
    )
    summary = summarise(small, run)
    assert summary.domains["a"].r_at_1 == 2 / 4
    assert summary.domains["a"].mmp_at_5 == 2 / 4
    assert summary.domains["a"].failed == 1
    assert summary.domains["a"].p50_ms == pytest.approx(10)
    assert summary.domains["a"].images_per_s == pytest.approx(3 / 0.1)
    assert summary.domains["b"].r_at_1 == 0.0
    assert summary.domains["b"].mmp_at_5 == 0.0  # n_q = 1: only the first place counts
    assert (summary.mean.r_at_1, summary.mean.mmp_at_5) == (1 / 4, 1 / 4)
    low, high = summary.domains["a"].r_at_1_interval
    assert (low, high) == (0, 1)  # of four queries, two right
    assert summary.totals.queries == 5
    assert summary.totals.gallery == 6
    assert summary.totals.failed == 1
    assert summary.totals.not_sent == 0
    assert summary.totals.from_cache == 1
    assert summary.totals.images_per_s == pytest.approx(4 / (0.1 + 0.1))  # both segments' time
    assert summary.left_out == {"c": "no such package"}
    assert summary.confusion == {"a": {"a": 3}, "b": {"b": 1}}
    assert summary.unanswered == [Unanswered(A[2], "broken")]
    assert summary.invalid_because[0].startswith("1 response came from the service's cache")


def test_missing_hits_count_as_wrong(small: Dataset, tmp_path: Path) -> None:
    run = run_over(small, tmp_path / "run")
    observe(run, [seen(A[0], [], 0, 1), *(seen(query_id, ["x"], 0, 1) for query_id in (*A[1:], Q))])
    summary = summarise(small, run)
    assert summary.totals.short == 1
    assert summary.unanswered == [Unanswered(A[0], "only 0 hits")]


def test_by_position_the_first_hit_is_always_dropped(small: Dataset, tmp_path: Path) -> None:
    run = run_over(small, tmp_path / "run", self_exclusion="position")
    others = [seen(A[0], [A[0], A[1]], 0, 1), seen(A[2], [A[0], A[3]], 0, 1), seen(A[3], [A[3], A[0]], 0, 1)]
    # A duplicate comes before the query itself, which then counts as a hit, as in the reference.
    observe(run, [seen(A[1], [A[0], A[1]], 0, 1), *others, seen(Q, [B0, B1], 0, 1)])
    rows = summarise(small, run).domains
    assert rows["a"].r_at_1 == 3 / 4
    assert rows["b"].r_at_1 == 1  # a separate index: nothing is dropped


def test_embeddings_are_ranked_merged_and_separate(small: Dataset, tmp_path: Path) -> None:
    run = run_over(small, tmp_path / "run")
    queries: dict[str, list[float]] = {
        A[0]: [1, 0],
        A[1]: [0.8, 0.6],
        A[2]: [0, 1],
        A[3]: [0, -1],
        Q: [1, 0.1],
    }
    gallery: dict[str, list[float]] = {B0: [1, 0], B1: [0, 1]}

    def embedded(row: list[float]) -> str:
        return base64.b64encode(np.asarray(row, dtype="<f4").tobytes()).decode()

    observe(
        run,
        [
            seen(image_id, [], 0, 1, kind="embed", embedding=embedded(row))
            for image_id, row in (queries | gallery).items()
        ],
    )
    summary = summarise(small, run)
    assert summary.separate
    separate = summary.separate.domains
    # A0 finds B0, and in its domain A1. A1 finds A0, which ties with B0 and comes before it. A2 finds B1, and
    # in its domain A1. A3 finds A0, which ties with B0.
    assert summary.domains["a"].r_at_1 == 1 / 4
    assert separate["a"].r_at_1 == 2 / 4
    assert summary.domains["b"].r_at_1 == 0  # A0 is nearer
    assert separate["b"].r_at_1 == 1


def test_a_gallery_with_missing_embeddings_is_invalid(small: Dataset, tmp_path: Path) -> None:
    """An image without an embedding is never a hit, so R@1 would be too high."""
    run = run_over(small, tmp_path / "run")
    embedding = base64.b64encode(np.asarray([1, 0], dtype="<f4").tobytes()).decode()
    embedded = [seen(image_id, [], 0, 1, kind="embed", embedding=embedding) for image_id in (*A, Q, B0)]
    observe(run, [*embedded, seen(B1, [], 0, 1, status=503, kind="embed")])
    summary = summarise(small, run)
    assert summary.invalid_because == [f"1 gallery images have no embedding, the first is {B1}"]
    assert not summary.valid


def test_a_data_set_that_was_rebuilt_is_refused(small: Dataset, tmp_path: Path) -> None:
    run = begun(Run(tmp_path / "run"), data_fingerprint="another")
    with pytest.raises(RunError, match="another data set"):
        summarise(small, run)


def test_tail_is_at_or_above_p99() -> None:
    observations = [seen(f"a/{n}", [], 0, 0.001 * n, server_ms={"queue": float(n)}) for n in range(1, 101)]
    assert [observation.query_id for observation in tail_of(observations)] == ["a/100"]
    assert tail_of([]) == []


def test_a_group_ends_with_its_last_response() -> None:
    observations = [seen("a/0", [], 0, 0.5), seen("a/1", [], 0, 0.25), seen("a/2", [], 1, 0.125)]
    assert group_latencies_ms(observations) == [500, 125]


def test_packing_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    run = begun(Run(tmp_path / "run"))
    observe(run, [seen("a/0", [], 0, 1)])
    kept = (run.folder / "observations-000-00.jsonl").read_text()
    run.pack()
    assert [file.name for file in run.folder.glob("observations*")] == [PACKED]
    (run.folder / "observations-000-00.jsonl").write_text(kept)  # killed before it was removed
    observe(run, [seen("a/1", [], 0, 1, segment=1)], torn='{"query_id"')
    run.pack()
    assert [observation.query_id for observation in run.observations()] == ["a/0", "a/1"]


def test_latency_of_nothing() -> None:
    assert latency([seen("a/x", [], 0, 1, status=0)]).images_per_s == 0


def test_stages_add_up_to_the_latency() -> None:
    means = stage_means(
        [{"decode": 0.5, "infer": 2.0, "total": 4.0}, {"decode": 1.5, "infer": 2.0, "total": 4.0}], [10, 20]
    )
    assert means == {"decode": 1.0, "infer": 2.0, "other": pytest.approx(1), "http": pytest.approx(11)}
    assert stage_means([], []) == {}


def test_a_run_is_resumed_and_a_torn_line_ignored(tmp_path: Path) -> None:
    run = begun(Run(tmp_path / "run"))
    observe(run, [seen("a/x", ["a/y"], 0, 1)], torn=to_line(seen("a/z", [], 0, 1))[:40])
    assert [observation.query_id for observation in run.begin(replace(RECORD, started="tomorrow"))] == ["a/x"]
    observe(run, [seen("a/z", [], 0, 1, segment=1)])
    assert [observation.query_id for observation in run.observations()] == ["a/x", "a/z"]


def test_another_runs_folder_is_not_written_to(tmp_path: Path) -> None:
    run = begun(Run(tmp_path / "run"), url="x")
    with pytest.raises(RunError, match="another run: k, url differ"):
        run.begin(replace(RECORD, k=5))


def test_damaged_runs_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run"):
        Run(tmp_path).record(RunRecord)
    (tmp_path / "observations.jsonl").write_text("{}\n")
    with pytest.raises(RunError, match=r"observations .* cannot be read"):
        Run(tmp_path).observations()
