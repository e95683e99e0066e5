"""The records of a replay: `run.json` and `summary.json`, with the keys of the files as aliases."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from benchmarks.datasets.dataset import Split
from benchmarks.load.scenarios import Scenario
from benchmarks.runs.latency import Latency
from benchmarks.runs.records import VERSION, RunRecord
from benchmarks.runs.validity import DEFAULT_LIMITS, Limits
from benchmarks.scoring.evaluation import SelfExclusion
from benchmarks.stats.intervals import Percentile
from benchmarks.targets.target import Target

Scope = Literal["merged", "separate"]


@dataclass(frozen=True, slots=True)
class Protocol:
    """The search that each query makes; the defaults are UnED's (arXiv 2309.01858)."""

    split: Split = "test"
    scope: Scope = "merged"  # separate: each query searches its own domain only
    self_exclusion: SelfExclusion = "id"  # position: k + 1 hits are requested and the first is dropped
    exact: bool = True
    ef: int | None = None  # of HNSW, if the search is not exact; None: the service's setting
    k: int = 10
    queries_per_domain: int | None = None
    subset_seed: int = 0


@dataclass(frozen=True, slots=True)
class ClientRecord:
    """The client without its key."""

    processes: int
    warm_up: int
    limits: Limits = DEFAULT_LIMITS


@dataclass(frozen=True, kw_only=True)
class ReplayRecord(Protocol, RunRecord):
    """`run.json` of a replay: everything that is needed to repeat it."""

    kinds: ClassVar[tuple[str, ...]] = ("replay",)

    kind: str = "replay"
    target: Target
    domains: list[str]
    left_out: dict[str, str]  # reason by domain
    scenario: Scenario
    client: ClientRecord
    made_of: dict[str, str] | None = None  # of the oracle: the specialist's name by domain

    @property
    def open_loop(self) -> bool:
        """True if requests are sent at scheduled times, regardless of earlier responses."""
        return self.scenario.rate_per_s is not None


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Both measures as shares in [0, 1], with 95% intervals."""

    r_at_1: Annotated[float, Field(alias="R@1")]
    mmp_at_5: Annotated[float, Field(alias="mMP@5")]
    r_at_1_interval: Annotated[tuple[float, float], Field(alias="R@1_interval")]
    mmp_at_5_interval: Annotated[tuple[float, float], Field(alias="mMP@5_interval")]

    def share(self, measure: str) -> float:
        """The value of a measure of MEASURES."""
        return {"R@1": self.r_at_1, "mMP@5": self.mmp_at_5}[measure]

    def interval(self, measure: str) -> tuple[float, float]:
        """The interval of a measure of MEASURES."""
        return {"R@1": self.r_at_1_interval, "mMP@5": self.mmp_at_5_interval}[measure]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts of queries and of gallery images."""

    queries: int
    gallery: int
    without_match: int  # queries with nothing relevant in the gallery
    failed: int  # including those not sent
    short: int  # queries with fewer hits than mMP@5 reads


@dataclass(frozen=True, kw_only=True)
class DomainAccuracy(Counts, Accuracy):
    """The accuracy of one domain's queries."""


@dataclass(frozen=True, kw_only=True)
class DomainSummary(Latency, DomainAccuracy):
    """The row of one domain."""


@dataclass(frozen=True, kw_only=True)
class ScopeSummary:
    """The accuracy in one scope."""

    domains: dict[str, DomainAccuracy]
    mean: Accuracy  # unweighted, over domains


@dataclass(frozen=True, kw_only=True)
class Totals(Counts, Latency):
    """Counts and latencies over all queries."""

    not_sent: Annotated[int, Field(alias="not_asked")]
    retried: int  # failed at first, answered after the run was resumed
    from_cache: int
    send_lag_p99_ms: float


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A query that failed or has too few hits."""

    query: str
    reason: Annotated[str, Field(alias="why")]


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """`summary.json` of a replay."""

    version: int = VERSION
    domains: dict[str, DomainSummary]
    mean: Accuracy
    scope: Scope
    separate: ScopeSummary | None  # None if the service searched: it ranks one scope only
    totals: Annotated[Totals, Field(alias="all")]
    percentiles: list[Percentile]
    stages_ms: dict[str, float]
    tail_stages_ms: dict[str, float]  # of requests at or above p99
    confusion: dict[str, dict[str, int]]  # first hits, by the query's domain and the hit's
    unanswered: list[Unanswered]  # the first ones
    open_loop: bool
    valid: bool
    invalid_because: list[str]
    not_judged: list[str]
    left_out: dict[str, str]
    reference_rounding: bool = False

    def percentile(self, percent: int) -> Percentile | None:
        """The row of one percentile; None if nothing was answered."""
        return next((row for row in self.percentiles if row.percentile == percent), None)
