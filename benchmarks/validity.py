"""Why a run's figures must not be believed: pure functions, one sentence each."""

from collections.abc import Sequence

import numpy as np

from benchmarks.runs import Observation

_LAG_MS = 5.0  # below it a client counts as on time
_LAG_SHARE = 0.1  # of the median latency
_BUSY = 0.9  # of a core; a client process that uses more is the limit itself


def invalid_because(
    observations: Sequence[Observation], open_loop: bool, cache_expected: bool, busy: Sequence[float]
) -> list[str]:
    """Sentences, none where all is well. `busy` holds the share of a core that each client process used."""
    found = []
    if open_loop and (late := _late(observations)):
        found.append(late)
    if busy and max(busy) > _BUSY:
        found.append(
            f"a client process used {max(busy):.0%} of a core, so the client was the limit: "
            "give it more --processes"
        )
    cached = sum(one.cache not in ("", "miss") for one in observations)
    if cached and not cache_expected:
        found.append(f"{cached} answers came from the service's cache: their times are not of work")
    return found


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


def _late(observations: Sequence[Observation]) -> str | None:
    answered = [one.latency_ms for one in observations if one.status == 200]
    if not answered:
        return None
    lag_ms, median_ms = send_lag_ms(observations, 99), float(np.median(answered))
    if lag_ms <= max(_LAG_MS, _LAG_SHARE * median_ms):
        return None
    return (
        f"the client lagged: one request in a hundred was sent {lag_ms:.1f} ms late or more, "
        f"beside a median latency of {median_ms:.1f} ms"
    )
