"""Loads with few streams, unexpected responses or dropped requests: nothing is lost or ends too early."""

from pathlib import Path

from aiohttp import web

from benchmarks.load.driver import Client
from benchmarks.load.null_server import null_server
from benchmarks.load.requests import Load, LoadRequest, in_bulk
from benchmarks.load.scenarios import Scenario, scenario_row
from benchmarks.runs.run import Run
from benchmarks.targets.target import Target
from tests.support.loads import observed, searches
from tests.support.stub import stub

__all__ = ["searches"]  # a fixture


def test_no_process_is_without_a_stream(searches: list[LoadRequest], tmp_path: Path) -> None:
    """Its share of the requests would never be sent."""
    with null_server() as url:
        load = Load(Target("uie", url), scenario_row("SingleStream", 1, None, 0), searches)
        observations = observed(load, tmp_path / "run", Client(processes=3, warm_up=0))
    assert len(observations) == 40
    assert len(Run(tmp_path / "run").client_usage()) == 1


def test_the_warm_up_sends_other_bytes_and_changes_nothing(
    searches: list[LoadRequest], tmp_path: Path
) -> None:
    bodies = list[bytes]()
    methods = set[str]()

    async def handler(request: web.Request) -> web.Response:
        bodies.append(await request.read())
        methods.add(request.method)
        return web.json_response({"hits": []})

    salted = [LoadRequest("search", search.images, salt=n) for n, search in enumerate(searches)]
    with stub(handler) as url:
        load = Load(Target("uie", url), scenario_row("SingleStream", 1, None, 0), salted)
        observed(load, tmp_path / "run", Client(warm_up=10))
        assert len(set(bodies)) == len(bodies) == 50
        observed(load, tmp_path / "again", Client(warm_up=10))  # another process has another nonce
        assert len(set(bodies)) == len(bodies) == 100
        deletes = [LoadRequest("delete", search.images) for search in searches[:3]]
        observed(
            Load(Target("uie", url), Scenario("SingleStream"), deletes),
            tmp_path / "deletes",
            Client(warm_up=3),
        )
    assert len(bodies) == 103
    assert methods == {"POST", "DELETE"}


def test_an_unexpected_body_is_a_failure_and_the_run_continues(
    searches: list[LoadRequest], tmp_path: Path
) -> None:
    bodies = iter(['{"hits": null}', '{"hits": [{"id": "a/1"}]}', "[]", '{"hits": []}'])
    timing = 'db;desc="a, b";dur=5, cache;desc=x, decode;dur=1.5;desc="y", total;dur=7'

    async def handler(_: web.Request) -> web.Response:
        return web.Response(text=next(bodies), headers={"Server-Timing": timing})

    with stub(handler) as url:
        observations = observed(
            Load(Target("uie", url), Scenario("SingleStream"), searches[:4]), tmp_path / "run"
        )
    assert [observation.status for observation in observations] == [0, 200, 0, 200]
    assert "not a valid search response" in str(observations[0].error)
    assert observations[1].server_ms["decode"] == 1.5
    assert observations[1].server_ms["total"] == 7


def test_a_bulk_response_of_another_length_is_a_failure(searches: list[LoadRequest], tmp_path: Path) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response({"results": [{"embedding": [1, 0]}]})

    bulk = in_bulk([search.images[0] for search in searches[:3]], 3)
    with stub(handler) as url:
        observations = observed(
            Load(Target("uie", url), scenario_row("Offline", 1, None, 0), bulk), tmp_path / "run"
        )
    assert [observation.status for observation in observations] == [0, 0, 0]


def test_a_single_dropped_request_does_not_end_the_run(searches: list[LoadRequest], tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.Response:
        if request.query.get("q") == "drop":
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"hits": []})

    requests = [*searches[:2], LoadRequest("search", searches[2].images, (("q", "drop"),)), *searches[3:5]]
    with stub(handler) as url:
        observations = observed(
            Load(Target("uie", url), Scenario("SingleStream"), requests), tmp_path / "run"
        )
    assert [observation.status for observation in observations] == [200, 200, 0, 200, 200]


def test_numbers_too_large_and_json_too_deep_are_failures(
    searches: list[LoadRequest], tmp_path: Path
) -> None:
    """Python parses JSON of greater depth than it can print, so depths around the limit are tried."""
    depths = range(940, 1010)
    huge = f'{{"embedding": [1{"0" * 400}]}}'
    bodies = [huge, "[" * 200_000, '{"embedding": [1, 2]}', *("[" * n + "]" * n for n in depths)]
    responses = iter([(200, body) for body in bodies] + [(500, "[" * n + "]" * n) for n in depths])

    async def handler(_: web.Request) -> web.Response:
        status, text = next(responses)
        return web.Response(status=status, text=text)

    embeds = [LoadRequest("embed", searches[0].images)] * (len(bodies) + len(depths))
    with stub(handler) as url:
        observations = observed(Load(Target("post", url), Scenario("SingleStream"), embeds), tmp_path / "run")
    assert [observation.status for observation in observations] == [
        0,
        0,
        200,
        *[0] * len(depths),
        *[500] * len(depths),
    ]
    assert all(observation.error for observation in observations if observation.status != 200)
    assert "no vector at embedding" in str(observations[0].error)


def test_a_bulk_status_that_is_not_a_number_is_a_failure(searches: list[LoadRequest], tmp_path: Path) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(text='{"results": [{"error": {"status": 1e999, "detail": "x"}}]}')

    bulk = in_bulk([searches[0].images[0]], 1)
    with stub(handler) as url:
        load = Load(Target("uie", url), Scenario("Offline"), bulk)
        assert [observation.status for observation in observed(load, tmp_path / "run")] == [0]
