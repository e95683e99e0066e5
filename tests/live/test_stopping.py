"""SIGTERM: what is in flight is answered, what comes later is refused, nothing is cut off or lost."""

import asyncio
import signal
from collections import Counter
from contextlib import closing
from pathlib import Path

import httpx
import psutil

from benchmarks.targets.process import ServiceProcess, running_service
from service.client import Client
from tests.support.live import NAME, PNG, answer, begun, metric, problem_of
from tests.support.pictures import encode, noise

REQUESTS = 40


async def outcome(client: httpx.AsyncClient, number: int, picture: bytes) -> int:
    """200 or a 503 that says why; anything else, a closed connection among it, is an error."""
    response = await client.put(f"/v1/items/{number}?domain=d&label=l", content=picture, headers=PNG)
    if response.status_code != 200:
        assert problem_of(response) == (503, "not-ready")
        assert response.headers["connection"] == "close"
    return response.status_code


async def interrupted(service: ServiceProcess, requests: int) -> list[int]:
    """The outcome of requests that were sent together, some of them not yet read when SIGTERM comes."""
    pictures = [encode(noise(seed, 300, 300)) for seed in range(requests)]
    limits = httpx.Limits(max_connections=requests)
    async with httpx.AsyncClient(base_url=service.url, timeout=60, limits=limits) as client:
        sent = [asyncio.create_task(outcome(client, *each)) for each in enumerate(pictures)]
        await asyncio.wait(sent, return_when=asyncio.FIRST_COMPLETED)
        psutil.Process(service.pid).send_signal(signal.SIGTERM)
        return await asyncio.gather(*sent)


def test_a_stop_answers_everybody_and_keeps_what_it_took(tmp_path: Path) -> None:
    index = str(tmp_path / "index")
    with running_service(tmp_path / "log", data_dir=index) as service:
        statuses = asyncio.run(interrupted(service, REQUESTS))
        assert psutil.Process(service.pid).wait(60) == 0
    assert set(statuses) <= {200, 503}
    with (
        running_service(tmp_path / "log", data_dir=index) as service,
        httpx.Client(base_url=service.url, timeout=60) as client,
    ):
        kept = [client.get(f"/v1/items/{number}").status_code for number in range(REQUESTS)]
    taken = [200 if status == 200 else 404 for status in statuses]
    assert Counter(kept)[200] > 1
    assert kept == taken


def test_who_does_not_end_is_not_waited_for(tmp_path: Path) -> None:
    index = str(tmp_path / "index")
    with running_service(tmp_path / "log", data_dir=index, stop_timeout_s="1") as service:
        with closing(begun(service, 1000, b"x")) as connection:
            psutil.Process(service.pid).send_signal(signal.SIGTERM)
            assert answer(connection).startswith(b"HTTP/1.1 500 ")  # uvicorn's own
        assert psutil.Process(service.pid).wait(30) == 0


def test_a_worker_that_dies_comes_back_with_what_it_had_taken(tmp_path: Path) -> None:
    with (
        running_service(tmp_path / "log", data_dir=str(tmp_path / "index")) as service,
        Client(service.url, timeout_s=60) as client,
    ):
        picture = encode(noise(1))
        assert client.put("a", picture, "d", "l")
        [worker] = [one for one in psutil.Process(service.pid).children(recursive=True) if is_worker(one)]
        asyncio.run(killed_at_work(worker, service.url))
        # The supervisor holds the socket: who connects now waits for the next worker.
        with httpx.Client(base_url=service.url, timeout=60) as patient:
            assert patient.get("/livez").status_code == 200
            assert metric(patient, f'uie_queue_depth_images{{model="{NAME}"}}') == 0
        [hit] = client.search(picture).hits
        assert hit.id == "a"


async def killed_at_work(worker: psutil.Process, url: str) -> None:
    """With images in flight."""
    pictures = [encode(noise(seed, 300, 300)) for seed in range(REQUESTS)]
    limits = httpx.Limits(max_connections=REQUESTS)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        sent = [asyncio.create_task(client.post("/v1/embed", content=one, headers=PNG)) for one in pictures]
        await asyncio.wait(sent, return_when=asyncio.FIRST_COMPLETED)
        worker.kill()
        worker.wait(20)
        lost = [
            one for one in await asyncio.gather(*sent, return_exceptions=True) if isinstance(one, Exception)
        ]
    assert lost


def is_worker(process: psutil.Process) -> bool:
    return "_bentoml_impl.worker.service" in process.cmdline()
