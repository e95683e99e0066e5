"""When requests are sent. The names are MLPerf Inference's; only what they say of arrivals is taken.

| | sends | its figure |
|---|---|---|
| SingleStream | the next once the last is answered | p90 of the latency |
| MultiStream | eight at once, the next eight once all are answered | p99 of the latency of eight |
| Server | at times of a Poisson process, whatever is still unanswered | p99, at a rate |
| Offline | as much as is taken, in bulk | images/s |
| ClosedLoop | not MLPerf's: so many clients, each like SingleStream | images/s and p99, at a concurrency |
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ScenarioName = Literal["SingleStream", "MultiStream", "Server", "Offline", "ClosedLoop"]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way of arriving. `rate_per_s` makes an open loop; else `streams` are a closed one."""

    name: ScenarioName
    streams: int = 1
    group: int = 1  # requests that a stream sends together
    bulk: int = 1  # pictures in a request
    rate_per_s: float | None = None
    seed: int = 0

    def times_s(self, requests: int) -> NDArray[np.float64] | None:
        """When each should be sent, from the start: float64 (requests,); None in a closed loop."""
        if self.rate_per_s is None:
            return None
        gaps = np.random.default_rng(self.seed).exponential(1 / self.rate_per_s, requests)
        return np.asarray(np.cumsum(gaps))


def scenario_row(
    name: ScenarioName, concurrency: int, rate_per_s: float | None, seed: int, in_bulk: bool = True
) -> Scenario:
    """The row of that name; `concurrency` is ClosedLoop's, rate and seed are Server's.

    Offline of a target that takes no pictures in bulk is as many at a time as `concurrency` says.
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
