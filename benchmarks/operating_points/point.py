"""One operating point: the service started with its settings, its gallery indexed, its queries replayed."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console

from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import RunError, TargetError
from benchmarks.load.driver import Client
from benchmarks.load.scenarios import Scenario
from benchmarks.operating_points.claim import claim, model_of
from benchmarks.replay.replay import Protocol, latest_of, replay
from benchmarks.replay.summary import summarise
from benchmarks.reports import write_points
from benchmarks.reports.terminal import write_summary
from benchmarks.runs.provenance import commit
from benchmarks.runs.run import PACKED, Run
from benchmarks.targets.gallery import index_gallery
from benchmarks.targets.process import (
    SERVICE,
    ServiceProcess,
    port_is_free,
    running_module,
    running_service,
)
from benchmarks.targets.target import Target

_BUILT = "built"  # a file in the index's folder
_NEVER = 10**9  # items


@dataclass(frozen=True, slots=True)
class Point:
    """What is served, and what is asked of it."""

    name: str
    settings: Mapping[str, str] = field(default_factory=dict)  # UIE_*, without the prefix, in lower case
    exact: bool = True
    ef: int | None = None
    graph: bool = False  # HNSW is built before it is asked
    naive: str | None = None  # a model for `python -m model_export serve`, instead of the service
    environment: Mapping[str, str] = field(default_factory=dict)  # of that server
    streams: int = 16


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where points are measured: each has a run under `folder`, and those that are whole are kept."""

    data: Dataset
    folder: Path
    queries_per_domain: int | None
    client: Client
    console: Console


def measure(point: Point, place: Workplace) -> Run:
    """Raises TargetError where the service does not start, RunError, and what `replay` raises."""
    run = Run(place.folder / point.name)
    begin(run, _asked(point, place))
    if is_whole(run):
        return run
    place.console.print(f"[bold]{point.name}[/bold]")
    protocol = Protocol(exact=point.exact, ef=point.ef, queries_per_domain=place.queries_per_domain)
    scenario = Scenario("ClosedLoop", streams=point.streams)
    with _serving(point, place, port_of([run])) as service:
        target = Target("post", f"{service.url}/embed") if point.naive else Target("uie", service.url)
        replay(place.data, target, protocol, scenario, run.folder, place.client, place.console)
    finish(run, place)
    return run


def begin(run: Run, asked: Mapping[str, Any]) -> None:
    """Say what the run is of in its `point.json`; raises RunError where it is of something else."""
    claim(run.folder / "point.json", asked, run.folder / "run.json")


def asked_of(place: Workplace) -> dict[str, Any]:
    """What all points of a workplace have in common."""
    return {
        "data_fingerprint": place.data.fingerprint,
        "queries_per_domain": place.queries_per_domain,
        "processes": place.client.processes,
        "commit": commit(),
    }


def port_of(runs: Iterable[Run]) -> int | None:
    """Where the service must listen for a run that was begun to go on: its target's address is its own.

    None: anywhere, since none was begun. Raises RunError where another process has that port.
    """
    run = next((one for one in runs if (one.folder / "run.json").exists()), None)
    if run is None:
        return None
    port = urlsplit(str(run.said().get("url"))).port
    if port is not None and not port_is_free(port):
        raise RunError(
            f"{run.folder} was begun on port {port}, which is in use: free the port, or remove the folder"
        )
    return port


def finish(run: Run, place: Workplace) -> None:
    """Its summary. Raises RunError where anything that was asked has no answer."""
    summary = summarise(place.data, run)
    failed = sum(one.status != 200 for one in latest_of(run.observations()).values())
    if failed := failed + summary["all"]["not_asked"]:
        raise RunError(f"{failed} requests of {run.folder.name} failed; the same command retries them")
    write_summary(run.folder, summary)


def write_rows(runs: Iterable[Run], file: Path) -> None:
    """A CSV row a run. Raises RunError."""
    try:
        for run in runs:
            write_points(run, summary_of(run), file)
    except OSError as error:
        raise RunError(f"{file} cannot be written: {error.strerror}; the runs are kept") from error


def invalid_of(runs: Iterable[Run]) -> dict[str, str]:
    """Why a run's figures must not be believed, by its name; those that may be are not in it."""
    summaries = {run.folder.name: summary_of(run) for run in runs}
    return {
        name: "; ".join(summary["invalid_because"])
        for name, summary in summaries.items()
        if not summary["valid"]
    }


def print_invalid(invalid: Mapping[str, str], console: Console) -> None:
    """A line a run, under its table."""
    for name, why in invalid.items():
        console.print(f"invalid: {name}: {why}", markup=False, highlight=False, soft_wrap=True)


def refuse_invalid(runs: Iterable[Run]) -> None:
    """Raises RunError where there is an invalid one."""
    if invalid := invalid_of(runs):
        names = ", ".join(invalid)
        raise RunError(f"invalid: {names}; without their folders, the same command measures them again")


def _asked(point: Point, place: Workplace) -> dict[str, Any]:
    settings = {f"UIE_{name.upper()}": value for name, value in point.settings.items()}
    models = {"UIE_MODEL": _model(point), "naive": point.naive and model_of(point.naive)}
    said = {name: value for name, value in asdict(point).items() if name != "settings"}
    return {**said, **settings, **models, **asked_of(place)}


def _model(point: Point) -> str:
    return model_of(point.settings.get("model", os.environ.get("UIE_MODEL", "default")))


@contextmanager
def _serving(point: Point, place: Workplace, port: int | None) -> Iterator[ServiceProcess]:
    """What answers; its index is shared with the points of the same model and kind of index."""
    log = place.folder / f"{point.name}.log"
    if point.naive:
        module = ("model_export", "serve", point.naive)
        with running_module(log, port, module, point.environment) as service:
            yield service
        return
    quantization = point.settings.get("index_quantization", "none")
    content = f"{_model(point).replace('/', '-')}-{place.data.fingerprint[:8]}"
    index = place.folder / "index" / f"{content}-{quantization}{'-hnsw' if point.graph else ''}"
    settings = {**point.settings, "data_dir": str(index)}
    if (point.graph or quantization != "none") and not (index / _BUILT).exists():
        with running_service(log, None, SERVICE, **settings) as service:
            asyncio.run(index_gallery(place.data, service.url, place.console))
        # In no process that serves: it holds Python's lock (docs/decisions/03).
        from_items = "1" if point.graph else str(_NEVER)
        python_m("service", "optimise", "--from-items", from_items, environment=variables(settings))
        (index / _BUILT).touch()
    with running_service(log, port, SERVICE, **settings) as service:
        asyncio.run(index_gallery(place.data, service.url, place.console))
        yield service


def variables(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with `settings` as UIE_* variables."""
    return {**os.environ, **{f"UIE_{name.upper()}": value for name, value in settings.items()}}


def is_whole(run: Run) -> bool:
    """Whether it was measured to its end, and all was answered."""
    try:
        return (run.folder / PACKED).exists() and summary_of(run)["all"]["failed"] == 0
    except (FileNotFoundError, ValueError):  # no summary, or one that was cut short
        return False


def summary_of(run: Run) -> dict[str, Any]:
    """Of a run that is whole."""
    return dict(json.loads((run.folder / "summary.json").read_text()))


def python_m(*command: str, environment: Mapping[str, str]) -> None:
    """`python -m COMMAND`, one of ours. Raises TargetError with what it said."""
    done = subprocess.run(
        [sys.executable, "-m", *command], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-500:]
        raise TargetError(f"`python -m {' '.join(command)}` failed: {said}")
