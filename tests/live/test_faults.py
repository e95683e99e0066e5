"""Broken requests among good ones, at concurrency 32: nobody's harm is anybody else's.

`python -m benchmarks soak` sends more of the same, and looks at the memory.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing

import httpx
import psutil
import pytest

from benchmarks.soak.faults import MAX_BYTES_IN_FLIGHT, faults, narrow_service
from benchmarks.soak.soak import rss_mb
from benchmarks.soak.traffic import Outcome, send_all
from benchmarks.targets.process import ServiceProcess
from tests.support.live import NAME, begun

REQUESTS = 1000


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with narrow_service(tmp_path_factory.mktemp("faults")) as service:
        yield service


def test_every_request_is_answered_as_if_it_were_alone(narrow: ServiceProcess) -> None:
    outcomes: list[Outcome] = []
    asyncio.run(send_all(narrow.url, REQUESTS, 32, outcomes.append))
    assert len(outcomes) == REQUESTS
    assert not [f"{outcome.row.name}: {outcome.wrong}" for outcome in outcomes if outcome.wrong]
    sent = {outcome.row.name for outcome in outcomes}
    assert sent >= {row.name for row in faults()}
    assert len([name for name in sent if name.startswith("valid")]) == 3
    _nothing_is_left(narrow)


def test_a_request_leaves_no_memory_behind(narrow: ServiceProcess) -> None:
    process = psutil.Process(narrow.pid)
    with httpx.Client(base_url=narrow.url, timeout=60) as client:
        for _ in range(500):
            client.get("/livez")
        before_mb = rss_mb(process)
        for _ in range(3000):
            client.get("/livez")
        assert rss_mb(process) - before_mb < 3  # a KB each: it was 3.6


def _nothing_is_left(service: ServiceProcess) -> None:
    with httpx.Client(base_url=service.url, timeout=60) as client:
        ends = time.monotonic() + 20
        # The last clients have gone; their images take a moment longer.
        while f'uie_queue_depth_images{{model="{NAME}"}} 0.0' not in client.get("/metrics").text:
            assert time.monotonic() < ends
            time.sleep(0.05)
        assert client.get("/readyz").status_code == 200
    # All the room there is: were one byte still held for somebody, this would be 429.
    with closing(begun(service, MAX_BYTES_IN_FLIGHT)) as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")
    log = service.log.read_text()
    assert not [line for line in log.splitlines() if "Traceback" in line or "[ERROR]" in line]
