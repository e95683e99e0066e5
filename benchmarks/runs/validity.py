"""Verdict on a run: whether the client, and not the service, decided its results. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.runs.run import ClientUsage, Observation

_LAG_MS = 5.0  # below it a client counts as on time
_LAG_SHARE = 0.1  # of the median latency
_LAG_REQUESTS = 100  # with fewer, the 99th percentile is the slowest request alone
_CORE_SHARE = 0.9  # a client process that uses more of a core is the limit itself
_CORE_WINDOW_S = 1.0  # over less, start-up and a single scheduling delay decide the share


@dataclass(frozen=True, slots=True)
class Verdict:
    """Reasons why a run is invalid, and checks that it is too short for: one sentence each."""

    invalid_because: list[str]
    not_judged: list[str]


def judge(
    observations: Sequence[Observation], open_loop: bool, cache_expected: bool, usage: Sequence[ClientUsage]
) -> Verdict:
    """Check the client's lag (open loop only), its share of a core, and answers from the cache."""
    verdict = Verdict([], [])
    if open_loop:
        _judge_lag(observations, verdict)
    _judge_usage(usage, verdict)
    cached = sum(one.cache not in ("", "miss") for one in observations)
    if cached and not cache_expected:
        verdict.invalid_because.append(
            f"{cached} answers came from the service's cache: their times are not of work"
        )
    return verdict


def without_gallery(gallery: Sequence[str], observations: Sequence[Observation]) -> list[str]:
    """Where the harness searches, a picture without an embedding is found by nobody: R@1 would flatter."""
    embedded = {one.query_id for one in observations if one.embedding}
    missing = [one for one in gallery if one not in embedded]
    if not missing:
        return []
    return [f"{len(missing)} pictures of the gallery have no embedding, the first is {missing[0]}"]


def send_lag_ms(observations: Sequence[Observation], percent: float) -> float:
    """How late the client sent, at a percentile."""
    return float(np.percentile([one.send_lag_ms for one in observations], percent)) if observations else 0.0


def _judge_usage(usage: Sequence[ClientUsage], verdict: Verdict) -> None:
    judged = [process.core_share for process in usage if process.wall_s >= _CORE_WINDOW_S]
    if judged and max(judged) > _CORE_SHARE:
        verdict.invalid_because.append(
            f"a client process used {max(judged):.0%} of a core, so the client was the limit: "
            "give it more --processes"
        )
    if usage and not judged:
        longest_s = max(process.wall_s for process in usage)
        verdict.not_judged.append(
            f"the client's share of a core: {longest_s:.2f} s is too short to judge, "
            f"the minimum is {_CORE_WINDOW_S:g} s"
        )


def _judge_lag(observations: Sequence[Observation], verdict: Verdict) -> None:
    answered = [one.latency_ms for one in observations if one.status == 200]
    if not answered:
        return
    if len(observations) < _LAG_REQUESTS:
        verdict.not_judged.append(
            f"the client's send lag: {len(observations)} requests are too few to judge, "
            f"the minimum is {_LAG_REQUESTS}"
        )
        return
    lag_ms, median_ms = send_lag_ms(observations, 99), float(np.median(answered))
    if lag_ms > max(_LAG_MS, _LAG_SHARE * median_ms):
        verdict.invalid_because.append(
            f"the client lagged: one request in a hundred was sent {lag_ms:.1f} ms late or more, "
            f"beside a median latency of {median_ms:.1f} ms"
        )
