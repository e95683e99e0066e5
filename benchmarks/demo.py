"""`make demo`: from nothing to a measured cross-domain search, in one command."""

import asyncio
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.datasets.dataset import Dataset, Record
from benchmarks.datasets.octet import build_octet
from benchmarks.errors import TargetError
from benchmarks.load.driver import Client
from benchmarks.load.scenarios import Scenario
from benchmarks.replay.replay import Protocol, replay
from benchmarks.replay.summary import summarise
from benchmarks.reports.terminal import print_table, write_summary
from benchmarks.runs.run import Run
from benchmarks.scoring.measures import Judge
from benchmarks.targets.gallery import index_fits, index_gallery
from benchmarks.targets.process import port_is_free, running_service
from benchmarks.targets.target import Target


def demo(data_folder: Path, runs: Path, port: int, concurrency: int, console: Console) -> dict[str, Any]:
    """Build Octet, serve, index, replay, report; on a terminal, go on serving until Ctrl-C.

    The index under `runs` is the demo's own. Returns the run's summary.
    """
    if not port_is_free(port):
        raise TargetError(f"port {port} cannot be had; choose another with PORT=...")
    build_octet(data_folder, console=console)
    data = Dataset(data_folder)
    index = runs / "index"
    console.print("starting the service ...")
    with running_service(runs / "service.log", port, data_dir=str(index)) as service:
        if asyncio.run(index_fits(data, service.url)):
            return _measure(data, service.url, runs / "demo", concurrency, console)
    if not index.exists():
        raise TargetError("the server's collection holds other things; set UIE_COLLECTION to a new one")
    console.print("the demo's index holds other things as well; starting with an empty one ...")
    shutil.rmtree(index)
    with running_service(runs / "service.log", port, data_dir=str(index)) as service:
        return _measure(data, service.url, runs / "demo", concurrency, console)


def _measure(data: Dataset, url: str, out: Path, concurrency: int, console: Console) -> dict[str, Any]:
    uploaded = asyncio.run(index_gallery(data, url, console))
    console.print(f"gallery: {uploaded:,} pictures uploaded")
    shutil.rmtree(out, ignore_errors=True)  # the demo measures anew each time
    scenario = Scenario("ClosedLoop", streams=concurrency)
    run = replay(data, Target("uie", url), Protocol(), scenario, out, Client(), console)
    summary = summarise(data, run)
    write_summary(run.folder, summary)
    print_table(summary, console)
    console.print(
        f"the run is in {out}; `python -m benchmarks report {out}` makes a page of it", soft_wrap=True
    )
    if sys.stdin.isatty() and sys.stdout.isatty():
        _keep_serving(url, data.image(_showpiece(data, run)), console)
    return summary


def _showpiece(data: Dataset, run: Run) -> Record:
    """A query worth trying: the first that was answered right, from the smallest of the domains."""
    domain = min(data.domains, key=lambda name: len(data.queries(name)))
    queries = {query.id: query for query in data.queries(domain)}
    judge = Judge(data.gallery(domain))
    for one in run.observations():
        if one.domain == domain and judge.score(queries[one.query_id], one.hit_ids).r_at_1:
            return queries[one.query_id]
    return next(iter(queries.values()))


def _keep_serving(url: str, picture: Path, console: Console) -> None:
    command = f"curl -X POST -F image=@{shlex.quote(str(picture))} '{url}/v1/search?k=3'"
    console.print(f"\nserving at {url} until Ctrl-C; try:\n\n  {command}\n", soft_wrap=True)
    console.print("What you add here is gone at the next `make demo`; `make serve` keeps an index of yours.")
    try:
        signal.pause()
    except KeyboardInterrupt:
        console.print("stopping ...")
