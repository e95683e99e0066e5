"""`make demo`: from nothing to a measured cross-domain search, in one command."""

import asyncio
import shlex
import signal
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.dataset import Dataset, Record
from benchmarks.errors import TargetError
from benchmarks.index import index_gallery
from benchmarks.metrics import Judge
from benchmarks.octet import build_octet
from benchmarks.replay import replay
from benchmarks.report import print_table, summarise, write_summary
from benchmarks.runs import Run
from benchmarks.service_process import port_is_free, running_service


def demo(data_folder: Path, runs: Path, port: int, concurrency: int, console: Console) -> None:
    """Build Octet, serve, index, replay, report; on a terminal, go on serving until Ctrl-C."""
    if not port_is_free(port):
        raise TargetError(f"port {port} is in use; choose another with PORT=...")
    build_octet(data_folder, console=console)
    data = Dataset(data_folder)
    console.print("starting the service ...")
    with running_service(runs / "service.log", port) as service:
        uploaded = asyncio.run(index_gallery(data, service.url, console))
        console.print(f"gallery: {uploaded:,} pictures uploaded")
        run = fresh_run(runs / "demo")
        asyncio.run(replay(data, service.url, run.folder, concurrency, k=10, console=console))
        summary = summarise(data, run)
        write_summary(run.folder, summary)
        print_table(summary, console)
        if sys.stdin.isatty() and sys.stdout.isatty():
            _keep_serving(service.url, data.image(_showpiece(data, run)), console)


def fresh_run(folder: Path) -> Run:
    """An empty run folder: the demo measures anew each time."""
    for name in ("run.json", "observations.jsonl", "summary.json"):
        (folder / name).unlink(missing_ok=True)
    return Run(folder)


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
    try:
        signal.pause()
    except KeyboardInterrupt:
        console.print("stopping ...")
