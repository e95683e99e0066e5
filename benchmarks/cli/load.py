"""Commands that find out how much a service takes."""

import asyncio
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.cli.options import DATA, JSON, KEY, LOCAL, PROCESSES, URL, print_json
from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import BenchmarkError, Interrupted, RunError, TargetError
from benchmarks.load.driver import Client
from benchmarks.load.null_server import null_server
from benchmarks.load.records import ConcurrencySummary, LoadRecord
from benchmarks.load.saturate import GOOD, knee
from benchmarks.load.saturate import saturate as find_rate
from benchmarks.load.scenarios import Scenario
from benchmarks.load.tables import plot_trials, print_load, print_trials
from benchmarks.load.trial import Bench, Journal, Trial, at_rate, clean, figures, observe, trial
from benchmarks.load.workload import CacheName, Mix, SizeName, pictures_of, shares_of
from benchmarks.reports import write_hdr_log
from benchmarks.runs.latency import latency
from benchmarks.runs.provenance import provenance
from benchmarks.runs.records import write_summary
from benchmarks.runs.run import Run
from benchmarks.targets.service import info_of
from benchmarks.targets.target import Target

MIX = Annotated[str, typer.Option(help="Shares of the requests: search, embed, index, delete.")]
SIZES = Annotated[
    SizeName, typer.Option(help="own: the data set's pictures; uned: sizes like UnED's; phone: 12 MP.")
]
CACHE = Annotated[
    CacheName, typer.Option(help="hostile: no picture comes twice; friendly: a few come often.")
]
SLO = Annotated[float, typer.Option(min=0.1, help="A request that takes longer is bad.")]
SECONDS = Annotated[float, typer.Option(min=0.1, help="Of a trial.")]
OUT = Annotated[Path, typer.Option(help="Folder of the run.")]
SEED = Annotated[int, typer.Option(help="Of the traffic.")]
SWEEP = (1, 2, 4, 8, 16, 32, 64)
_GUESS = 16  # at a time, for a first idea of the rate


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the three commands below have in common."""

    data: Path
    url: str
    mix: str
    sizes: SizeName
    cache: CacheName
    seconds: float
    slo_ms: float
    seed: int
    processes: int
    key: str | None

    def bench(self, out: Path) -> Bench:
        """Resized pictures go to `out`."""
        mix = Mix(shares_of(self.mix), self.sizes, self.cache, self.seed)
        return Bench(
            target=Target("uie", self.url.rstrip("/")),
            mix=mix,
            pictures=pictures_of(Dataset(self.data), self.sizes, out / "pictures"),
            seconds=self.seconds,
            slo_ms=self.slo_ms,
            client=Client(self.processes, key=self.key),
        )

    def record(self, kind: str, scenario: Scenario | None = None) -> LoadRecord:
        """The run's record, without the key. Raises TargetError."""
        return LoadRecord(
            kind=kind,
            url=self.url,
            data=str(self.data.resolve()),
            data_fingerprint=Dataset(self.data).fingerprint,
            service=asyncio.run(info_of(self.url, self.key)),
            mix=self.mix,
            sizes=self.sizes,
            cache=self.cache,
            seconds=self.seconds,
            slo_ms=self.slo_ms,
            seed=self.seed,
            processes=self.processes,
            scenario=scenario,
            **vars(provenance()),
        )


def load(
    data: DATA,
    out: OUT,
    url: URL = LOCAL,
    rate: Annotated[float | None, typer.Option(min=0.01, help="Requests/s, Poisson arrivals.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time, where no rate is said.")] = 16,
    mix: MIX = "search=1",
    sizes: SIZES = "own",
    cache: CACHE = "hostile",
    seconds: SECONDS = 30,
    slo_ms: SLO = 500,
    seed: SEED = 0,
    processes: PROCESSES = 1,
    key: KEY = None,
    as_json: JSON = False,
) -> None:
    """Mixed traffic at a rate or a concurrency: latency by kind of request, and where p99 comes from."""
    asked = _Asked(data, url, mix, sizes, cache, seconds, slo_ms, seed, processes, key)
    bench, run = asked.bench(out), Run(out)
    scenario = at_rate(rate, seed) if rate else Scenario("ClosedLoop", streams=concurrency)
    if run.begin(asked.record("load", scenario)):
        raise RunError(f"{out} has a load already, and one is not resumed: name another --out")
    stopped: BenchmarkError | None = None
    try:
        try:
            observe(bench, scenario, out, Console())
        except BenchmarkError as error:
            stopped = error
        _finish(run, bench, scenario, stopped, as_json)
    finally:
        clean(bench, out)


def saturate(
    data: DATA,
    out: OUT,
    url: URL = LOCAL,
    mix: MIX = "search=1",
    sizes: SIZES = "own",
    cache: CACHE = "hostile",
    seconds: SECONDS = 10,
    slo_ms: SLO = 500,
    repeats: Annotated[int, typer.Option(min=1, help="Trials that the rate must stand.")] = 3,
    seed: SEED = 0,
    processes: PROCESSES = 1,
    key: KEY = None,
    as_json: JSON = False,
) -> None:
    """The highest rate at which 99 % of the requests are answered well and in time; resumes in `out`."""
    console = Console()
    asked = _Asked(data, url, mix, sizes, cache, seconds, slo_ms, seed, processes, key)
    attempt = _attempts(asked, out, console)
    first = attempt(Scenario("ClosedLoop", streams=_GUESS)).images_per_s
    if not first:
        raise TargetError("the service answered nothing")
    found = find_rate(lambda rate: attempt(at_rate(rate, seed)), first, repeats)
    write_summary(out, {**asdict(found), "slo_ms": slo_ms})
    print_trials([*found.trials, *found.confirmed], None, console)
    console.print(
        f"{found.rate_per_s:.1f} requests/s: at least {GOOD:.0%} answered with 200 within {slo_ms:g} ms, "
        f"{repeats} times out of {repeats}"
    )
    if as_json:
        print_json({**asdict(found), "slo_ms": slo_ms})


def concurrency(
    data: DATA,
    out: OUT,
    url: URL = LOCAL,
    mix: MIX = "search=1",
    sizes: SIZES = "own",
    cache: CACHE = "hostile",
    seconds: SECONDS = 10,
    slo_ms: SLO = 500,
    seed: SEED = 0,
    processes: PROCESSES = 1,
    key: KEY = None,
    as_json: JSON = False,
) -> None:
    """Throughput and latency from one request at a time to 64, and the knee between; resumes in `out`."""
    console = Console()
    asked = _Asked(data, url, mix, sizes, cache, seconds, slo_ms, seed, processes, key)
    attempt = _attempts(asked, out, console)
    trials = [attempt(Scenario("ClosedLoop", streams=streams)) for streams in SWEEP]
    print_trials(trials, knee(trials), console)
    plot_trials(trials, knee(trials), out / "concurrency.png")
    said = {"trials": [asdict(one) for one in trials], "knee": knee(trials).streams}
    write_summary(out, ConcurrencySummary(trials=trials, knee=knee(trials).streams))
    if as_json:
        print_json(said)


def selftest(
    data: DATA,
    processes: PROCESSES = 1,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 64,
    seconds: SECONDS = 5,
    as_json: JSON = False,
) -> None:
    """The most that this client can send on this machine: its rate against a server that does nothing."""
    with null_server() as url, tempfile.TemporaryDirectory() as scratch:
        asked = _Asked(data, url, "search=1", "own", "hostile", seconds, 1e9, 0, processes, None)
        bench, folder = asked.bench(Path(scratch)), Path(scratch)
        usage = observe(bench, Scenario("ClosedLoop", streams=concurrency), folder, Console())
        observations = Run(folder).observations()
    rate = latency(observations).images_per_s
    cpu_ms = sum(process.cpu_s for process in usage) / len(observations) * 1e3
    Console().print(
        f"{rate:,.0f} requests/s with --processes {processes}, {cpu_ms:.2f} ms of CPU a request: "
        "of a service that answers a tenth as many or fewer, this client is not the limit"
    )
    if as_json:
        print_json({"requests_per_s": rate, "client_cpu_ms": cpu_ms})


def _attempts(asked: _Asked, out: Path, console: Console) -> Callable[[Scenario], Trial]:
    run, bench = Run(out), asked.bench(out)
    run.begin(asked.record("trials"))
    journal = Journal(out / "trials.jsonl")
    return partial(journal.trial, attempt=partial(trial, bench, console=console, folder=out / "trials"))


def _finish(
    run: Run, bench: Bench, scenario: Scenario, stopped: BenchmarkError | None, as_json: bool
) -> None:
    """The figures of a load, or of its part before it was stopped: on the terminal, then in its folder.

    Raises what stopped it, TargetError where it is invalid, and RunError where it cannot be written.
    """
    observations = run.observations()
    if stopped and not observations:
        raise stopped
    found = figures(bench, scenario, observations, run.client_usage())
    said = {**asdict(found), "whole": stopped is None}
    print_load(found, observations, bench.slo_ms, Console())
    if as_json:
        print_json(said)
    kept = f"what was measured so far is summarised in {run.folder}; a load is not resumed"
    try:
        write_summary(run.folder, said)
        run.pack()
        write_hdr_log(run, observations)
    except RunError as error:
        if stopped is None:
            raise
        kept = str(error)
    if stopped:
        why = "stopped" if isinstance(stopped, Interrupted) else str(stopped)
        raise type(stopped)(f"{why}; {kept}") from stopped
    if found.invalid_because:
        raise TargetError(f"the run is invalid: {found.invalid_because[0]}")
