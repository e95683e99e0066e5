"""The records of a load and of a search over loads: `run.json` and `summary.json`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from benchmarks.load.saturate import Saturated
from benchmarks.load.scenarios import Scenario
from benchmarks.load.trial import Trial
from benchmarks.load.workload import CacheName, SizeName
from benchmarks.runs.records import VERSION, RunRecord


@dataclass(frozen=True)
class TrafficOptions:
    """The options of a load that its record holds."""

    mix: str
    sizes: SizeName
    cache: CacheName
    seconds: float
    slo_ms: float
    seed: int
    processes: int


@dataclass(frozen=True, kw_only=True)
class LoadRecord(TrafficOptions, RunRecord):
    """`run.json` of `load` (kind `load`), and of `saturate` and `concurrency` (kind `trials`)."""

    kinds: ClassVar[tuple[str, ...]] = ("load", "trials")

    scenario: Scenario | None = None  # of trials: one each


@dataclass(frozen=True, kw_only=True)
class LoadSummary(Trial):
    """`summary.json` of `load`: its results."""

    version: int = VERSION
    complete: Annotated[bool, Field(alias="whole")]  # False: the load was stopped


@dataclass(frozen=True, kw_only=True)
class SaturateSummary(Saturated):
    """`summary.json` of `saturate`: the highest rate, and the trials that found and confirmed it."""

    version: int = VERSION
    slo_ms: float


@dataclass(frozen=True, kw_only=True)
class ConcurrencySummary:
    """`summary.json` of `concurrency`: its trials in the order of their concurrency."""

    version: int = VERSION
    trials: list[Trial]
    knee: int  # concurrency
