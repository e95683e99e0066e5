"""What the tests of the live service share."""

import re
import socket
from typing import Any

import httpx
import numpy as np

from benchmarks.targets.process import ServiceProcess
from tests.support.pictures import encode, noise

NAME = "efficientnet-lite0-octet"
PNG = {"Content-Type": "image/png"}
TRUNCATED = encode(noise(3, 400, 300), "JPEG")[:-2000]


def embedding_of(response: httpx.Response) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    assert response.status_code == 200, response.text
    return np.asarray(response.json()["embedding"])


def problem_of(response: httpx.Response) -> tuple[int, str]:
    """Checks the shape of RFC 9457, too."""
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert set(problem) >= {"type", "title", "status", "detail"}
    assert problem["status"] == response.status_code
    for inner in ("Traceback", ".py", "/home", " at 0x"):
        assert inner not in response.text
    return response.status_code, problem["type"]


def hits_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The hits of a search that must succeed."""
    assert response.status_code == 200, response.text
    return list(response.json()["hits"])


def begun(service: ServiceProcess, length: int, sent: bytes = b"", headers: str = "") -> socket.socket:
    """A request whose body is not all there yet."""
    host, port = service.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    head = f"POST /v1/embed HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n{headers}"
    connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode() + sent)
    return connection


def answer(connection: socket.socket) -> bytes:
    """All that comes until the service closes the connection."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def metric(client: httpx.Client, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0
