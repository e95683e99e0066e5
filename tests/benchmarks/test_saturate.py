"""The search for the highest rate, with computed trials; workloads and journals."""

import asyncio
import dataclasses
from collections import Counter
from pathlib import Path

import pytest
from aiohttp import web
from PIL import Image
from rich.console import Console

from benchmarks.datasets.dataset import Dataset
from benchmarks.errors import BenchmarkError, RunError, TargetError
from benchmarks.load.driver import Client
from benchmarks.load.requests import QueryImage, read
from benchmarks.load.saturate import find_rate, knee
from benchmarks.load.scenarios import Scenario, scenario_row
from benchmarks.load.trial import Experiment, Journal, Trial
from benchmarks.load.workload import DOMAIN, Workload, images_of, requests_of, shares_of
from benchmarks.runs.run import ClientUsage
from benchmarks.targets.target import Target
from tests.support.observed import seen
from tests.support.stub import stub

QUIET = Console(quiet=True)


def trial_at(rate: float, good_share: float = 1.0, streams: int = 0) -> Trial:
    return Trial(rate, streams, 100, good_share, 0, 0, rate, 10.0, 20.0, [])


@pytest.mark.parametrize("first", [3.0, 90.0, 5000.0])
def test_the_highest_sustained_rate_is_found_from_below_and_from_above(first: float) -> None:
    result = find_rate(lambda rate: trial_at(rate, 1.0 if rate <= 100 else 0.5), first, repeats=3)
    assert 100 / 1.05 <= result.rate_per_s <= 100
    assert [trial.rate_per_s for trial in result.confirmed] == [result.rate_per_s] * 3


def test_99_percent_within_the_slo_are_enough() -> None:
    assert find_rate(lambda rate: trial_at(rate, 0.99 if rate <= 50 else 0.9899), 20, 1).rate_per_s > 47


def test_a_rate_that_is_not_confirmed_is_lowered() -> None:
    attempts = Counter[float]()

    def attempt(rate: float) -> Trial:
        attempts[rate] += 1
        lucky = attempts[rate] == 1 and rate <= 100  # sustained up to 100 at first, later up to 80
        return trial_at(rate, 1.0 if rate <= 80 or lucky else 0.0)

    result = find_rate(attempt, 64, repeats=2)
    assert 80 / 1.05 <= result.rate_per_s <= 80
    assert len(result.confirmed) == 2
    assert len(result.trials) + 2 == attempts.total()  # failed confirmations are trials as well


def test_the_rate_is_0_if_none_is_sustained() -> None:
    result = find_rate(lambda rate: trial_at(rate, 0.0), 100, repeats=1)
    assert (result.rate_per_s, result.confirmed) == (0.0, [])


def test_an_unbounded_rate_is_an_error() -> None:
    with pytest.raises(BenchmarkError, match=r"12288\.0 requests/s, 4,096 times"):
        find_rate(trial_at, 3.0, repeats=1)


def test_the_knee_is_where_throughput_over_latency_is_highest() -> None:
    # Two servers of 10 ms each: no request waits up to concurrency 2.
    trials = [
        dataclasses.replace(trial_at(0), streams=n, images_per_s=100.0 * min(n, 2), p50_ms=10 * max(1, n / 2))
        for n in (1, 2, 4, 8)
    ]
    assert knee(trials).streams == 2


def test_shares_are_parsed_and_normalised() -> None:
    assert shares_of("search=3, embed=1") == {"search": 0.75, "embed": 0.25}
    for text in ("search", "search=x", "serch=1", "search=-1,embed=2", "embed=0", "search=nan"):
        with pytest.raises(BenchmarkError, match="a mix"):
            shares_of(text)


def test_a_workload_is_seeded_and_deletes_only_indexed_items() -> None:
    images = [QueryImage(f"a/{n}", "a", Path("x")) for n in range(7)]
    workload = Workload({"search": 0.4, "embed": 0.3, "index": 0.2, "delete": 0.1}, seed=3)
    requests = requests_of(workload, images, 2000)
    assert requests == requests_of(workload, images, 2000)
    assert requests != requests_of(dataclasses.replace(workload, seed=4), images, 2000)
    counts = Counter(request.kind for request in requests)
    assert counts["search"] == pytest.approx(800, abs=100)
    assert counts["delete"] == pytest.approx(200, abs=50)
    indexed = set()
    for request in requests:
        if request.kind == "index":
            assert ("domain", DOMAIN) in request.params
            indexed.add(request.images[0].id)
        elif request.kind == "delete":
            indexed.remove(request.images[0].id)


def test_hostile_bytes_never_repeat_and_friendly_images_do(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"image")
    images = [QueryImage(f"a/{n}", "a", tmp_path / "x") for n in range(5)]
    hostile = [read(request)[0] for request in requests_of(Workload({"embed": 1.0}), images, 100)]
    assert len(set(hostile)) == 100
    assert all(content.startswith(b"image") for content in hostile)
    friendly = requests_of(Workload({"embed": 1.0}, cache="friendly"), images, 1000)
    most = Counter(request.images[0].id for request in friendly).most_common(1)[0][1]
    assert most > 300
    assert read(friendly[0]) == [b"image"]


def test_images_of_a_phone_have_twelve_megapixels(octet: Dataset, tmp_path: Path) -> None:
    first = images_of(octet, "phone", tmp_path)[0]
    with Image.open(first.file) as image:
        assert sorted(image.size) == [3024, 4032]
        assert image.format == "JPEG"
    own = images_of(octet, "own", tmp_path)
    assert own[0].file == octet.image(next(octet.alternating_queries()))


def test_a_partly_written_image_has_another_name(
    octet: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first, *_) = images_of(octet, "uned", tmp_path / "complete")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            images_of(octet, "uned", tmp_path / "killed")
    assert not (tmp_path / "killed" / first.file.name).exists()
    (tmp_path / "killed" / f"{first.file.name}.new").write_bytes(b"part")
    (again, *_) = images_of(octet, "uned", tmp_path / "killed")
    assert again.file.read_bytes() == first.file.read_bytes()


def test_a_journal_repeats_no_trial_and_refuses_another_search(tmp_path: Path) -> None:
    file = tmp_path / "trials.jsonl"
    attempts = []

    def attempt(scenario: Scenario) -> Trial:
        attempts.append(scenario.rate_per_s)
        return trial_at(scenario.rate_per_s or 0)

    for rates in ([1.0, 2.0], [1.0, 2.0, 3.0]):
        journal = Journal(file)
        for rate in rates:
            assert journal.trial(scenario_row("Server", 0, rate, 0), attempt).rate_per_s == rate
        with file.open("a") as stream:
            stream.write('{"rate_per_s": 4')  # a kill within a write
    assert attempts == [1.0, 2.0, 3.0]
    with pytest.raises(RunError, match="another search"):
        Journal(file).trial(scenario_row("Server", 0, 9.0, 0), attempt)
    file.write_text("{}\n")
    with pytest.raises(RunError, match="cannot be read"):
        Journal(file)


def experiment(url: str, image: Path, **changes: object) -> Experiment:
    values = {
        "target": Target("uie", url),
        "workload": Workload({"index": 0.5, "delete": 0.5}),
        "images": [QueryImage("a/0", "a", image)],
        "seconds": 0.5,
        "slo_ms": 60_000.0,
        "client": Client(warm_up=0),
    }
    return Experiment(**{**values, **changes})  # type: ignore[arg-type]


def test_indexed_items_are_deleted_after_a_trial(tmp_path: Path) -> None:
    indexed = set[str]()

    async def handler(request: web.Request) -> web.Response:
        name = request.path.removeprefix("/v1/items/")
        await asyncio.sleep(0.01)
        if request.method == "PUT":
            indexed.add(name)
        else:
            indexed.discard(name)
        return web.json_response({"deleted": True})

    (tmp_path / "x").write_bytes(b"x")
    with stub(handler) as url:
        scenario = Scenario("ClosedLoop", streams=2)
        trial = experiment(url, tmp_path / "x").trial(scenario, QUIET, tmp_path / "trials")
    assert (trial.good_share, trial.failed) == (1.0, 0)
    assert trial.requests > 0
    assert not indexed


def test_a_trial_whose_items_cannot_be_deleted_has_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def handler(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(0.02)
        last = request.path.endswith("/0")
        return web.json_response(
            {"deleted": True}, status=500 if request.method == "DELETE" and last else 200
        )

    (tmp_path / "x").write_bytes(b"x")
    with stub(handler) as url:
        indexing = experiment(url, tmp_path / "x", workload=Workload({"index": 1.0}))
        trial = indexing.trial(Scenario("ClosedLoop", streams=2), QUIET, tmp_path / "trials")
    assert trial.good_share == 1
    assert capsys.readouterr().err.startswith(f"warning: 1 of {trial.requests} items")


def test_within_the_slo_is_status_200_in_time(tmp_path: Path) -> None:
    observations = [
        seen("a/0", [], 0, 0.1),
        seen("a/1", [], 0, 0.3),
        seen("a/2", [], 0, 0.1, status=429),
        seen("a/3", [], 0, 0.1, status=500),
    ]
    usage = [ClientUsage(1, 10)]
    trial = experiment("", tmp_path, slo_ms=200.0).results(
        scenario_row("Server", 0, 4, 0), observations, usage
    )
    assert (trial.good_share, trial.shed, trial.failed) == (1 / 4, 1, 1)


def test_an_invalid_trial_is_an_error(tmp_path: Path) -> None:
    async def handler(_: web.Request) -> web.Response:
        await asyncio.sleep(0.01)
        return web.json_response({"hits": []}, headers={"X-Cache": "hit"})

    (tmp_path / "x").write_bytes(b"x")
    with stub(handler) as url:
        searching = experiment(url, tmp_path / "x", workload=Workload({"search": 1.0}))
        with pytest.raises(TargetError, match="cache"):
            searching.trial(Scenario("ClosedLoop"), QUIET, tmp_path / "trials")
