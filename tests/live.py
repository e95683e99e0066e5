"""What the tests of the live service share."""

from typing import Any

import httpx
import numpy as np

from tests.pictures import encode, noise

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
