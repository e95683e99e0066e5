"""`compare` and `gate` on small run folders."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from benchmarks.__main__ import app
from benchmarks.comparison.compare import compare
from benchmarks.comparison.gate import Limits, judge
from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import BenchmarkError, DataError, GateFailed, RunError
from benchmarks.replay.results import ranked_run, scores_of
from benchmarks.runs.run import ClientUsage, Observation, Run
from tests.support.observed import RECORD, begun, observe, seen

SIZES = {"a": 200, "b": 15}  # queries; two of each class (of `b`'s last, one)


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    for domain, size in SIZES.items():
        file = tmp_path / "data" / "data" / "info_files" / domain / "test.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps([{"path": f"{row}.png", "class_id": row // 2} for row in range(size)]))
    return Dataset(tmp_path / "data")


def query(domain: str, row: int) -> str:
    return f"{domain}/test/{row:07d}"


def observation(domain: str, row: int, *, right: bool, status: int, latency_ms: float) -> Observation:
    hit = row ^ 1 if right else (row + 2) % SIZES[domain]  # of the same class, or of another
    hits = [query(domain, hit)] if status == 200 else []
    return seen(query(domain, row), hits, row * 0.01, latency_ms / 1e3, status=status, server_ms={})


def make_run(
    data: Dataset,
    name: str,
    *,
    wrong: dict[str, int] | None = None,
    failed: Sequence[str] = (),
    slower: float = 1.0,
    rows: Mapping[str, int] = SIZES,
    record: Mapping[str, object] | None = None,
) -> Run:
    """The first `wrong` queries of each domain fail; query n takes 10 + n % 100 / 10 ms, times `slower`."""
    usual = {"data": str(data.root), "data_fingerprint": data.fingerprint, "domains": data.domains}
    changes = {**usual, "service": {"model": {"name": name}}, **(record or {})}
    run = begun(Run(data.root.parent / name), **changes)
    observe(
        run,
        [
            observation(
                domain,
                row,
                right=row >= (wrong or {}).get(domain, 0),
                status=500 if query(domain, row) in failed else 200,
                latency_ms=(10 + row % 100 / 10) * slower,
            )
            for domain in data.domains
            for row in range(rows.get(domain, 0))
        ],
    )
    return run


def ask(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_scores_of_queries(data: Dataset) -> None:
    run = ranked_run(make_run(data, "run", wrong={"a": 3}, failed=[query("a", 7)]))
    scores = scores_of(run.judge, run.queries, run.rankings)
    assert {name: len(of_domain) for name, of_domain in scores.items()} == SIZES
    wrong = [name for name, score in scores["a"].items() if score.r_at_1 == 0]
    assert wrong == [query("a", row) for row in (0, 1, 2, 7)]
    lone = scores["b"][query("b", 14)]  # the only one of its class
    assert (lone.r_at_1, lone.n_q) == (0.0, 0)


def test_scores_of_a_data_set_that_changed_are_refused(data: Dataset) -> None:
    run = make_run(data, "run")
    (data.root / "data" / "info_files" / "b" / "test.json").write_text("[]")
    with pytest.raises(RunError, match="another data set"):
        ranked_run(run)


def test_compare_says_what_differs_and_what_is_real(data: Dataset) -> None:
    before = make_run(data, "before", wrong={"b": 1})
    after = make_run(data, "after", wrong={"a": 30, "b": 2}, slower=1.5, record={"commit": "new"})
    result = ask("compare", before.folder, after.folder, "--json")
    assert result.exit_code == 0
    table, line = result.stdout.rsplit("\n", 2)[:2]
    comparison = json.loads(line)
    assert comparison["differs"] == {"service.model.name": ["before", "after"], "commit": ["abc1234+", "new"]}
    a, b = (comparison["domains"][domain]["R@1"] for domain in ("a", "b"))
    assert (a["a"], a["b"], a["real"]) == (1.0, 170 / 200, True)
    assert a["p"] == pytest.approx(2 * 2 / 2**30)  # McNemar, the smaller of two
    assert (b["a"], b["b"], b["real"]) == (13 / 15, 12 / 15, False)
    assert comparison["mean"]["R@1"]["difference"] == pytest.approx((-30 / 200 - 1 / 15) / 2)
    assert comparison["ratio"]["p99"] == pytest.approx(1.5)
    assert comparison["a"]["p99_interval_ms"][1] is None  # 215 queries cannot bound it
    assert "significant: a -15.0, mean -10.8; not significant: b" in table
    assert "215 of the 270,336 queries that MLPerf asks for" in table


def test_a_run_is_the_same_as_itself(data: Dataset) -> None:
    run = make_run(data, "run", wrong={"a": 20})
    comparison = compare(run, run)
    assert not comparison.differs
    assert not any(
        pair.significant
        for pairs in [*comparison.domains.values(), comparison.mean]
        for pair in pairs.values()
    )
    assert comparison.mean["R@1"].difference.to_json() == [0.0, 0.0]
    assert "no difference is significant" in ask("compare", run.folder, run.folder).stdout


def test_a_run_from_another_machine_is_scored_on_the_data_set_that_is_here(data: Dataset) -> None:
    here, elsewhere = make_run(data, "here"), make_run(data, "elsewhere", record={"data": "/nowhere/octet"})
    assert compare(elsewhere, here).mean["R@1"].change == 0
    with pytest.raises(DataError, match="/nowhere/octet is not a data set"):
        compare(elsewhere, elsewhere)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"split": "val"}, "split is test in A, val in B"),
        ({"scope": "separate"}, "scope is merged in A, separate in B"),
        ({"self_exclusion": "position"}, "self_exclusion is id in A, position in B"),
        ({"data_fingerprint": "abc"}, "data_fingerprint is .* in A, abc in B"),
        ({"domains": ["a"]}, "domains is"),
    ],
)
def test_runs_that_cannot_be_paired_are_refused(
    data: Dataset, record: dict[str, object], reason: str
) -> None:
    with pytest.raises(RunError, match=reason):
        compare(make_run(data, "run"), make_run(data, "other", record=record))


def test_a_record_without_a_fingerprint_is_refused(data: Dataset) -> None:
    run = make_run(data, "run")
    content = json.loads((run.folder / "run.json").read_text())
    del content["data_fingerprint"]
    (run.folder / "run.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match="data_fingerprint"):
        compare(run, run)


def test_an_empty_domain_is_refused(data: Dataset) -> None:
    (data.root / "data" / "info_files" / "b" / "test.json").write_text("[]")
    run = make_run(data, "run", rows={"a": 200})
    with pytest.raises(RunError, match="other queries of b, or none"):
        compare(run, run)


def test_a_resent_query_counts_once_with_its_answer(data: Dataset) -> None:
    run = make_run(data, "run", failed=[query("a", 4)])
    assert compare(run, run).a.failed == 1
    again = observation("a", 4, right=True, status=200, latency_ms=10)
    observe(run, [dataclasses.replace(again, segment=1)])
    comparison = compare(run, run)
    assert comparison.a.failed == 0
    assert comparison.domains["a"]["R@1"].a == 1.0
    assert comparison.a.percentiles[99].answered == 215


def test_what_rich_takes_for_markup_is_printed(data: Dataset) -> None:
    run, other = make_run(data, "run"), make_run(data, "[red]", record={"commit": "[bold]"})
    result = ask("compare", run.folder, other.folder).stdout
    assert "/[red]\n" in result
    assert "[bold]" in result


def test_a_run_without_answers_is_refused(data: Dataset) -> None:
    everything = [query(domain, row) for domain, size in SIZES.items() for row in range(size)]
    with pytest.raises(RunError, match="no answered query"):
        compare(make_run(data, "run"), make_run(data, "dead", failed=everything))


def failures_of(data: Dataset, limits: Limits, **changes: object) -> list[str]:
    return judge(make_run(data, "run", **changes), make_run(data, "baseline"), limits)[1]  # type: ignore[arg-type]


LIMITS = Limits(max_drop_points=0.5, max_p99_ratio=1.2)
WIDE = Limits(max_drop_points=5, max_p99_ratio=1.2)


def test_a_run_within_the_limits_passes(data: Dataset) -> None:
    # One of 200 is 0.5 points of `a`, 0.25 of the mean.
    assert failures_of(data, LIMITS, wrong={"a": 1}, slower=1.2) == []


def test_the_mean_is_compared_with_the_limit_alone(data: Dataset) -> None:
    # One of 15 is 3.33 points of the mean: over the limit, though not significant.
    (reason,) = failures_of(data, LIMITS, wrong={"b": 1})
    assert reason.startswith("mean R@1 fell by 3.33 points (95%: ")
    assert reason.endswith("), from 96.67 to 93.33, over the limit of 0.5")


def test_a_domain_fails_only_if_its_drop_is_significant(data: Dataset) -> None:
    assert failures_of(data, WIDE, wrong={"b": 1}) == []  # 6.67 points of `b`
    worse, baseline = make_run(data, "worse", wrong={"a": 16}), Run(data.root.parent / "baseline")
    _, (reason,) = judge(worse, baseline, WIDE)
    assert reason.startswith("a R@1 fell by 8.00 points (95%: ")


def test_a_drop_of_just_the_limit_passes(data: Dataset) -> None:
    assert failures_of(data, Limits(100 / 30, 1.2), wrong={"b": 1}) == []


def test_a_slower_p99_fails(data: Dataset) -> None:
    assert failures_of(data, LIMITS, slower=1.25) == [
        "p99 is 1.25 times the baseline's: 24.8 ms, baseline 19.8 ms, over the limit of 1.2"
    ]


def test_failed_queries_fail(data: Dataset) -> None:
    (reason,) = failures_of(data, WIDE, failed=[query("a", 5)])
    assert "1 query of" in reason
    assert "run failed or not sent" in reason


def test_an_invalid_run_fails(data: Dataset) -> None:
    run = make_run(data, "run")
    run.write_client_usage(0, [ClientUsage(9.5, 10)])  # its client was the limit
    _, (reason,) = judge(run, make_run(data, "baseline"), LIMITS)
    assert "is invalid" in reason


def test_another_load_cannot_be_judged(data: Dataset) -> None:
    other = dataclasses.replace(RECORD.scenario, streams=32)
    with pytest.raises(RunError, match=r"another load than .*: scenario .*32"):
        failures_of(data, LIMITS, record={"scenario": other})


def test_the_gate_exits_with_one_sentence(data: Dataset) -> None:
    baseline = make_run(data, "baseline")
    worse = make_run(data, "worse", wrong={"a": 40}, slower=2.0)
    result = ask("gate", worse.folder, "--baseline", baseline.folder, "--max-drop", 0.5, "--json")
    assert result.exit_code == 1
    verdict = json.loads(result.stdout.splitlines()[-1])
    assert not verdict["passed"]
    assert verdict["change_points"] == pytest.approx(-10)
    assert verdict["p99_ratio"] == pytest.approx(2)
    assert isinstance(result.exception, GateFailed)
    assert isinstance(result.exception, BenchmarkError)  # so that `main` prints it on stderr
    assert str(result.exception) == "; ".join(verdict["why"])
    passed = ask("gate", worse.folder, "--baseline", baseline.folder, "--max-drop", 20, "--max-p99-ratio", 2)
    assert passed.exit_code == 0
    assert "passed: mean R@1 fell by 10.00 points" in passed.stderr
