"""One operating point: the service started with its settings, its gallery indexed, its queries replayed."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.dataset import Dataset
from benchmarks.errors import RunError, TargetError
from benchmarks.index import index_gallery
from benchmarks.load.drive import Client
from benchmarks.load.scenarios import Scenario
from benchmarks.replay import Protocol, replay
from benchmarks.report import write_summary
from benchmarks.runs import PACKED, Run
from benchmarks.service_process import SERVICE, ServiceProcess, running_service
from benchmarks.summary import summarise
from benchmarks.targets import Target

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
    """Raises TargetError where the service does not start, and what `replay` raises."""
    run = Run(place.folder / point.name)
    if is_whole(run):
        return run
    place.console.print(f"[bold]{point.name}[/bold]")
    protocol = Protocol(exact=point.exact, ef=point.ef, queries_per_domain=place.queries_per_domain)
    scenario = Scenario("ClosedLoop", streams=point.streams)
    with _serving(point, place) as service:
        target = Target("post", f"{service.url}/embed") if point.naive else Target("uie", service.url)
        replay(place.data, target, protocol, scenario, run.folder, place.client, place.console)
    summary = summarise(place.data, run)
    if summary["all"]["failed"]:
        raise RunError(f"{summary['all']['failed']} queries of {point.name} failed; the same command retries")
    write_summary(run.folder, summary)
    return run


@contextmanager
def _serving(point: Point, place: Workplace) -> Iterator[ServiceProcess]:
    """What answers; its index is shared with the points of the same model and kind of index."""
    log = place.folder / f"{point.name}.log"
    if point.naive:
        with running_service(log, module=("model_export", "serve", point.naive)) as service:
            yield service
        return
    quantization = point.settings.get("index_quantization", "none")
    model = Path(point.settings.get("model", "default")).name
    index = place.folder / "index" / f"{model}-{quantization}{'-hnsw' if point.graph else ''}"
    settings = {**point.settings, "data_dir": str(index)}
    if (point.graph or quantization != "none") and not (index / _BUILT).exists():
        with running_service(log, None, SERVICE, **settings) as service:
            asyncio.run(index_gallery(place.data, service.url, place.console))
        # In no process that serves: it holds Python's lock (docs/decisions/03).
        from_items = "1" if point.graph else str(_NEVER)
        python_m("service", "optimise", "--from-items", from_items, environment=variables(settings))
        (index / _BUILT).touch()
    with running_service(log, None, SERVICE, **settings) as service:
        asyncio.run(index_gallery(place.data, service.url, place.console))
        yield service


def variables(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with `settings` as UIE_* variables."""
    return {**os.environ, **{f"UIE_{name.upper()}": value for name, value in settings.items()}}


def is_whole(run: Run) -> bool:
    """Whether it was measured to its end."""
    return (run.folder / PACKED).exists() and (run.folder / "summary.json").exists()


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
