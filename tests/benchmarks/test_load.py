"""Load against servers that can be checked by hand: every request once, on time, and nothing hidden."""

import asyncio
import base64
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web
from rich.console import Console

from benchmarks.errors import DataError, RunError, TargetError
from benchmarks.load.driver import Client, Load, drive
from benchmarks.load.null_server import null_server
from benchmarks.load.requests import Ask, Picture, in_bulk
from benchmarks.load.scenarios import Scenario, scenario_row
from benchmarks.runs.run import Observation, Run
from benchmarks.targets.target import Target, target_row, vector_of
from tests.support.stub import stub

QUIET = Console(quiet=True)
COLD = Client(warm_up=0)


@pytest.fixture
def asks(tmp_path: Path) -> list[Ask]:
    """Forty searches."""
    (tmp_path / "x.png").write_bytes(b"\x89PNG picture")
    return [Ask("search", (Picture(f"a/{n:02d}", "a", tmp_path / "x.png"),)) for n in range(40)]


def sent(load: Load, folder: Path, client: Client = COLD) -> list[Observation]:
    folder.mkdir(exist_ok=True)
    drive(load, client, folder, 0, "", QUIET)
    return Run(folder).observations()


def test_poisson_arrivals_are_seeded_and_of_their_rate() -> None:
    times = scenario_row("Server", 1, 200.0, seed=7).times_s(20_000)
    assert times is not None
    for seed in (7, 8):
        other = Scenario("Server", rate_per_s=200.0, seed=seed).times_s(20_000)
        assert other is not None
        assert np.array_equal(times, other) == (seed == 7)
    gaps = np.diff(times)
    assert gaps.min() > 0
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 200, rel=0.05)  # of an exponential, the deviation is the mean
    assert scenario_row("SingleStream", 9, None, 0).times_s(3) is None


@pytest.mark.parametrize("processes", [1, 3])
def test_every_request_is_sent_once_from_however_many_processes(
    asks: list[Ask], tmp_path: Path, processes: int
) -> None:
    with null_server() as url:
        load = Load(Target("uie", url), scenario_row("ClosedLoop", 8, None, 0), asks)
        seen = sent(load, tmp_path / "run", Client(processes, warm_up=9))
    assert sorted(one.query_id for one in seen) == [ask.pictures[0].id for ask in asks]
    assert {(one.status, one.kind, one.error) for one in seen} == {(200, "search", None)}
    for one in seen:
        assert 0 <= one.scheduled_s <= one.sent_s <= one.done_s


def test_a_closed_loop_has_as_many_requests_in_flight_as_streams(asks: list[Ask], tmp_path: Path) -> None:
    now = most = 0

    async def handler(_: web.Request) -> web.Response:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.005)
        now -= 1
        return web.json_response({"hits": []})

    with stub(handler) as url:
        sent(Load(Target("uie", url), scenario_row("ClosedLoop", 3, None, 0), asks), tmp_path / "run")
    assert most == 3


def test_latency_counts_from_the_scheduled_time(asks: list[Ask], tmp_path: Path) -> None:
    """One at a time, 20 ms each, while all arrive at once: the n-th waits for those before it.

    A client that counted from when the server was free, or that waited to send, would see 20 ms.
    """
    turn = asyncio.Lock()

    async def handler(_: web.Request) -> web.Response:
        async with turn:
            await asyncio.sleep(0.02)
        return web.json_response({"hits": []})

    with stub(handler) as url:
        scenario = Scenario("Server", streams=0, rate_per_s=10_000, seed=0)
        seen = sent(Load(Target("uie", url), scenario, asks), tmp_path / "run")
    latencies = sorted(one.latency_ms for one in seen)
    assert len(seen) == 40
    for nth, latency_ms in enumerate(latencies):
        assert latency_ms >= 20 * (nth + 1) - 5  # less than the arrivals' own spread, 4 ms


def test_multistream_sends_eight_and_waits_for_all(asks: list[Ask], tmp_path: Path) -> None:
    with null_server(delay_ms=5) as url:
        seen = sent(Load(Target("uie", url), scenario_row("MultiStream", 1, None, 0), asks), tmp_path / "run")
    groups = [list(some) for _, some in itertools.groupby(seen, key=lambda one: one.scheduled_s)]
    assert [len(group) for group in groups] == [8] * 5
    for before, after in itertools.pairwise(groups):
        assert max(one.done_s for one in before) <= after[0].scheduled_s


async def told(request: web.Request) -> web.Response:
    """The vector of what came: its length, then 1."""
    if request.content_type == "multipart/form-data":
        form = await request.post()
        fields = [field.file.read() for field in form.getall("picture") if isinstance(field, web.FileField)]
        return web.json_response({"embedding": [len(fields[0]), 1]})
    body = await request.read()
    if request.content_type == "application/json":
        said = json.loads(body)
        return web.json_response(
            {"data": [{"embedding": [len(said["input"][0]), 1]}], "model": said["model"]}
        )
    return web.json_response({"out": {"v": [len(body), 1]}})


@pytest.mark.parametrize(
    ("target", "length"),
    [
        (("post", "", "raw", "out.v"), 12),
        (("post", "", "form:picture", "embedding"), 12),
        (("post", "m", '{"input": ["{base64}"], "model": "{model}"}', "data.0.embedding"), 16),
        (("openai", "m", "raw", "embedding"), len("data:image/png;base64,") + 16),
    ],
)
def test_any_service_that_takes_a_picture(
    asks: list[Ask], tmp_path: Path, target: tuple[str, str, str, str], length: int
) -> None:
    kind, *rest = target
    embeds = [Ask("embed", ask.pictures) for ask in asks[:3]]
    with stub(told) as url:
        row = target_row(kind, url, *rest)  # type: ignore[arg-type]
        seen = sent(Load(row, scenario_row("SingleStream", 1, None, 0), embeds), tmp_path / "run")
    wanted = np.asarray([length, 1], dtype="<f4").tobytes()
    assert [one.embedding for one in seen] == [base64.b64encode(wanted).decode()] * 3


def test_what_a_target_cannot_do_is_said(asks: list[Ask], tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="no JSON"):
        target_row("post", "http://x", "", '{"image": {base64}}', "embedding")
    with pytest.raises(TargetError, match="neither raw"):
        target_row("post", "http://x", "", "multipart", "embedding")
    with pytest.raises(TargetError, match=r"no vector at a\.b"):
        vector_of(Target("post", "", vector="a.b"), {"a": []})
    with pytest.raises(TargetError, match="finite"):
        vector_of(Target("post", ""), {"embedding": [1, float("nan")]})
    with null_server() as url:
        load = Load(Target("post", url), Scenario("SingleStream"), asks)
        with pytest.raises(TargetError, match="not to search"):
            sent(load, tmp_path / "run")
        elsewhere = Target("post", url, vector="x")
        load = Load(elsewhere, Scenario("SingleStream"), [Ask("embed", asks[0].pictures)])
        with pytest.raises(TargetError, match=r"no request of the warm-up went well.*no vector at x"):
            sent(load, tmp_path / "run", Client(warm_up=1))


def test_of_a_bulk_request_each_picture_has_its_own_outcome(asks: list[Ask], tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.Response:
        assert len((await request.post()).getall("images")) == 3
        broken = {"error": {"status": 400, "detail": "no image"}}
        return web.json_response({"results": [{"embedding": [1, 0]}, broken, {"embedding": [0, 1]}]})

    bulk = in_bulk([ask.pictures[0] for ask in asks[:6]], 3)
    with stub(handler) as url:
        seen = sent(Load(Target("uie", url), scenario_row("Offline", 1, None, 0), bulk), tmp_path / "run")
    assert [(one.status, one.error) for one in seen] == [(200, None), (400, "no image"), (200, None)] * 2


def test_errors_are_observed_as_they_are(asks: list[Ask], tmp_path: Path) -> None:
    turns = iter([(200, '{"hits": [{"id": "a/1"}]}'), (429, '{"detail": "full"}'), (500, "Server Error")])

    async def handler(_: web.Request) -> web.Response:
        status, text = next(turns)
        return web.Response(status=status, text=text)

    with stub(handler) as url:
        seen = sent(Load(Target("uie", url), Scenario("SingleStream"), asks[:3]), tmp_path / "run")
    assert [(one.status, one.hit_ids, one.error) for one in seen] == [
        (200, ["a/1"], None),
        (429, [], "status 429: full"),
        (500, [], "status 500: Server Error"),
    ]


def test_a_full_disk_and_a_missing_picture_are_sentences(asks: list[Ask], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "observations-000-00.jsonl").symlink_to("/dev/full")
    with null_server() as url:
        load = Load(Target("uie", url), scenario_row("ClosedLoop", 2, None, 0), asks)
        with pytest.raises(RunError, match="No space left on device; the run is kept"):
            drive(load, COLD, tmp_path / "run", 0, "", QUIET)
        (tmp_path / "run" / "observations-000-00.jsonl").unlink()  # to read it would never end
        gone = Ask("search", (Picture("a/99", "a", tmp_path / "gone.png"),))
        load = Load(Target("uie", url), scenario_row("ClosedLoop", 1, None, 0), [*asks, gone])
        with pytest.raises(DataError, match=r"gone\.png cannot be read"):
            drive(load, COLD, tmp_path / "run", 1, "", QUIET)
    kept = [one.query_id for one in Run(tmp_path / "run").observations()]
    assert kept == [ask.pictures[0].id for ask in asks]


def test_a_service_that_dies_ends_the_run_and_the_rest_is_kept(asks: list[Ask], tmp_path: Path) -> None:
    died = False
    named = [Ask("search", ask.pictures, (("q", ask.pictures[0].id.replace("/", "")),)) for ask in asks]
    named[5] = Ask("search", asks[5].pictures, (("q", "die"),))

    async def by_name(request: web.Request) -> web.Response:
        nonlocal died
        if died or request.query["q"] == "die":
            died = True
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"hits": []})

    with stub(by_name) as url, pytest.raises(TargetError, match="the service is gone"):
        sent(Load(Target("uie", url), Scenario("SingleStream"), named * 3), tmp_path / "run")
    seen = Run(tmp_path / "run").observations()
    assert [one.status for one in seen[:5]] == [200] * 5
    assert {one.status for one in seen[5:]} == {0}
