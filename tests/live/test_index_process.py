"""The process of the embedded index: shared by workers, started again after a crash, never an orphan."""

import signal
from pathlib import Path

import httpx
import numpy as np
import psutil

from benchmarks.targets.process import ServiceProcess, running_service
from tests.support.images import encode, noise
from tests.support.live import PNG, problem_of
from tests.support.waiting import LIMIT_S, wait_until

IMAGE = encode(noise(1))
QUERY = {"embedding": np.eye(64)[0].tolist(), "k": 1}


def index_process(service: ServiceProcess) -> psutil.Process:
    """The only process that runs the daemon of the index."""
    children = psutil.Process(service.pid).children(recursive=True)
    (process,) = [
        child for child in children if any("service.index.daemon" in part for part in child.cmdline())
    ]
    return process


def client_of(service: ServiceProcess) -> httpx.Client:
    return httpx.Client(base_url=service.url, timeout=LIMIT_S, trust_env=False)


def put(client: httpx.Client, name: str) -> int:
    path = f"/v1/items/{name}?domain=d&label=l"
    return client.put(path, content=IMAGE, headers=PNG).status_code


def test_embedding_continues_while_the_index_is_down_and_it_is_started_again(tmp_path: Path) -> None:
    with (
        running_service(tmp_path / "log", data_dir=str(tmp_path / "index")) as service,
        client_of(service) as client,
    ):
        assert put(client, "a") == 200
        crashed = index_process(service)
        crashed.suspend()
        slow = {"X-Deadline-Ms": "500"}
        assert client.post("/v1/search", json=QUERY, headers=slow).status_code == 504
        assert client.post("/v1/embed", content=IMAGE, headers=PNG).status_code == 200
        assert client.get("/livez").status_code == 200
        crashed.kill()
        crashed.wait(LIMIT_S)
        response = client.post("/v1/search", json=QUERY)
        if response.status_code != 200:
            assert problem_of(response) == (503, "index-unavailable")
        assert client.post("/v1/embed", content=IMAGE, headers=PNG).status_code == 200
        wait_until(lambda: client.post("/v1/search", json=QUERY).status_code == 200)
        assert client.post("/v1/search", json=QUERY).json()["hits"][0]["id"] == "a"
        assert index_process(service).pid != crashed.pid
        assert put(client, "b") == 200


def test_workers_share_the_index(tmp_path: Path) -> None:
    with running_service(
        tmp_path / "log", data_dir=str(tmp_path / "index"), workers="2", threads="1"
    ) as service:
        index_process(service)
        for number in range(12):  # each on a new connection, so that both workers get some
            with client_of(service) as client:
                assert put(client, str(number)) == 200
                hits = client.post("/v1/search", json={**QUERY, "k": 100}).json()["hits"]
                assert len(hits) == number + 1


def test_the_index_process_ends_with_a_killed_supervisor(tmp_path: Path) -> None:
    with (
        running_service(tmp_path / "log", data_dir=str(tmp_path / "index")) as service,
        client_of(service) as client,
    ):
        assert put(client, "a") == 200
        process = index_process(service)
        psutil.Process(service.pid).send_signal(signal.SIGKILL)
        process.wait(LIMIT_S)
    with (
        running_service(tmp_path / "log", data_dir=str(tmp_path / "index")) as service,
        client_of(service) as client,
    ):
        assert client.get("/v1/items/a").status_code == 200
