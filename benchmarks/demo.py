"""The demo: from an empty folder to a measured cross-domain search, in one command."""

import asyncio
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.datasets.dataset import Dataset, Record
from benchmarks.datasets.octet import build_octet
from benchmarks.errors import TargetError
from benchmarks.load.driver import Client
from benchmarks.load.scenarios import Scenario
from benchmarks.replay.records import Protocol, RunSummary
from benchmarks.replay.replay import replay
from benchmarks.replay.summary import summarise
from benchmarks.reports.terminal import print_table
from benchmarks.runs.records import write_summary
from benchmarks.runs.run import Run
from benchmarks.scoring.measures import Judge
from benchmarks.tables import count
from benchmarks.targets.gallery import index_fits, index_gallery
from benchmarks.targets.process import port_is_free, running_service
from benchmarks.targets.target import Target


def demo(data_folder: Path, runs: Path, port: int, concurrency: int, console: Console) -> RunSummary:
    """Build Octet, serve, index, replay, report; on a terminal, keep serving until Ctrl-C.

    The index is a folder in `runs`. Returns the run's summary.
    """
    if not port_is_free(port):
        raise TargetError(f"port {port} is in use; choose another with PORT=...")
    build_octet(data_folder, console=console)
    data = Dataset(data_folder)
    index = runs / "index"
    console.print("starting the service ...")
    with running_service(runs / "service.log", port, data_dir=str(index)) as service:
        if asyncio.run(index_fits(data, service.url)):
            return _measure(data, service.url, runs / "demo", concurrency, console)
    if not index.exists():
        raise TargetError("the server's collection holds other items; set UIE_COLLECTION to a new one")
    console.print("the demo's index holds other items; starting with an empty one ...")
    shutil.rmtree(index)
    with running_service(runs / "service.log", port, data_dir=str(index)) as service:
        return _measure(data, service.url, runs / "demo", concurrency, console)


def _measure(data: Dataset, url: str, out: Path, concurrency: int, console: Console) -> RunSummary:
    uploaded = asyncio.run(index_gallery(data, url, console))
    total = sum(len(data.gallery(domain, "test")) for domain in data.domains)
    state = f"{uploaded:,} of them uploaded now" if uploaded else "all indexed already"
    console.print(f"gallery: {count(total, 'image')}, {state}")
    shutil.rmtree(out, ignore_errors=True)  # the demo measures again each time
    scenario = Scenario("ClosedLoop", streams=concurrency)
    run = replay(data, Target("uie", url), Protocol(), scenario, out, Client(), console)
    summary = summarise(data, run)
    write_summary(run.folder, summary)
    print_table(summary, console)
    python = os.path.relpath(sys.executable)
    console.print(
        f"the run is in {out}; `{python} -m benchmarks report {out}` writes a page about it", soft_wrap=True
    )
    if sys.stdin.isatty() and sys.stdout.isatty():
        _keep_serving(url, data.image(_example_query(data, run)), console)
    return summary


def _example_query(data: Dataset, run: Run) -> Record:
    """A query to try: the first one of the smallest domain whose first hit is right."""
    domain = min(data.domains, key=lambda name: len(data.queries(name)))
    queries = {query.id: query for query in data.queries(domain)}
    judge = Judge(data.gallery(domain))
    for observation in run.observations():
        query = queries.get(observation.query_id)
        if query and judge.score(query, observation.hit_ids).r_at_1:
            return query
    return next(iter(queries.values()))


def _keep_serving(url: str, image: Path, console: Console) -> None:
    command = f"curl -X POST -F image=@{shlex.quote(str(image))} '{url}/v1/search?k=3'"
    console.print(f"\nserving at {url} until Ctrl-C; try:\n\n  {command}\n", soft_wrap=True)
    console.print("Items added here are deleted by the next `make demo`; `make serve` keeps its index.")
    try:
        signal.pause()
    except KeyboardInterrupt:
        console.print("stopping ...")
