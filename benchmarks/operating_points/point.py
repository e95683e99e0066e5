"""One operating point: start the service with its settings, index the gallery, replay the queries."""

import asyncio
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console

from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import RunError
from benchmarks.load.driver import Client
from benchmarks.load.scenarios import Scenario
from benchmarks.operating_points.inputs import check_inputs, fingerprints_of
from benchmarks.replay.records import Protocol, RunSummary
from benchmarks.replay.replay import latest_of, replay
from benchmarks.replay.summary import summarise
from benchmarks.runs.provenance import commit
from benchmarks.runs.records import RunRecord, read_record, write_summary
from benchmarks.runs.run import PACKED, Run
from benchmarks.tables import count
from benchmarks.targets.gallery import index_gallery
from benchmarks.targets.process import port_is_free, python_m, running_module, running_service, variables
from benchmarks.targets.target import Target

_BUILT = "built"  # a file in the index's folder
_NEVER = 10**9  # items


@dataclass(frozen=True, slots=True)
class Point:
    """The settings of a service, and of the search and the load."""

    name: str
    settings: Mapping[str, str] = field(default_factory=dict)  # UIE_*, without the prefix, in lower case
    exact: bool = True
    ef: int | None = None
    graph: bool = False  # build the HNSW graph before the replay
    naive: str | None = None  # a model for `python -m model_export serve`, instead of the service
    environment: Mapping[str, str] = field(default_factory=dict)  # of that server
    streams: int = 16


@dataclass(frozen=True, slots=True)
class Workspace:
    """The data set, the client and the folder of the runs, one run per point; complete runs are kept."""

    data: Dataset
    folder: Path
    queries_per_domain: int | None
    client: Client
    console: Console


def measure(point: Point, workspace: Workspace) -> Run:
    """Measure a point, unless its run is complete.

    Raises TargetError if the service does not start, RunError, and what `replay` raises.
    """
    run = Run(workspace.folder / point.name)
    if begin(run, _inputs(point), workspace):
        return run
    workspace.console.print(f"[bold]{point.name}[/bold]")
    protocol = Protocol(exact=point.exact, ef=point.ef, queries_per_domain=workspace.queries_per_domain)
    scenario = Scenario("ClosedLoop", streams=point.streams)
    with _serving(point, workspace, port_of([run])) as url:
        target = Target("post", f"{url}/embed") if point.naive else Target("uie", url)
        replay(workspace.data, target, protocol, scenario, run.folder, workspace.client, workspace.console)
    finish(run, workspace)
    return run


def begin(run: Run, inputs: Mapping[str, Any], workspace: Workspace) -> bool:
    """Write the inputs to the run's `point.json`, unless it exists; returns True if the run is complete.

    Raises RunError if the run has other inputs.
    """
    shared = {
        "data_fingerprint": workspace.data.fingerprint,
        "queries_per_domain": workspace.queries_per_domain,
        "processes": workspace.client.processes,
        "commit": commit(),
    }
    check_inputs(run.folder / "point.json", {**inputs, **shared}, run.folder / "run.json")
    return is_complete(run)


def port_of(runs: Iterable[Run]) -> int | None:
    """The port on which a run was started: its `run.json` holds the URL, so it must be resumed there.

    None if no run was started. Raises RunError if the port is in use.
    """
    run = next((run for run in runs if run.exists), None)
    if run is None:
        return None
    port = urlsplit(run.record(RunRecord).url).port
    if port is not None and not port_is_free(port):
        raise RunError(
            f"{run.folder} was started on port {port}, which is in use: free the port, or remove the folder"
        )
    return port


def finish(run: Run, workspace: Workspace) -> None:
    """Write the run's summary. Raises RunError if any request has no answer."""
    summary = summarise(workspace.data, run)
    failed = sum(last.status != 200 for last in latest_of(run.observations()).values())
    if failed := failed + summary.totals.not_sent:
        raise RunError(
            f"{count(failed, 'request')} of {run.folder.name} failed; the same command retries them"
        )
    write_summary(run.folder, summary)


def invalid_of(runs: Iterable[Run]) -> dict[str, str]:
    """The reasons for invalid runs, by name; valid runs are left out."""
    summaries = {run.folder.name: summary_of(run) for run in runs}
    return {
        name: "; ".join(summary.invalid_because) for name, summary in summaries.items() if not summary.valid
    }


def print_invalid(invalid: Mapping[str, str], console: Console) -> None:
    """Print one line per invalid run."""
    for name, reason in invalid.items():
        console.print(f"invalid: {name}: {reason}", markup=False, highlight=False, soft_wrap=True)


def _inputs(point: Point) -> dict[str, Any]:
    models = {"UIE_MODEL": _model(point), "naive": point.naive and fingerprints_of(point.naive)}
    others = {name: value for name, value in asdict(point).items() if name != "settings"}
    return {**others, **variables(point.settings), **models}


def _model(point: Point) -> str:
    return fingerprints_of(point.settings.get("model", os.environ.get("UIE_MODEL", "default")))


@contextmanager
def _serving(point: Point, workspace: Workspace, port: int | None) -> Iterator[str]:
    """The URL of the running service. Points of the same model and kind of index share the index."""
    log = workspace.folder / f"{point.name}.log"
    if point.naive:
        module = ("model_export", "serve", point.naive)
        with running_module(log, port, module, point.environment) as service:
            yield service.url
        return
    quantization = point.settings.get("index_quantization", "none")
    content = f"{_model(point).replace('/', '-')}-{workspace.data.fingerprint[:8]}"
    index = workspace.folder / "index" / f"{content}-{quantization}{'-hnsw' if point.graph else ''}"
    settings = {**point.settings, "data_dir": str(index)}
    if (point.graph or quantization != "none") and not (index / _BUILT).exists():
        with running_service(log, None, **settings) as service:
            asyncio.run(index_gallery(workspace.data, service.url, workspace.console))
        # In a process that serves nothing: it holds Python's lock (docs/decisions/03).
        from_items = "1" if point.graph else str(_NEVER)
        python_m("service", "optimise", "--from-items", from_items, **settings)
        (index / _BUILT).touch()
    with running_service(log, port, **settings) as service:
        asyncio.run(index_gallery(workspace.data, service.url, workspace.console))
        yield service.url


def is_complete(run: Run) -> bool:
    """True if the run was measured to its end and every query was answered."""
    try:
        return (run.folder / PACKED).exists() and summary_of(run).totals.failed == 0
    except RunError:  # no summary, or a damaged one
        return False


def summary_of(run: Run) -> RunSummary:
    """The summary of a complete run. Raises RunError."""
    return read_record(run.folder / "summary.json", RunSummary)
