"""SIGTERM: requests in flight are answered, later ones refused, and no item is lost."""

import asyncio
import random
import re
import resource
import signal
from collections import Counter
from contextlib import closing
from pathlib import Path

import httpx
import psutil

from benchmarks.targets.process import ServiceProcess, running_service
from service.client import Client
from tests.support.images import encode, noise
from tests.support.live import NAME, PNG, begun, metric, problem_of, received
from tests.support.waiting import LIMIT_S, until, wait_until

REQUESTS = 40
FORM = "Content-Type: multipart/form-data; boundary=x\r\n"


def client_of(url: str) -> httpx.AsyncClient:
    """A client with a connection for each request."""
    limits = httpx.Limits(max_connections=REQUESTS)
    return httpx.AsyncClient(base_url=url, timeout=LIMIT_S, limits=limits)


async def put(client: httpx.AsyncClient, number: int, image: bytes) -> int:
    """The status of a put: 200, or 503 with a problem. A closed connection raises an error."""
    response = await client.put(f"/v1/items/{number}?domain=d&label=l", content=image, headers=PNG)
    if response.status_code != 200:
        assert problem_of(response) == (503, "not-ready")
        assert response.headers["connection"] == "close"
    return response.status_code


async def put_and_stop(service: ServiceProcess) -> list[int]:
    """The statuses of requests sent together; SIGTERM comes after the first response."""
    images = [encode(noise(seed, 300, 300)) for seed in range(REQUESTS)]
    async with client_of(service.url) as client:
        tasks = [asyncio.create_task(put(client, *numbered)) for numbered in enumerate(images)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        psutil.Process(service.pid).send_signal(signal.SIGTERM)
        return await asyncio.gather(*tasks)


def test_a_stop_answers_every_request_and_keeps_the_items(tmp_path: Path) -> None:
    index = str(tmp_path / "index")
    with running_service(tmp_path / "log", data_dir=index, stop_timeout_s=str(LIMIT_S)) as service:
        statuses = asyncio.run(put_and_stop(service))
        assert psutil.Process(service.pid).wait(LIMIT_S) == 0
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) > 1
    with (
        running_service(tmp_path / "log", data_dir=index) as service,
        httpx.Client(base_url=service.url, timeout=LIMIT_S) as client,
    ):
        stored = [client.get(f"/v1/items/{number}").status_code for number in range(REQUESTS)]
    assert stored == [200 if status == 200 else 404 for status in statuses]


class Outcomes(Counter[str]):
    """The outcomes of the requests of many clients."""

    @property
    def responses(self) -> int:
        return self["200"] + self["503"]


async def keep_sending(number: int, url: httpx.URL, outcomes: Outcomes) -> None:
    """Send requests with pauses, on a new connection after each `Connection: close`, until refused."""
    pauses, image = random.Random(number), encode(noise(number))
    head = f"POST /v1/embed HTTP/1.1\r\nHost: {url.host}\r\nContent-Type: image/png\r\n"
    request = f"{head}Content-Length: {len(image)}\r\n\r\n".encode() + image
    while True:
        try:
            reader, writer = await asyncio.open_connection(url.host, url.port)
        except ConnectionRefusedError:
            return
        with closing(writer):
            while not reader.at_eof():
                writer.write(request)
                outcomes["sent"] += 1
                head_of_response = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = re.search(rb"content-length: (\d+)", head_of_response)
                assert length
                await reader.readexactly(int(length[1]))
                outcomes[head_of_response.split()[1].decode()] += 1
                if b"connection: close" in head_of_response:
                    break
                await asyncio.sleep(pauses.random() * 0.05)


async def stop_under_load(service: ServiceProcess) -> Outcomes:
    outcomes, url = Outcomes(), httpx.URL(service.url)
    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as clients:
        for number in range(REQUESTS):
            clients.create_task(keep_sending(number, url, outcomes))
        await until(lambda: outcomes["200"] >= REQUESTS)
        psutil.Process(service.pid).send_signal(signal.SIGTERM)
    return outcomes


def test_no_request_of_a_keep_alive_client_is_lost_in_a_stop(tmp_path: Path) -> None:
    with running_service(tmp_path / "log", data_dir=str(tmp_path / "index")) as service:
        outcomes = asyncio.run(stop_under_load(service))
        assert psutil.Process(service.pid).wait(LIMIT_S) == 0
    assert outcomes["503"] > 0
    assert outcomes.responses == outcomes["sent"]


def test_a_worker_without_its_supervisor_finishes_its_requests_and_frees_port_and_index(
    tmp_path: Path,
) -> None:
    index, image = str(tmp_path / "index"), encode(noise(1))
    with running_service(tmp_path / "log", data_dir=index, stop_timeout_s=str(LIMIT_S)) as service:
        port = httpx.URL(service.url).port
        supervisor = psutil.Process(service.pid)
        processes = supervisor.children(recursive=True)
        with closing(begun(service, len(image))) as connection:
            supervisor.kill()
            wait_until(lambda: status_of(service) == 503)
            connection.sendall(image)
            assert received(connection).startswith(b"HTTP/1.1 200 ")
        assert not psutil.wait_procs(processes, LIMIT_S)[1]
    with running_service(tmp_path / "log", port, data_dir=index):
        pass


def status_of(service: ServiceProcess) -> int:
    return httpx.get(f"{service.url}/readyz", trust_env=False, timeout=LIMIT_S).status_code


def test_a_worker_may_open_as_many_files_as_the_hard_limit_allows(tmp_path: Path) -> None:
    """The test's own soft limit is lowered for the service to inherit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, soft), hard))
    try:
        with running_service(tmp_path / "log", data_dir=str(tmp_path / "index")) as service:
            [worker] = filter(is_worker, psutil.Process(service.pid).children(recursive=True))
            assert resource.prlimit(worker.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_stop_timeout_ends_a_request_that_does_not(tmp_path: Path) -> None:
    index = str(tmp_path / "index")
    with running_service(tmp_path / "log", data_dir=index, stop_timeout_s="1") as service:
        with closing(begun(service, 1000)) as connection:
            psutil.Process(service.pid).send_signal(signal.SIGTERM)
            assert received(connection).startswith(b"HTTP/1.1 500 ")  # uvicorn's
        assert psutil.Process(service.pid).wait(LIMIT_S) == 0


def test_an_upload_that_is_dropped_does_not_delay_the_stop(tmp_path: Path) -> None:
    with running_service(
        tmp_path / "log", data_dir=str(tmp_path / "index"), stop_timeout_s=str(10 * LIMIT_S)
    ) as service:
        with closing(begun(service, 1000, FORM)) as connection:
            connection.sendall(b"--x\r\n")
        psutil.Process(service.pid).send_signal(signal.SIGTERM)
        psutil.Process(service.pid).wait(LIMIT_S)


def test_a_killed_worker_is_replaced_and_its_items_are_kept(tmp_path: Path) -> None:
    with (
        running_service(tmp_path / "log", data_dir=str(tmp_path / "index")) as service,
        Client(service.url, timeout_s=LIMIT_S) as client,
    ):
        image = encode(noise(1))
        assert client.put("a", image, "d", "l")
        children = psutil.Process(service.pid).children(recursive=True)
        [worker] = [process for process in children if is_worker(process)]
        asyncio.run(kill_under_load(worker, service.url))
        # The supervisor holds the socket: new connections wait for the next worker.
        with httpx.Client(base_url=service.url, timeout=LIMIT_S) as http:
            assert http.get("/livez").status_code == 200
            assert metric(http, f'uie_queue_depth_images{{model="{NAME}"}}') == 0
        [hit] = client.search(image).hits
        assert hit.id == "a"


async def kill_under_load(worker: psutil.Process, url: str) -> None:
    """Kills the worker while images are in flight."""
    images = [encode(noise(seed, 300, 300)) for seed in range(REQUESTS)]
    async with client_of(url) as client:
        tasks = [
            asyncio.create_task(client.post("/v1/embed", content=image, headers=PNG)) for image in images
        ]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        worker.kill()
        worker.wait(LIMIT_S)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [outcome for outcome in outcomes if isinstance(outcome, Exception)]


def is_worker(process: psutil.Process) -> bool:
    return "_bentoml_impl.worker.service" in process.cmdline()
