"""Trials: short loads of mixed traffic, and the journal from which a search over trials resumes."""

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console

from benchmarks.errors import Interrupted, RunError, TargetError
from benchmarks.files import complete_lines, open_to_append
from benchmarks.load.driver import Client, drive
from benchmarks.load.requests import Load, QueryImage
from benchmarks.load.scenarios import Scenario
from benchmarks.load.workload import DOMAIN, Workload, requests_of
from benchmarks.runs.latency import latency
from benchmarks.runs.run import ClientUsage, Observation, Run, answered
from benchmarks.runs.validity import judge
from benchmarks.targets.service import connect
from benchmarks.targets.target import Target

_REQUESTS_PER_S = 5_000  # prepared for a closed loop, which sends as many of them as it can
_DELETES = 16  # in flight
_DELETE_TIMEOUT_S = 30
_ATTEMPTS = 3  # per trial: other processes may disturb one


@dataclass(frozen=True, slots=True)
class Trial:
    """The results of a load. A request is within the SLO if its status is 200 and its latency is in time."""

    rate_per_s: float | None  # scheduled; None in a closed loop
    streams: int  # 0 in an open loop
    requests: int
    good_share: float  # of the requests within the SLO
    shed: int  # status 429
    failed: int  # other statuses, and no response
    images_per_s: float  # answered
    p50_ms: float
    p99_ms: float
    invalid_because: list[str]
    not_judged: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Experiment:
    """The parameters that all trials share."""

    target: Target
    workload: Workload
    images: Sequence[QueryImage]
    seconds: float  # duration of a trial
    slo_ms: float
    client: Client

    def trial(self, scenario: Scenario, console: Console, folder: Path) -> Trial:
        """Run one trial; its observations are kept in the next free folder of `folder`.

        Raises what `drive` raises, and TargetError if every attempt is invalid.
        """
        for _ in range(_ATTEMPTS):
            run = Run(folder / f"{sum(1 for _ in folder.glob('*')):03d}")
            run.folder.mkdir(parents=True)
            try:
                usage = self.send(scenario, run.folder, console)
            finally:
                self.delete_indexed(run.folder)
            trial = self.results(scenario, run.observations(), usage)
            run.pack()
            if not trial.invalid_because:
                return trial
        raise TargetError(
            f"{_ATTEMPTS} consecutive trials were invalid, the last: {trial.invalid_because[0]}"
        )

    def send(self, scenario: Scenario, folder: Path, console: Console) -> list[ClientUsage]:
        """Send one load; observations are written to `folder`. Indexed items stay until `delete_indexed`.

        Returns the usage of each client process. Raises what `drive` raises.
        """
        rate = scenario.rate_per_s or _REQUESTS_PER_S
        requests = requests_of(self.workload, self.images, max(1, math.ceil(rate * self.seconds)))
        load = Load(self.target, scenario, requests, self.seconds if scenario.streams else None)
        title = f"{rate:.1f} requests/s" if scenario.rate_per_s else f"concurrency {scenario.streams}"
        return drive(load, self.client, folder, 0, title, console)

    def delete_indexed(self, folder: Path) -> None:
        """Delete the items that the load in `folder` indexed; failures are warnings: the results stay.

        Raises Interrupted.
        """
        try:
            # Including deleted ones: under load a delete may overtake the request that indexes its item.
            observations = Run(folder).observations()
            indexed = {observation.query_id for observation in observations if observation.kind == "index"}
            asyncio.run(self._delete(sorted(indexed)))
        except KeyboardInterrupt as stop:
            raise Interrupted(f"stopped; items of the load are still in the domain {DOMAIN}") from stop
        except (RunError, TargetError) as error:
            Console(stderr=True).print(f"warning: {error}", markup=False, highlight=False, soft_wrap=True)

    def results(
        self, scenario: Scenario, observations: Sequence[Observation], usage: Sequence[ClientUsage]
    ) -> Trial:
        """Compute the results of a load from its observations."""
        in_slo = sum(observation.latency_ms <= self.slo_ms for observation in answered(observations))
        times = latency(observations)
        open_loop, friendly = scenario.rate_per_s is not None, self.workload.cache == "friendly"
        verdict = judge(observations, open_loop, friendly, usage, self.client.limits)
        statuses = [observation.status for observation in observations]
        return Trial(
            rate_per_s=scenario.rate_per_s,
            streams=scenario.streams,
            requests=len(observations),
            good_share=in_slo / len(observations) if observations else 0.0,
            shed=statuses.count(429),
            failed=sum(status not in (200, 429) for status in statuses),
            images_per_s=times.images_per_s,
            p50_ms=times.p50_ms,
            p99_ms=times.p99_ms,
            invalid_because=verdict.invalid_because,
            not_judged=verdict.not_judged,
        )

    async def _delete(self, ids: Sequence[str]) -> None:
        """Delete as many items as possible. Raises TargetError if some are left."""
        slots, failures = asyncio.Semaphore(_DELETES), list[TargetError]()

        async def delete(item_id: str) -> None:
            try:
                async with slots:
                    await service.delete(item_id)
            except TargetError as error:
                failures.append(error)

        async with connect(self.target.url, self.client.key, _DELETE_TIMEOUT_S) as service:
            await asyncio.gather(*map(delete, ids))
        if failures:
            raise TargetError(
                f"{len(failures)} of {len(ids)} items of the load are still in {DOMAIN}: {failures[0]}"
            )


class Journal:
    """A file of trials in their order. Recorded trials are not repeated."""

    def __init__(self, file: Path) -> None:
        """Raises RunError."""
        self._file = file
        try:
            self._recorded = [Trial(**json.loads(line)) for line in complete_lines(file)]
        except (OSError, ValueError, TypeError) as error:
            raise RunError(f"{file} cannot be read: {error}") from error

    def trial(self, scenario: Scenario, attempt: Callable[[Scenario], Trial]) -> Trial:
        """Return the next recorded trial, or run and record a new one.

        Raises RunError if the recorded trial has another scenario.
        """
        if self._recorded:
            trial = self._recorded.pop(0)
            if (trial.rate_per_s, trial.streams) != (scenario.rate_per_s, scenario.streams):
                raise RunError(f"{self._file} belongs to another search: name another --out")
            return trial
        trial = attempt(scenario)
        try:
            with open_to_append(self._file) as stream:
                stream.write(json.dumps(asdict(trial)) + "\n")
        except OSError as error:
            raise RunError(f"{self._file} cannot be written: {error.strerror}") from error
        return trial
