"""Arrival patterns of requests, named after those of MLPerf Inference.

| | sends | result |
|---|---|---|
| SingleStream | the next request after the last response | p90 of the latency |
| MultiStream | eight requests together, the next eight after all responses | p99 of the latency of eight |
| Server | at the times of a Poisson process, regardless of earlier responses | p99 at a rate |
| Offline | bulk requests, as fast as the service takes them | images/s |
| ClosedLoop | (not MLPerf) N clients, each like SingleStream | images/s and p99 at concurrency N |
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ScenarioName = Literal["SingleStream", "MultiStream", "Server", "Offline", "ClosedLoop"]


@dataclass(frozen=True, slots=True)
class Scenario:
    """An arrival pattern: an open loop at `rate_per_s`, or a closed loop of `streams`."""

    name: ScenarioName
    streams: int = 1
    group: int = 1  # requests that a stream sends together
    bulk: int = 1  # images in a request
    rate_per_s: float | None = None
    seed: int = 0

    def times_s(self, requests: int) -> NDArray[np.float64] | None:
        """Scheduled times since the start: float64 (requests,); None in a closed loop."""
        if self.rate_per_s is None:
            return None
        gaps = np.random.default_rng(self.seed).exponential(1 / self.rate_per_s, requests)
        return np.asarray(np.cumsum(gaps))


def scenario_row(
    name: ScenarioName, concurrency: int, rate_per_s: float | None, seed: int, in_bulk: bool = True
) -> Scenario:
    """Return the scenario of that name; ClosedLoop uses `concurrency`, Server the rate and the seed.

    Offline sends single images at `concurrency` if the target takes no bulk requests.
    """
    offline = {"streams": 2, "bulk": 64} if in_bulk else {"streams": concurrency}
    rows = {
        "SingleStream": Scenario("SingleStream"),
        "MultiStream": Scenario("MultiStream", group=8),
        "Server": Scenario("Server", streams=0, rate_per_s=rate_per_s, seed=seed),
        "Offline": Scenario("Offline", **offline),
        "ClosedLoop": Scenario("ClosedLoop", streams=concurrency),
    }
    return rows[name]
