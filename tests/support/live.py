"""Requests to a live service, and its responses."""

import base64
import re
import socket
from typing import Any

import httpx
import numpy as np

from benchmarks.targets.process import ServiceProcess
from tests.support.images import encode, noise
from tests.support.waiting import LIMIT_S

NAME = "efficientnet-lite0-octet"
PNG = {"Content-Type": "image/png"}
TRUNCATED = encode(noise(3, 400, 300), "JPEG")[:-2000]


def uri(data: bytes, media: str = "image/png") -> str:
    """A data URI."""
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


def embedding_of(response: httpx.Response) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    """The embedding in a successful response."""
    assert response.status_code == 200, response.text
    return np.asarray(response.json()["embedding"])


def problem_of(response: httpx.Response) -> tuple[int, str]:
    """The status and slug of a problem; checks the shape of RFC 9457 and that no internals leak."""
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert set(problem) >= {"type", "title", "status", "detail"}
    assert problem["status"] == response.status_code
    for internal in ("Traceback", ".py", "/home", " at 0x"):
        assert internal not in response.text
    return response.status_code, problem["type"]


def hits_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The hits in the response to a successful search."""
    assert response.status_code == 200, response.text
    return list(response.json()["hits"])


def connected(service: ServiceProcess) -> socket.socket:
    """A TCP connection to the service."""
    host, port = service.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=LIMIT_S)


def begun(
    service: ServiceProcess,
    length: int,
    headers: str = "Content-Type: image/png\r\n",
    path: str = "/v1/embed",
) -> socket.socket:
    """A request whose body the service is waiting for: it has sent its 100 Continue."""
    connection = connected(service)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n{headers}"
    connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
    assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
    return connection


def received(connection: socket.socket) -> bytes:
    """Everything the service sends before it closes the connection."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def metric(client: httpx.Client, name: str) -> float:
    """The value of a metric, by name and labels; 0 if it is absent."""
    match = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return float(match[1]) if match else 0.0


def queue_is_empty(client: httpx.Client) -> bool:
    """True if no image is in the service's queue."""
    return f'uie_queue_depth_images{{model="{NAME}"}} 0.0' in client.get("/metrics").text
