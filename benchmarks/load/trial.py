"""A short load of mixed traffic, and the journal of their figures that a search resumes from."""

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console

from benchmarks.errors import Interrupted, RunError, TargetError
from benchmarks.files import complete_lines, open_to_append
from benchmarks.load.driver import Client, Load, drive
from benchmarks.load.requests import Picture
from benchmarks.load.scenarios import Scenario
from benchmarks.load.workload import DOMAIN, Mix, asks_of
from benchmarks.runs.latency import latency
from benchmarks.runs.run import ClientUsage, Observation, Run, answered
from benchmarks.runs.validity import judge
from benchmarks.targets.service import connect
from benchmarks.targets.target import Target

_MOST_PER_S = 5_000  # requests that a closed loop is given to choose from
_CLEANERS = 16
_ATTEMPTS = 3  # at a trial: a busy moment of the machine is no finding


@dataclass(frozen=True, slots=True)
class Bench:
    """What every trial has in common."""

    target: Target
    mix: Mix
    pictures: Sequence[Picture]
    seconds: float  # of a trial
    slo_ms: float  # a request that takes longer is bad
    client: Client


@dataclass(frozen=True, slots=True)
class Trial:
    """What a load gave. Good is a request with status 200 within the limit of latency."""

    rate_per_s: float | None  # asked for; None in a closed loop
    streams: int  # 0 in an open one
    requests: int
    good_share: float
    shed: int  # 429
    failed: int  # every other status, and no answer
    images_per_s: float  # answered
    p50_ms: float
    p99_ms: float
    invalid_because: list[str]
    not_judged: list[str] = field(default_factory=list)


def at_rate(rate: float, seed: int) -> Scenario:
    """Poisson arrivals."""
    return Scenario("Server", streams=0, rate_per_s=rate, seed=seed)


def observe(bench: Bench, scenario: Scenario, folder: Path, console: Console) -> list[ClientUsage]:
    """One load; its observations are in `folder`, and what it indexed is there until `clean`.

    Returns the usage of each client process. Raises what `drive` raises.
    """
    rate = scenario.rate_per_s or _MOST_PER_S
    asks = asks_of(bench.mix, bench.pictures, max(1, math.ceil(rate * bench.seconds)))
    load = Load(bench.target, scenario, asks, bench.seconds if scenario.streams else None)
    what = f"{rate:.1f} requests/s" if scenario.rate_per_s else f"{scenario.streams} at a time"
    return drive(load, bench.client, folder, 0, what, console)


def clean(bench: Bench, folder: Path) -> None:
    """Delete what the load in `folder` indexed. What cannot be deleted is said on stderr: the figures stand.

    Raises Interrupted.
    """
    try:
        # All of it, asked to be deleted or not: under load a delete may come before what it deletes.
        indexed = {one.query_id for one in Run(folder).observations() if one.kind == "index"}
        asyncio.run(_delete(sorted(indexed), bench))
    except KeyboardInterrupt as stop:
        raise Interrupted(f"stopped; what the load indexed is still in the domain {DOMAIN}") from stop
    except (RunError, TargetError) as error:
        Console(stderr=True).print(f"warning: {error}", markup=False, highlight=False, soft_wrap=True)


def trial(bench: Bench, scenario: Scenario, console: Console, folder: Path) -> Trial:
    """Its observations stay in the next free folder of `folder`.

    Raises what `drive` raises, and TargetError where it is invalid again and again.
    """
    for _ in range(_ATTEMPTS):
        run = Run(folder / f"{sum(1 for _ in folder.glob('*')):03d}")
        run.folder.mkdir(parents=True)
        try:
            usage = observe(bench, scenario, run.folder, console)
        finally:
            clean(bench, run.folder)
        found = figures(bench, scenario, run.observations(), usage)
        run.pack()
        if not found.invalid_because:
            return found
    raise TargetError(f"{_ATTEMPTS} trials in a row were invalid, the last: {found.invalid_because[0]}")


def figures(
    bench: Bench, scenario: Scenario, observations: Sequence[Observation], usage: Sequence[ClientUsage]
) -> Trial:
    """Pure."""
    good = sum(one.latency_ms <= bench.slo_ms for one in answered(observations))
    times = latency(observations)
    open_loop, friendly = scenario.rate_per_s is not None, bench.mix.cache == "friendly"
    verdict = judge(observations, open_loop, friendly, usage, bench.client.limits)
    return Trial(
        rate_per_s=scenario.rate_per_s,
        streams=scenario.streams,
        requests=len(observations),
        good_share=good / len(observations) if observations else 0.0,
        shed=sum(one.status == 429 for one in observations),
        failed=sum(one.status not in (200, 429) for one in observations),
        images_per_s=times.images_per_s,
        p50_ms=times.p50_ms,
        p99_ms=times.p99_ms,
        invalid_because=verdict.invalid_because,
        not_judged=verdict.not_judged,
    )


class Journal:
    """The trials in a file, in their order. What is there is not tried again."""

    def __init__(self, file: Path) -> None:
        """Raises RunError."""
        self._file = file
        try:
            self._known = [Trial(**json.loads(line)) for line in complete_lines(file)]
        except (OSError, ValueError, TypeError) as error:
            raise RunError(f"{file} cannot be read: {error}") from error

    def trial(self, scenario: Scenario, attempt: Callable[[Scenario], Trial]) -> Trial:
        """The next known one, where it is of this scenario; else a new one. Raises RunError."""
        wanted = (scenario.rate_per_s, scenario.streams)
        if self._known:
            known = self._known.pop(0)
            if (known.rate_per_s, known.streams) != wanted:
                raise RunError(f"{self._file} is of another search: name another --out")
            return known
        found = attempt(scenario)
        try:
            with open_to_append(self._file) as stream:
                stream.write(json.dumps(asdict(found)) + "\n")
        except OSError as error:
            raise RunError(f"{self._file} cannot be written: {error.strerror}") from error
        return found


async def _delete(ids: Sequence[str], bench: Bench) -> None:
    """As many of them as can be. Raises TargetError where some are left."""

    async def failure(of: str) -> str | None:
        try:
            await service.delete(of)
        except TargetError as error:
            return str(error)
        return None

    async with connect(bench.target.url, _CLEANERS, bench.client.key) as service:
        left = [why for why in await asyncio.gather(*map(failure, ids)) if why]
    if left:
        raise TargetError(
            f"{len(left)} of {len(ids)} pictures that the load indexed are still in {DOMAIN}: {left[0]}"
        )
