"""The search for the highest rate, on services that are a line of arithmetic; mixes, journals, validity."""

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
from benchmarks.load.requests import Picture, read
from benchmarks.load.saturate import knee, saturate
from benchmarks.load.scenarios import Scenario
from benchmarks.load.trial import Bench, Journal, Trial, at_rate, figures, trial
from benchmarks.load.workload import DOMAIN, Mix, asks_of, pictures_of, shares_of
from benchmarks.runs.run import ClientUsage
from benchmarks.runs.validity import Verdict, judge
from benchmarks.targets.target import Target
from tests.support.observed import seen
from tests.support.stub import stub

QUIET = Console(quiet=True)


def made(rate: float, good_share: float = 1.0, streams: int = 0) -> Trial:
    return Trial(rate, streams, 100, good_share, 0, 0, rate, 10.0, 20.0, [])


@pytest.mark.parametrize("first", [3.0, 90.0, 5000.0])
def test_the_highest_good_rate_is_found_from_below_and_from_above(first: float) -> None:
    found = saturate(lambda rate: made(rate, 1.0 if rate <= 100 else 0.5), first, repeats=3)
    assert 100 / 1.05 <= found.rate_per_s <= 100
    assert [one.rate_per_s for one in found.confirmed] == [found.rate_per_s] * 3


def test_ninety_nine_in_a_hundred_are_enough_and_fewer_are_not() -> None:
    assert saturate(lambda rate: made(rate, 0.99 if rate <= 50 else 0.9899), 20, 1).rate_per_s > 47


def test_a_rate_that_does_not_hold_again_is_left() -> None:
    tried = Counter[float]()

    def attempt(rate: float) -> Trial:
        tried[rate] += 1
        lucky = tried[rate] == 1 and rate <= 100  # the first time it goes well up to 100, later up to 80
        return made(rate, 1.0 if rate <= 80 or lucky else 0.0)

    found = saturate(attempt, 64, repeats=2)
    assert 80 / 1.05 <= found.rate_per_s <= 80
    assert len(found.confirmed) == 2


def test_a_service_that_is_never_good_has_no_rate() -> None:
    found = saturate(lambda rate: made(rate, 0.0), 100, repeats=1)
    assert (found.rate_per_s, found.confirmed) == (0.0, [])


def test_a_rate_that_nothing_bounds_is_none() -> None:
    with pytest.raises(BenchmarkError, match=r"12288\.0 requests/s were served well too, 4,096 times"):
        saturate(made, 3.0, repeats=1)


def test_the_knee_is_where_throughput_over_latency_is_highest() -> None:
    # Two servers of 10 ms each: up to two at a time nobody waits.
    trials = [
        dataclasses.replace(made(0), streams=n, images_per_s=100.0 * min(n, 2), p50_ms=10 * max(1, n / 2))
        for n in (1, 2, 4, 8)
    ]
    assert knee(trials).streams == 2


def test_shares_are_read_and_made_to_add_up() -> None:
    assert shares_of("search=3, embed=1") == {"search": 0.75, "embed": 0.25}
    for wrong in ("search", "search=x", "serch=1", "search=-1,embed=2", "embed=0"):
        with pytest.raises(BenchmarkError, match="a mix"):
            shares_of(wrong)


def test_a_mix_is_seeded_and_deletes_only_what_was_indexed() -> None:
    pictures = [Picture(f"a/{n}", "a", Path("x")) for n in range(7)]
    mix = Mix({"search": 0.4, "embed": 0.3, "index": 0.2, "delete": 0.1}, seed=3)
    asks = asks_of(mix, pictures, 2000)
    assert asks == asks_of(mix, pictures, 2000)
    assert asks != asks_of(dataclasses.replace(mix, seed=4), pictures, 2000)
    counts = Counter(ask.kind for ask in asks)
    assert counts["search"] == pytest.approx(800, abs=100)
    assert counts["delete"] == pytest.approx(200, abs=50)
    there = set()
    for ask in asks:
        if ask.kind == "index":
            assert ("domain", DOMAIN) in ask.params
            there.add(ask.pictures[0].id)
        elif ask.kind == "delete":
            there.remove(ask.pictures[0].id)


def test_hostile_bytes_are_never_the_same_and_friendly_ones_often(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"picture")
    pictures = [Picture(f"a/{n}", "a", tmp_path / "x") for n in range(5)]
    hostile = [read(ask)[0] for ask in asks_of(Mix({"embed": 1.0}), pictures, 100)]
    assert len(set(hostile)) == 100
    assert all(one.startswith(b"picture") for one in hostile)
    friendly = asks_of(Mix({"embed": 1.0}, cache="friendly"), pictures, 1000)
    often = Counter(ask.pictures[0].id for ask in friendly).most_common(1)[0][1]
    assert often > 300
    assert read(friendly[0]) == [b"picture"]


def test_pictures_of_a_phone_are_of_twelve_megapixels(octet: Dataset, tmp_path: Path) -> None:
    (one, *_) = pictures_of(dataclasses.replace(octet), "phone", tmp_path)[:1]
    with Image.open(one.file) as picture:
        assert sorted(picture.size) == [3024, 4032]
        assert picture.format == "JPEG"
    own = pictures_of(octet, "own", tmp_path)
    assert own[0].file == octet.image(next(octet.in_turn()))


def test_a_picture_that_was_half_written_has_another_name(
    octet: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first, *_) = pictures_of(octet, "uned", tmp_path / "whole")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            pictures_of(octet, "uned", tmp_path / "killed")
    assert not (tmp_path / "killed" / first.file.name).exists()
    (tmp_path / "killed" / f"{first.file.name}.new").write_bytes(b"half")
    (again, *_) = pictures_of(octet, "uned", tmp_path / "killed")
    assert again.file.read_bytes() == first.file.read_bytes()


def test_a_journal_repeats_nothing_and_is_not_another_searchs(tmp_path: Path) -> None:
    file = tmp_path / "trials.jsonl"
    asked = []

    def attempt(scenario: Scenario) -> Trial:
        asked.append(scenario.rate_per_s)
        return made(scenario.rate_per_s or 0)

    for rates in ([1.0, 2.0], [1.0, 2.0, 3.0]):
        journal = Journal(file)
        for rate in rates:
            assert journal.trial(at_rate(rate, 0), attempt).rate_per_s == rate
        with file.open("a") as stream:
            stream.write('{"rate_per_s": 4')  # killed while it wrote
    assert asked == [1.0, 2.0, 3.0]
    with pytest.raises(RunError, match="another search"):
        Journal(file).trial(at_rate(9.0, 0), attempt)
    file.write_text("{}\n")
    with pytest.raises(RunError, match="cannot be read"):
        Journal(file)


def bench(url: str, picture: Path, **changes: object) -> Bench:
    usual = {
        "target": Target("uie", url),
        "mix": Mix({"index": 0.5, "delete": 0.5}),
        "pictures": [Picture("a/0", "a", picture)],
        "seconds": 0.5,
        "slo_ms": 1000.0,
        "client": Client(warm_up=0),
    }
    return Bench(**{**usual, **changes})  # type: ignore[arg-type]


def test_what_a_trial_indexed_is_gone_after_it(tmp_path: Path) -> None:
    there = set[str]()

    async def handler(request: web.Request) -> web.Response:
        name = request.path.removeprefix("/v1/items/")
        await asyncio.sleep(0.01)
        if request.method == "PUT":
            there.add(name)
        else:
            there.discard(name)
        return web.json_response({})

    (tmp_path / "x").write_bytes(b"x")
    with stub(handler) as url:
        found = trial(
            bench(url, tmp_path / "x"), Scenario("ClosedLoop", streams=2), QUIET, tmp_path / "trials"
        )
    assert (found.good_share, found.failed) == (1.0, 0)
    assert found.requests > 2
    assert not there


def test_a_trial_that_cannot_be_cleaned_has_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def handler(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(0.02)
        last = request.path.endswith("/0")
        return web.json_response({}, status=500 if request.method == "DELETE" and last else 200)

    (tmp_path / "x").write_bytes(b"x")
    with stub(handler) as url:
        indexes = bench(url, tmp_path / "x", mix=Mix({"index": 1.0}))
        found = trial(indexes, Scenario("ClosedLoop", streams=2), QUIET, tmp_path / "trials")
    assert found.good_share == 1
    left = f"warning: 1 of {found.requests} pictures that the load indexed are still in {DOMAIN}: "
    assert capsys.readouterr().err.startswith(left)


def test_good_is_the_right_status_in_time(tmp_path: Path) -> None:
    observations = [
        seen("a/0", [], 0, 0.1),
        seen("a/1", [], 0, 0.3),
        seen("a/2", [], 0, 0.1, status=429),
        seen("a/3", [], 0, 0.1, status=500),
    ]
    found = figures(bench("", tmp_path, slo_ms=200.0), at_rate(4, 0), observations, [ClientUsage(1, 10)])
    assert (found.good_share, found.shed, found.failed) == (1 / 4, 1, 1)


def test_judge_reports_why_a_run_is_invalid() -> None:
    on_time = [seen(f"a/{n}", [], n, 0.1) for n in range(100)]
    assert judge(on_time, True, cache_expected=False, usage=[ClientUsage(5, 10)]) == Verdict([], [])
    late = [seen(f"a/{n}", [], n, 0.1, sent_s=n + 0.02) for n in range(100)]
    (why,) = judge(late, True, cache_expected=False, usage=[]).invalid_because
    assert "20.0 ms late" in why
    assert judge(late, False, cache_expected=False, usage=[]) == Verdict([], [])  # a closed loop has no times
    usage = [ClientUsage(2, 10), ClientUsage(9.5, 10)]
    (why,) = judge(on_time, True, cache_expected=False, usage=usage).invalid_because
    assert "used 95% of a core" in why
    cached = [seen("a/0", [], 0, 0.1, cache="hit"), seen("a/1", [], 0, 0.1, cache="miss")]
    (why,) = judge(cached, False, cache_expected=False, usage=[]).invalid_because
    assert why.startswith("1 answers came from the service's cache")
    assert judge(cached, False, cache_expected=True, usage=[]) == Verdict([], [])


def test_judge_leaves_what_is_too_short_unjudged() -> None:
    late = [seen(f"a/{n}", [], n, 0.1, sent_s=n + 0.02) for n in range(99)]
    brief = ClientUsage(cpu_s=0.04, wall_s=0.02)  # more than a core, over no time
    lag, share = judge(late, True, cache_expected=False, usage=[brief, brief]).not_judged
    assert lag == "the client's send lag: 99 requests are too few to judge, the minimum is 100"
    assert share == "the client's share of a core: 0.02 s is too short to judge, the minimum is 1 s"
    assert judge(late, True, cache_expected=False, usage=[brief]).invalid_because == []
    # One process, or one segment, that is long enough is judged.
    assert judge([], False, cache_expected=False, usage=[brief, ClientUsage(0.5, 1)]) == Verdict([], [])
    (why,) = judge([], False, cache_expected=False, usage=[brief, ClientUsage(0.91, 1)]).invalid_because
    assert "used 91% of a core" in why


def test_an_invalid_trial_is_no_figure(tmp_path: Path) -> None:
    async def handler(_: web.Request) -> web.Response:
        await asyncio.sleep(0.01)
        return web.json_response({"hits": []}, headers={"X-Cache": "hit"})

    (tmp_path / "x").write_bytes(b"x")
    with stub(handler) as url, pytest.raises(TargetError, match="came from the service's cache"):
        trial(
            bench(url, tmp_path / "x", mix=Mix({"search": 1.0})),
            Scenario("ClosedLoop"),
            QUIET,
            tmp_path / "trials",
        )
