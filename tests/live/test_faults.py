"""Broken requests among valid ones, at concurrency 32: failures are isolated.

`python -m benchmarks soak` sends more of them and observes memory.
"""

import asyncio
from collections.abc import Iterator
from contextlib import closing

import httpx
import psutil
import pytest

from benchmarks.soak.faults import MAX_BYTES_IN_FLIGHT, faults, narrow_service
from benchmarks.soak.soak import rss_mb
from benchmarks.soak.traffic import Outcome, send_all
from benchmarks.targets.process import ServiceProcess
from tests.support.live import connected, queue_is_empty
from tests.support.waiting import LIMIT_S, wait_until

REQUESTS = 1000


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with narrow_service(tmp_path_factory.mktemp("faults")) as service:
        yield service


def test_every_response_is_the_same_as_without_other_requests(narrow: ServiceProcess) -> None:
    outcomes: list[Outcome] = []
    asyncio.run(send_all(narrow.url, REQUESTS, 32, outcomes.append))
    assert len(outcomes) == REQUESTS
    assert not [f"{outcome.row.name}: {outcome.wrong}" for outcome in outcomes if outcome.wrong]
    sent = {outcome.row.name for outcome in outcomes}
    assert sent >= {row.name for row in faults()}
    assert len([name for name in sent if name.startswith("valid")]) == 5
    _nothing_is_left(narrow)


def test_requests_leak_no_memory(narrow: ServiceProcess) -> None:
    process = psutil.Process(narrow.pid)
    with httpx.Client(base_url=narrow.url, timeout=LIMIT_S) as client:
        for _ in range(500):
            client.get("/livez")
        before_mb = rss_mb(process)
        for _ in range(3000):
            client.get("/livez")
        assert rss_mb(process) - before_mb < 3  # a leak of 1 KB per request would exceed it


def _nothing_is_left(service: ServiceProcess) -> None:
    with httpx.Client(base_url=service.url, timeout=LIMIT_S) as client:
        wait_until(lambda: queue_is_empty(client))  # images of disconnected clients leave it a little later
        assert client.get("/readyz").status_code == 200
    # A body of all bytes that may be in flight: 429 if one byte were still reserved, but 413 by its size.
    with closing(connected(service)) as connection:
        head = f"POST /v1/embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MAX_BYTES_IN_FLIGHT}\r\n"
        connection.sendall(f"{head}Content-Type: image/png\r\n\r\n".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")
    log = service.log.read_text()
    assert not [line for line in log.splitlines() if "Traceback" in line or "[ERROR]" in line]
