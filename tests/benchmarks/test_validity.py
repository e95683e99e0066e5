"""The verdict on the client: its send lag, its share of a core, and responses from the cache."""

import pytest

from benchmarks.errors import RunError
from benchmarks.runs.run import ClientUsage
from benchmarks.runs.validity import Limits, Verdict, judge
from tests.support.observed import seen


def test_judge_reports_why_a_run_is_invalid() -> None:
    on_time = [seen(f"a/{n}", [], n, 0.1) for n in range(100)]
    assert judge(on_time, True, cache_expected=False, usage=[ClientUsage(5, 10)]) == Verdict([], [])
    late = [seen(f"a/{n}", [], n, 0.1, sent_s=n + 0.02) for n in range(100)]
    (reason,) = judge(late, True, cache_expected=False, usage=[]).invalid_because
    assert "20.0 ms late" in reason
    assert "BENCHMARKS_MAX_SEND_LAG_MS" in reason
    # A closed loop has no schedule.
    assert judge(late, False, cache_expected=False, usage=[]) == Verdict([], [])
    usage = [ClientUsage(2, 10), ClientUsage(9.5, 10)]
    (reason,) = judge(on_time, True, cache_expected=False, usage=usage).invalid_because
    assert "used 95% of a core" in reason
    cached = [seen("a/0", [], 0, 0.1, cache="hit"), seen("a/1", [], 0, 0.1, cache="miss")]
    (reason,) = judge(cached, False, cache_expected=False, usage=[]).invalid_because
    assert "came from the service's cache" in reason
    assert judge(cached, False, cache_expected=True, usage=[]) == Verdict([], [])


def test_judge_does_not_judge_short_runs() -> None:
    late = [seen(f"a/{n}", [], n, 0.1, sent_s=n + (0.001 if n else 10)) for n in range(99)]
    brief = ClientUsage(cpu_s=0.04, wall_s=0.02)  # two cores, over almost no time
    lag, share = judge(late, True, cache_expected=False, usage=[brief, brief]).not_judged
    assert lag == "the client's send lag at p99: 99 requests, too few to judge, the minimum is 100"
    assert share == "the client's share of a core: 0.02 s is too short to judge, the minimum is 1 s"
    assert judge(late, True, cache_expected=False, usage=[brief]).invalid_because == []
    # A single process or segment that is long enough is judged.
    assert judge([], False, cache_expected=False, usage=[brief, ClientUsage(0.5, 1)]) == Verdict([], [])
    (reason,) = judge([], False, cache_expected=False, usage=[brief, ClientUsage(0.91, 1)]).invalid_because
    assert "used 91% of a core" in reason


def test_the_median_lag_of_few_requests_is_judged() -> None:
    late = [seen(f"a/{n}", [], n, 10.1, sent_s=n + 10) for n in range(99)]
    verdict = judge(late, True, cache_expected=False, usage=[])
    assert "at p50 a request was sent 10000.0 ms late" in verdict.invalid_because[0]
    assert "99 requests, too few to judge" in verdict.not_judged[0]


def test_the_environment_overrides_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHMARKS_MAX_SEND_LAG_MS", "20")
    monkeypatch.setenv("BENCHMARKS_MAX_CORE_SHARE", "")
    assert Limits.from_environment() == Limits(send_lag_ms=20)
    for value in ("much", "nan", "inf", "-1"):
        monkeypatch.setenv("BENCHMARKS_MAX_CORE_SHARE", value)
        with pytest.raises(RunError, match=f"BENCHMARKS_MAX_CORE_SHARE={value}"):
            Limits.from_environment()
