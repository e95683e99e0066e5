"""The demo on Octet: its printed results equal those computed from the embeddings."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.datasets.dataset import Dataset, Record
from benchmarks.replay.records import ReplayRecord
from benchmarks.runs.run import Run, to_line
from benchmarks.targets.gallery import index_fits, index_gallery
from benchmarks.targets.process import ServiceProcess, free_port, running_service
from tests.support.images import encode, noise
from tests.support.observed import observe
from tests.support.paths import ROOT
from tests.support.waiting import LIMIT_S


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs a command of the harness."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def demo(octet: Dataset, folder: Path) -> str:
    """The output of `make demo` without a terminal: it stops the service and exits with 0."""
    done = command("demo", f"--data={octet.root}", f"--runs={folder}", f"--port={free_port()}")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def summary(demo: str, folder: Path) -> dict[str, Any]:
    assert demo
    return dict(json.loads((folder / "demo" / "summary.json").read_text()))


@pytest.fixture(scope="module")
def again(demo: str, folder: Path) -> Iterator[ServiceProcess]:
    """A service on the demo's index."""
    assert demo
    with running_service(folder / "again.log", data_dir=str(folder / "index")) as service:
        yield service


def test_the_table_covers_everything_and_nothing_failed(
    demo: str, summary: dict[str, Any], octet: Dataset
) -> None:
    assert len(octet.domains) == 8
    for domain in octet.domains:
        (row,) = [line.split() for line in demo.splitlines() if line.split()[:1] == [domain]]
        assert row[1] == f"{len(octet.queries(domain)):,}"
        assert row[2] == f"{len(octet.gallery(domain)):,}"
        assert row[3] == f"{summary['domains'][domain]['R@1'] * 100:.1f}"
    assert summary["all"]["failed"] == 0
    assert summary["all"]["queries"] == sum(len(octet.queries(domain)) for domain in octet.domains)
    assert "failed queries: 0" in demo


def test_every_query_was_sent_once_and_answered(demo: str, octet: Dataset, folder: Path) -> None:
    assert demo
    observations = Run(folder / "demo").observations()
    sent = [observation.query_id for observation in observations]
    assert sorted(sent) == sorted(query.id for domain in octet.domains for query in octet.queries(domain))
    for observation in observations:
        assert observation.status == 200
        assert len(observation.hit_ids) == 10
        assert observation.query_id not in observation.hit_ids
        assert observation.scheduled_s <= observation.sent_s <= observation.done_s
        assert set(observation.server_ms) == {"decode", "queue", "infer", "search", "total"}


def test_scores_equal_numpy_over_the_services_own_embeddings(
    summary: dict[str, Any], octet: Dataset, again: ServiceProcess
) -> None:
    """An independent implementation with matrices; of the harness it uses only the reader of info files."""
    with (
        httpx.Client(base_url=again.url, timeout=LIMIT_S) as client,
        ThreadPoolExecutor(8) as threads,
    ):

        def stored(record: Record) -> list[float]:
            return list(client.get(f"/v1/items/{quote(record.id, safe='')}").json()["embedding"])

        def embedded(record: Record) -> list[float]:
            data = octet.image(record).read_bytes()
            headers = {"Content-Type": "application/octet-stream"}
            return list(client.post("/v1/embed", content=data, headers=headers).json()["embedding"])

        gallery = [record for domain in octet.domains for record in octet.gallery(domain)]
        rows = np.asarray(list(threads.map(stored, gallery)), dtype=np.float64)
        means = []
        for domain in octet.domains:
            queries = octet.queries(domain)
            scores = np.asarray(list(threads.map(embedded, queries))) @ rows.T  # (Q, G)
            relevant = np.asarray(
                [
                    [g.domain == domain and set(g.class_ids) & set(q.class_ids) != set() for g in gallery]
                    for q in queries
                ]
            )
            is_query = np.asarray([[g.id == q.id for g in gallery] for q in queries])
            scores[is_query] = -np.inf
            relevant &= ~is_query
            ranked = np.take_along_axis(relevant, np.argsort(-scores, axis=1, kind="stable")[:, :5], axis=1)
            m = np.minimum(relevant.sum(axis=1), 5)
            within = np.arange(5)[None, :] < m[:, None]
            r_at_1 = ranked[:, 0].mean()
            mmp_at_5 = ((ranked & within).sum(axis=1) / m).mean()
            assert summary["domains"][domain]["R@1"] == pytest.approx(r_at_1, abs=1e-9), domain
            assert summary["domains"][domain]["mMP@5"] == pytest.approx(mmp_at_5, abs=1e-9), domain
            means.append((r_at_1, mmp_at_5))
    assert summary["mean"]["R@1"] == pytest.approx(np.mean([mean[0] for mean in means]), abs=1e-9)
    assert summary["mean"]["mMP@5"] == pytest.approx(np.mean([mean[1] for mean in means]), abs=1e-9)


def test_a_second_upload_sends_only_missing_items(octet: Dataset, again: ServiceProcess) -> None:
    first = command("index", str(octet.root), "--url", again.url, "--json")
    assert json.loads(first.stdout.splitlines()[-1]) == {"uploaded": 0}
    missing = octet.gallery("flags")[3]
    with httpx.Client(base_url=again.url, timeout=LIMIT_S) as client:
        assert client.delete(f"/v1/items/{quote(missing.id, safe='')}").json() == {"deleted": True}
        short = command("replay", str(octet.root), "--url", again.url, "--out", str(again.log) + "-short")
        assert short.returncode == 1
        assert "gallery" in short.stderr
        second = command("index", str(octet.root), "--url", again.url, "--json")
        assert json.loads(second.stdout.splitlines()[-1]) == {"uploaded": 1}
        assert client.get(f"/v1/items/{quote(missing.id, safe='')}").json()["label"] == octet.label(missing)


async def test_an_index_with_other_items_does_not_fit(octet: Dataset, again: ServiceProcess) -> None:
    assert await index_fits(octet, again.url)
    async with httpx.AsyncClient(base_url=again.url, timeout=LIMIT_S) as client:
        params = {"domain": "mine", "label": "cat"}
        headers = {"Content-Type": "image/png"}
        added = await client.put("/v1/items/x", content=encode(noise(1)), headers=headers, params=params)
        added.raise_for_status()
        assert not await index_fits(octet, again.url)
        (await client.delete("/v1/items/x")).raise_for_status()
    assert await index_fits(octet, again.url)


def test_a_replay_resumes_where_it_stopped(octet: Dataset, again: ServiceProcess, folder: Path) -> None:
    complete = Run(folder / "demo")
    part = Run(folder / "part")
    out = ["--out", str(part.folder), "--concurrency", "8", "--json"]
    # A run that was killed after 2,000 queries: the lines of the demo's run and an incomplete one.
    lines = complete.observations()
    record = complete.record(ReplayRecord)
    target, scenario = replace(record.target, url=again.url), replace(record.scenario, streams=8)
    part.begin(replace(record, url=again.url, target=target, scenario=scenario))
    observe(part, lines[:2000], torn=to_line(lines[2000])[:25])
    done = command("replay", str(octet.root), "--url", again.url, *out)
    assert done.returncode == 0, done.stderr
    observations = part.observations()
    assert len(observations) == len(lines)
    assert sum(observation.segment == 1 for observation in observations) == len(lines) - 2000
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["mean"] == json.loads((complete.folder / "summary.json").read_text())["mean"]
    reported = command("report", str(part.folder), "--json")
    assert json.loads(reported.stdout.splitlines()[-1]) == summary


def hits_by_query(run: Path) -> dict[str, list[str]]:
    return {observation.query_id: list(observation.hit_ids) for observation in Run(run).observations()}


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("scenario", ["SingleStream", "MultiStream", "Server --rate 20"])
def test_hits_are_the_same_in_every_scenario(
    octet: Dataset, again: ServiceProcess, folder: Path, tmp_path: Path, scenario: str
) -> None:
    options = ["--url", again.url, "--out", str(tmp_path), "--queries-per-domain", "4", "--json"]
    load = ["--scenario", *scenario.split()]
    done = CliRunner().invoke(app, ["replay", str(octet.root), *options, *load], catch_exceptions=False)
    assert json.loads(done.stdout.splitlines()[-1])["all"]["failed"] == 0
    hits = hits_by_query(tmp_path)
    assert len(hits) == 4 * 8
    assert hits.items() <= hits_by_query(folder / "demo").items()


def test_an_unreachable_service_is_reported_in_one_line(octet: Dataset) -> None:
    done = command("index", str(octet.root), "--url", f"http://127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "nothing answers at 127.0.0.1" in done.stderr


async def test_a_missing_image_is_named(service: ServiceProcess, tmp_path: Path) -> None:
    info = tmp_path / "data" / "info_files" / "lone"
    info.mkdir(parents=True)
    (info / "test.json").write_text('[{"path": "lone/missing.png", "class_id": 0}]')
    with pytest.raises(Exception, match=r"missing\.png"):
        await index_gallery(Dataset(tmp_path), service.url, Console(quiet=True))
