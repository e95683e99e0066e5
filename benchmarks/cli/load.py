"""Commands that measure the capacity of a service."""

import asyncio
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.cli.options import DATA, JSON, KEY, LOCAL, PROCESSES, URL, print_json
from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import BenchmarkError, Interrupted, RunError, TargetError
from benchmarks.load import records
from benchmarks.load.driver import Client
from benchmarks.load.null_server import null_server
from benchmarks.load.saturate import SUSTAINED_SHARE, find_rate, knee
from benchmarks.load.scenarios import Scenario, scenario_row
from benchmarks.load.tables import plot_trials, print_load, print_trials
from benchmarks.load.trial import Experiment, Journal, Trial
from benchmarks.load.workload import CacheName, SizeName, Workload, images_of, shares_of
from benchmarks.reports import write_hdr_log
from benchmarks.runs.latency import latency
from benchmarks.runs.provenance import provenance
from benchmarks.runs.records import to_json, write_summary
from benchmarks.runs.run import Run
from benchmarks.targets.service import info_of
from benchmarks.targets.target import Target

MIX = Annotated[str, typer.Option(help="Shares of the requests: search, embed, index, delete.")]
SIZES = Annotated[
    SizeName, typer.Option(help="own: images as they are; uned: sizes as in UnED; phone: 12 MP.")
]
CACHE = Annotated[
    CacheName, typer.Option(help="hostile: no image repeats; friendly: a few images repeat often.")
]
SLO = Annotated[float, typer.Option(min=0.1, help="Latency limit of a request within the SLO.")]
SECONDS = Annotated[float, typer.Option(min=0.1, help="Duration of a load or trial.")]
OUT = Annotated[Path, typer.Option(help="Run folder.")]
SEED = Annotated[int, typer.Option(help="Seed of the traffic.")]
SWEEP = (1, 2, 4, 8, 16, 32, 64)
_FIRST_CONCURRENCY = 16  # for a first estimate of the rate


@dataclass(frozen=True)
class _Options(records.TrafficOptions):
    """Options that the commands share."""

    data: Path
    url: str
    key: str | None

    def experiment(self, out: Path) -> Experiment:
        """Return the experiment; resized images are written to `out`."""
        return Experiment(
            target=Target("uie", self.url.rstrip("/")),
            workload=Workload(shares_of(self.mix), self.sizes, self.cache, self.seed),
            images=images_of(Dataset(self.data), self.sizes, out / "images"),
            seconds=self.seconds,
            slo_ms=self.slo_ms,
            client=Client(self.processes, key=self.key),
        )

    def record(self, kind: str, scenario: Scenario | None = None) -> records.LoadRecord:
        """Return the run's record: the options without the key, `/v1/info`. Raises TargetError."""
        return records.LoadRecord(
            kind=kind,
            url=self.url,
            data=str(self.data.resolve()),
            data_fingerprint=Dataset(self.data).fingerprint,
            service=asyncio.run(info_of(self.url, self.key)),
            scenario=scenario,
            **{field.name: getattr(self, field.name) for field in fields(records.TrafficOptions)},
            **vars(provenance()),
        )


def load(
    data: DATA,
    out: OUT,
    url: URL = LOCAL,
    rate: Annotated[float | None, typer.Option(min=0.01, help="Requests/s, Poisson arrivals.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight, without --rate.")] = 16,
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
    """Send mixed traffic at a rate or concurrency; report latency by kind of request, and by stage."""
    options = _Options(mix, sizes, cache, seconds, slo_ms, seed, processes, data, url, key)
    experiment, run = options.experiment(out), Run(out)
    scenario = scenario_row("Server" if rate else "ClosedLoop", concurrency, rate, seed)
    if run.begin(options.record("load", scenario)):
        raise RunError(f"{out} has a load already, and a load is not resumed: name another --out")
    stopped: BenchmarkError | None = None
    try:
        try:
            experiment.send(scenario, out, Console())
        except BenchmarkError as error:
            stopped = error
        _finish(run, experiment, scenario, stopped, as_json)
    finally:
        experiment.delete_indexed(out)


def saturate(
    data: DATA,
    out: OUT,
    url: URL = LOCAL,
    mix: MIX = "search=1",
    sizes: SIZES = "own",
    cache: CACHE = "hostile",
    seconds: SECONDS = 10,
    slo_ms: SLO = 500,
    repeats: Annotated[int, typer.Option(min=1, help="Trials that must confirm the rate.")] = 3,
    seed: SEED = 0,
    processes: PROCESSES = 1,
    key: KEY = None,
    as_json: JSON = False,
) -> None:
    """Find the highest rate at which 99 % of the requests are within the SLO; resumes in `out`."""
    console = Console()
    options = _Options(mix, sizes, cache, seconds, slo_ms, seed, processes, data, url, key)
    attempt = _attempts(options, out, console)
    first_rate = attempt(Scenario("ClosedLoop", streams=_FIRST_CONCURRENCY)).images_per_s
    if not first_rate:
        raise TargetError("the service answered no request")
    saturated = find_rate(lambda rate: attempt(scenario_row("Server", 0, rate, seed)), first_rate, repeats)
    trials, confirmed = saturated.trials, saturated.confirmed
    summary = records.SaturateSummary(saturated.rate_per_s, trials, confirmed, slo_ms=slo_ms)
    write_summary(out, summary)
    print_trials([*trials, *confirmed], None, console)
    console.print(
        f"{saturated.rate_per_s:.1f} requests/s: at least {SUSTAINED_SHARE:.0%} of the requests within the "
        f"SLO (200 in {slo_ms:g} ms), in {repeats} of {repeats} trials"
    )
    if as_json:
        print_json(to_json(summary))


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
    """Measure throughput and latency at concurrencies from 1 to 64, and find the knee; resumes in `out`."""
    console = Console()
    options = _Options(mix, sizes, cache, seconds, slo_ms, seed, processes, data, url, key)
    attempt = _attempts(options, out, console)
    trials = [attempt(Scenario("ClosedLoop", streams=streams)) for streams in SWEEP]
    print_trials(trials, knee(trials), console)
    plot_trials(trials, knee(trials), out / "concurrency.png")
    summary = records.ConcurrencySummary(trials=trials, knee=knee(trials).streams)
    write_summary(out, summary)
    if as_json:
        print_json(to_json(summary))


def selftest(
    data: DATA,
    processes: PROCESSES = 1,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 64,
    seconds: SECONDS = 5,
    as_json: JSON = False,
) -> None:
    """Measure the highest rate of this client on this machine, with a server that does nothing."""
    with null_server() as url, tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        options = _Options("search=1", "own", "hostile", seconds, 1e9, 0, processes, data, url, None)
        scenario = Scenario("ClosedLoop", streams=concurrency)
        usage = options.experiment(folder).send(scenario, folder, Console())
        observations = Run(folder).observations()
    rate = latency(observations).images_per_s
    cpu_ms = sum(process.cpu_s for process in usage) / len(observations) * 1e3
    Console().print(
        f"{rate:,.0f} requests/s with --processes {processes}, {cpu_ms:.2f} ms of CPU time per request: "
        "the client is not the bottleneck of a service with a tenth of that rate or less"
    )
    if as_json:
        print_json({"requests_per_s": rate, "client_cpu_ms": cpu_ms})


def _attempts(options: _Options, out: Path, console: Console) -> Callable[[Scenario], Trial]:
    run, experiment = Run(out), options.experiment(out)
    run.begin(options.record("trials"))
    journal = Journal(out / "trials.jsonl")
    attempt = partial(experiment.trial, console=console, folder=out / "trials")
    return partial(journal.trial, attempt=attempt)


def _finish(
    run: Run, experiment: Experiment, scenario: Scenario, stopped: BenchmarkError | None, as_json: bool
) -> None:
    """Print and write the results of a load, or of its part before it was stopped.

    Raises the error that stopped it, TargetError if the load is invalid, and RunError if a file cannot be
    written.
    """
    observations = run.observations()
    if stopped and not observations:
        raise stopped
    trial = experiment.results(scenario, observations, run.client_usage())
    summary = records.LoadSummary(**asdict(trial), complete=stopped is None)
    print_load(trial, observations, experiment.slo_ms, Console())
    if as_json:
        print_json(to_json(summary))
    outcome = f"the results so far are in {run.folder}; a load is not resumed"
    try:
        write_summary(run.folder, summary)
        run.pack()
        write_hdr_log(run, observations)
    except RunError as error:
        if stopped is None:
            raise
        outcome = str(error)
    if stopped:
        reason = "stopped" if isinstance(stopped, Interrupted) else str(stopped)
        raise type(stopped)(f"{reason}; {outcome}") from stopped
    if trial.invalid_because:
        raise TargetError(f"the run is invalid: {trial.invalid_because[0]}")
