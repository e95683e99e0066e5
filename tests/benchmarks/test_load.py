"""Loads against stub servers: each request is sent once and as scheduled, and failures are observed."""

import asyncio
import base64
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web

from benchmarks.errors import DataError, RunError, TargetError
from benchmarks.load.driver import Client, drive
from benchmarks.load.null_server import null_server
from benchmarks.load.requests import Load, LoadRequest, QueryImage, in_bulk
from benchmarks.load.scenarios import Scenario, scenario_row
from benchmarks.runs.run import Run
from benchmarks.targets.target import Target, target_row, vector_of
from tests.support.loads import NO_WARM_UP, QUIET, observed, searches
from tests.support.stub import stub

__all__ = ["searches"]  # a fixture

LIMIT_S = 300  # reached only if a test hangs


def ids_of(requests: list[LoadRequest]) -> list[str]:
    return [request.images[0].id for request in requests]


def test_poisson_arrivals_are_seeded_and_have_the_rate() -> None:
    times = scenario_row("Server", 1, 200.0, seed=7).times_s(20_000)
    assert times is not None
    for seed in (7, 8):
        other = Scenario("Server", rate_per_s=200.0, seed=seed).times_s(20_000)
        assert other is not None
        assert np.array_equal(times, other) == (seed == 7)
    gaps = np.diff(times)
    assert gaps.min() > 0
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 200, rel=0.05)  # an exponential distribution: deviation = mean
    assert scenario_row("SingleStream", 9, None, 0).times_s(3) is None


@pytest.mark.parametrize("processes", [1, 3])
def test_every_request_is_sent_once_by_any_number_of_processes(
    searches: list[LoadRequest], tmp_path: Path, processes: int
) -> None:
    with null_server() as url:
        load = Load(Target("uie", url), scenario_row("ClosedLoop", 8, None, 0), searches)
        observations = observed(load, tmp_path / "run", Client(processes, warm_up=9))
    assert sorted(observation.query_id for observation in observations) == ids_of(searches)
    assert {(observation.status, observation.kind, observation.error) for observation in observations} == {
        (200, "search", None)
    }
    for observation in observations:
        assert 0 <= observation.scheduled_s <= observation.sent_s <= observation.done_s


def test_a_closed_loop_has_as_many_requests_in_flight_as_streams(
    searches: list[LoadRequest], tmp_path: Path
) -> None:
    in_flight = most = 0
    reached = asyncio.Event()

    async def handler(_: web.Request) -> web.Response:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        if in_flight == 3:
            reached.set()
        async with asyncio.timeout(LIMIT_S):
            await reached.wait()
        await asyncio.sleep(0.005)
        in_flight -= 1
        return web.json_response({"hits": []})

    with stub(handler) as url:
        observed(Load(Target("uie", url), scenario_row("ClosedLoop", 3, None, 0), searches), tmp_path / "run")
    assert most == 3


def test_latency_counts_from_the_scheduled_time(searches: list[LoadRequest], tmp_path: Path) -> None:
    """The server takes 20 ms per request, without concurrency, and all arrive together: the n-th waits.

    A client that counts from the time of sending, and delays sending, would observe 20 ms.
    """
    lock = asyncio.Lock()

    async def handler(_: web.Request) -> web.Response:
        async with lock:
            await asyncio.sleep(0.02)
        return web.json_response({"hits": []})

    with stub(handler) as url:
        scenario = Scenario("Server", streams=0, rate_per_s=10_000, seed=0)
        observations = observed(Load(Target("uie", url), scenario, searches), tmp_path / "run")
    latencies_ms = sorted(observation.latency_ms for observation in observations)
    assert len(observations) == 40
    for nth, latency_ms in enumerate(latencies_ms):
        assert latency_ms >= 20 * (nth + 1) - 5  # all are scheduled within 4 ms


def test_multistream_sends_eight_and_waits_for_all(searches: list[LoadRequest], tmp_path: Path) -> None:
    with null_server() as url:
        observations = observed(
            Load(Target("uie", url), scenario_row("MultiStream", 1, None, 0), searches), tmp_path / "run"
        )
    groups = [
        list(group)
        for _, group in itertools.groupby(observations, key=lambda observation: observation.scheduled_s)
    ]
    assert [len(group) for group in groups] == [8] * 5
    for before, after in itertools.pairwise(groups):
        assert max(observation.done_s for observation in before) <= after[0].scheduled_s


async def length_of_body(request: web.Request) -> web.Response:
    """Respond with the vector (length of the image, 1)."""
    if request.content_type == "multipart/form-data":
        form = await request.post()
        fields = [field.file.read() for field in form.getall("image") if isinstance(field, web.FileField)]
        return web.json_response({"embedding": [len(fields[0]), 1]})
    body = await request.read()
    if request.content_type == "application/json":
        content = json.loads(body)
        data = [{"embedding": [len(content["input"][0]), 1]}]
        return web.json_response({"data": data, "model": content["model"]})
    return web.json_response({"out": {"v": [len(body), 1]}})


@pytest.mark.parametrize(
    ("target", "length"),
    [
        (("post", "", "raw", "out.v"), 12),
        (("post", "", "form:image", "embedding"), 12),
        (("post", "m", '{"input": ["{base64}"], "model": "{model}"}', "data.0.embedding"), 16),
        (("openai", "m", "raw", "embedding"), len("data:image/png;base64,") + 16),
    ],
)
def test_other_services_that_embed_images(
    searches: list[LoadRequest], tmp_path: Path, target: tuple[str, str, str, str], length: int
) -> None:
    kind, *rest = target
    embeds = [LoadRequest("embed", search.images) for search in searches[:3]]
    with stub(length_of_body) as url:
        row = target_row(kind, url, *rest)  # type: ignore[arg-type]
        observations = observed(Load(row, scenario_row("SingleStream", 1, None, 0), embeds), tmp_path / "run")
    wanted = np.asarray([length, 1], dtype="<f4").tobytes()
    assert [observation.embedding for observation in observations] == [base64.b64encode(wanted).decode()] * 3


def test_invalid_targets_are_refused(searches: list[LoadRequest], tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="not valid JSON"):
        target_row("post", "http://x", "", '{"image": {base64}}', "embedding")
    with pytest.raises(TargetError, match="neither raw"):
        target_row("post", "http://x", "", "multipart", "embedding")
    with pytest.raises(TargetError, match=r"no vector at a\.b"):
        vector_of(Target("post", "", vector="a.b"), {"a": []})
    with pytest.raises(TargetError, match="finite"):
        vector_of(Target("post", ""), {"embedding": [1, float("nan")]})
    with null_server() as url:
        load = Load(Target("post", url), Scenario("SingleStream"), searches)
        with pytest.raises(TargetError, match="not search"):
            observed(load, tmp_path / "run")
        other = Target("post", url, vector="x")
        load = Load(other, Scenario("SingleStream"), [LoadRequest("embed", searches[0].images)])
        with pytest.raises(TargetError, match=r"warm-up.*no vector at x"):
            observed(load, tmp_path / "run", Client(warm_up=1))


def test_each_image_of_a_bulk_request_has_an_outcome(searches: list[LoadRequest], tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.Response:
        assert len((await request.post()).getall("images")) == 3
        error = {"error": {"status": 400, "detail": "no image"}}
        return web.json_response({"results": [{"embedding": [1, 0]}, error, {"embedding": [0, 1]}]})

    bulk = in_bulk([search.images[0] for search in searches[:6]], 3)
    with stub(handler) as url:
        observations = observed(
            Load(Target("uie", url), scenario_row("Offline", 1, None, 0), bulk), tmp_path / "run"
        )
    assert [(observation.status, observation.error) for observation in observations] == [
        (200, None),
        (400, "no image"),
        (200, None),
    ] * 2


def test_error_responses_are_observed(searches: list[LoadRequest], tmp_path: Path) -> None:
    responses = iter([(200, '{"hits": [{"id": "a/1"}]}'), (429, '{"detail": "full"}'), (500, "Server Error")])

    async def handler(_: web.Request) -> web.Response:
        status, text = next(responses)
        return web.Response(status=status, text=text)

    with stub(handler) as url:
        observations = observed(
            Load(Target("uie", url), Scenario("SingleStream"), searches[:3]), tmp_path / "run"
        )
    assert [(observation.status, observation.hit_ids, observation.error) for observation in observations] == [
        (200, ["a/1"], None),
        (429, [], "status 429: full"),
        (500, [], "status 500: Server Error"),
    ]


def test_a_full_disk_and_a_missing_image_are_reported(searches: list[LoadRequest], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "observations-000-00.jsonl").symlink_to("/dev/full")
    with null_server() as url:
        load = Load(Target("uie", url), scenario_row("ClosedLoop", 2, None, 0), searches)
        with pytest.raises(RunError, match="No space left on device"):
            drive(load, NO_WARM_UP, tmp_path / "run", 0, "", QUIET)
        (tmp_path / "run" / "observations-000-00.jsonl").unlink()  # reading /dev/full never ends
        missing = LoadRequest("search", (QueryImage("a/99", "a", tmp_path / "missing.png"),))
        load = Load(Target("uie", url), scenario_row("ClosedLoop", 1, None, 0), [*searches, missing])
        with pytest.raises(DataError, match=r"missing\.png cannot be read"):
            drive(load, NO_WARM_UP, tmp_path / "run", 1, "", QUIET)
    assert [observation.query_id for observation in Run(tmp_path / "run").observations()] == ids_of(searches)


@pytest.mark.integration  # ten seconds without a response
def test_an_unreachable_service_ends_the_run_and_observations_are_kept(
    searches: list[LoadRequest], tmp_path: Path
) -> None:
    died = False
    requests = [*searches[:5], LoadRequest("search", searches[5].images, (("q", "die"),)), *searches[6:]]

    async def handler(request: web.Request) -> web.Response:
        nonlocal died
        died = died or "q" in request.query
        if died:
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"hits": []})

    with stub(handler) as url, pytest.raises(TargetError, match="unreachable"):
        observed(Load(Target("uie", url), Scenario("SingleStream"), requests * 3), tmp_path / "run")
    observations = Run(tmp_path / "run").observations()
    assert [observation.status for observation in observations[:5]] == [200] * 5
    assert {observation.status for observation in observations[5:]} == {0}
