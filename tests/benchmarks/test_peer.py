"""`peer`: two servers get the same images; a hand-computed ratio; the command on live services."""

import json
from pathlib import Path

import pytest
from aiohttp import web
from rich.console import Console
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.baselines.peer import Comparison, Result, Server, compare
from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import TargetError
from benchmarks.targets.process import ServiceProcess
from tests.support.stub import stub
from tests.support.tiny import tiny_data

QUIET = Console(quiet=True)


def test_the_ratio_is_the_median_of_the_rounds() -> None:
    ours, peer = ([Result(rate, 1, 1) for rate in rates] for rates in ((20, 90, 30), (10, 10, 30)))
    assert Comparison(ours, peer).ratio == 2  # of 2, 9 and 1


def test_both_servers_get_the_same_requests(tmp_path: Path) -> None:
    received: dict[str, list[str]] = {"ours": [], "theirs": []}

    async def handler(request: web.Request) -> web.Response:
        body = await request.json()
        assert request.path == "/v1/embeddings"
        received[body["model"]].append(json.dumps(body["input"]))
        return web.json_response({"data": [{"index": 0, "embedding": [0.0] * 64}]})

    data = tiny_data(tmp_path)
    with stub(handler) as url:
        ours, theirs = (Server(name, f"{url}/v1/embeddings", name) for name in received)
        comparison = compare(data, ours, theirs, rounds=2, images=20, concurrency=4, console=QUIET)
    assert sorted(received["ours"]) == sorted(received["theirs"])
    assert len(received["ours"]) == 8 + 2 * 20  # a warm-up of twice the concurrency, then two rounds
    assert (len(comparison.ours), len(comparison.peer)) == (2, 2)


def test_a_server_that_fails_is_named(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.Response:
        model = (await request.json())["model"]
        status = 200 if model == "ours" else 500
        return web.json_response({"data": [{"embedding": [0.0]}]}, status=status)

    data = tiny_data(tmp_path)
    with stub(handler) as url:
        ours, theirs = (Server(name, f"{url}/embeddings", name) for name in ("ours", "theirs"))
        with pytest.raises(TargetError, match="theirs answered 500"):
            compare(data, ours, theirs, rounds=1, images=4, concurrency=2, console=QUIET)


def test_the_command_starts_the_service_and_compares_it(octet: Dataset, service: ServiceProcess) -> None:
    options = ["--data", str(octet.root), "--rounds", "1", "--images", "64", "--concurrency", "4", "--json"]
    command = ["peer", f"{service.url}/v1/embeddings", "--model", "efficientnet-lite0-octet", *options]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["ratio"] > 0
