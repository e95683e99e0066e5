"""The load's client where processes, streams or services are odd: nothing is lost, nothing ends too early."""

from pathlib import Path

from aiohttp import web

from benchmarks.load.driver import Client, Load
from benchmarks.load.null_server import null_server
from benchmarks.load.requests import Ask, in_bulk
from benchmarks.load.scenarios import Scenario, scenario_row
from benchmarks.runs.run import Run
from benchmarks.targets.target import Target
from tests.benchmarks.test_load import asks, sent
from tests.support.stub import stub

__all__ = ["asks"]  # a fixture


def test_no_process_is_left_without_a_stream(asks: list[Ask], tmp_path: Path) -> None:
    """Its share of the requests would never be sent."""
    with null_server() as url:
        load = Load(Target("uie", url), scenario_row("SingleStream", 1, None, 0), asks)
        seen = sent(load, tmp_path / "run", Client(processes=3, warm_up=0))
    assert len(seen) == 40
    assert len(Run(tmp_path / "run").client_usage()) == 1


def test_the_warm_up_is_of_other_bytes_and_changes_nothing(asks: list[Ask], tmp_path: Path) -> None:
    bodies = list[bytes]()
    methods = set[str]()

    async def handler(request: web.Request) -> web.Response:
        bodies.append(await request.read())
        methods.add(request.method)
        return web.json_response({"hits": []})

    salted = [Ask("search", ask.pictures, salt=n) for n, ask in enumerate(asks)]
    with stub(handler) as url:
        load = Load(Target("uie", url), scenario_row("SingleStream", 1, None, 0), salted)
        sent(load, tmp_path / "run", Client(warm_up=10))
        assert len(set(bodies)) == len(bodies) == 50
        sent(load, tmp_path / "again", Client(warm_up=10))  # another process: other bytes again
        assert len(set(bodies)) == len(bodies) == 100
        deletes = [Ask("delete", ask.pictures) for ask in asks[:3]]
        sent(
            Load(Target("uie", url), Scenario("SingleStream"), deletes), tmp_path / "third", Client(warm_up=3)
        )
    assert len(bodies) == 103
    assert methods == {"POST", "DELETE"}


def test_an_answer_that_is_none_is_a_failure_and_the_run_goes_on(asks: list[Ask], tmp_path: Path) -> None:
    answers = iter(['{"hits": null}', '{"hits": [{"id": "a/1"}]}', "[]", '{"hits": []}'])
    timing = 'db;desc="a, b";dur=5, cache;desc=x, decode;dur=1.5;desc="y", total;dur=7'

    async def handler(_: web.Request) -> web.Response:
        return web.Response(text=next(answers), headers={"Server-Timing": timing})

    with stub(handler) as url:
        seen = sent(Load(Target("uie", url), Scenario("SingleStream"), asks[:4]), tmp_path / "run")
    assert [one.status for one in seen] == [0, 200, 0, 200]
    assert "not that of a search" in str(seen[0].error)
    assert seen[1].server_ms["decode"] == 1.5
    assert seen[1].server_ms["total"] == 7


def test_a_bulk_answer_of_another_length_is_a_failure(asks: list[Ask], tmp_path: Path) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response({"results": [{"embedding": [1, 0]}]})

    bulk = in_bulk([ask.pictures[0] for ask in asks[:3]], 3)
    with stub(handler) as url:
        seen = sent(Load(Target("uie", url), scenario_row("Offline", 1, None, 0), bulk), tmp_path / "run")
    assert [one.status for one in seen] == [0, 0, 0]


def test_one_request_that_is_dropped_is_not_the_services_end(asks: list[Ask], tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.Response:
        if request.query.get("q") == "drop":
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"hits": []})

    some = [*asks[:2], Ask("search", asks[2].pictures, (("q", "drop"),)), *asks[3:5]]
    with stub(handler) as url:
        seen = sent(Load(Target("uie", url), Scenario("SingleStream"), some), tmp_path / "run")
    assert [one.status for one in seen] == [200, 200, 0, 200, 200]


def test_numbers_too_large_and_json_too_deep_are_failures(asks: list[Ask], tmp_path: Path) -> None:
    """Python reads JSON a little deeper than it writes it, so every depth about its limit is tried."""
    depths = range(940, 1010)
    huge = f'{{"embedding": [1{"0" * 400}]}}'
    answers = [huge, "[" * 200_000, '{"embedding": [1, 2]}', *("[" * n + "]" * n for n in depths)]
    coming = iter([(200, one) for one in answers] + [(500, "[" * n + "]" * n) for n in depths])

    async def handler(_: web.Request) -> web.Response:
        status, text = next(coming)
        return web.Response(status=status, text=text)

    embeds = [Ask("embed", asks[0].pictures)] * (len(answers) + len(depths))
    with stub(handler) as url:
        seen = sent(Load(Target("post", url), Scenario("SingleStream"), embeds), tmp_path / "run")
    assert [one.status for one in seen] == [0, 0, 200, *[0] * len(depths), *[500] * len(depths)]
    assert all(one.error for one in seen if one.status != 200)
    assert "no vector at embedding" in str(seen[0].error)


def test_a_bulk_status_that_is_no_number_is_a_failure(asks: list[Ask], tmp_path: Path) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(text='{"results": [{"error": {"status": 1e999, "detail": "x"}}]}')

    bulk = in_bulk([asks[0].pictures[0]], 1)
    with stub(handler) as url:
        load = Load(Target("uie", url), Scenario("Offline"), [Ask("bulk", one.pictures) for one in bulk])
        assert [one.status for one in sent(load, tmp_path / "run")] == [0]
