"""`/v1/embeddings` with OpenAI's client, and the requests it refuses."""

import base64
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import numpy as np
import openai
import pytest

from benchmarks.targets.process import ServiceProcess
from service.manifest import Manifest
from tests.support.images import encode, noise
from tests.support.live import PNG, TRUNCATED, embedding_of, problem_of, uri


@pytest.fixture(scope="module")
def client(service: ServiceProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="not required", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_the_client_gets_the_embeddings_of_embed(
    client: openai.OpenAI, http: httpx.Client, manifest: Manifest, encoding: Literal["float", "base64"] | None
) -> None:
    images = [encode(noise(seed)) for seed in (1, 2, 3)]
    response = client.embeddings.create(
        model=manifest.name, input=[uri(image) for image in images], encoding_format=encoding or openai.omit
    )
    single = [embedding_of(http.post("/v1/embed", content=image, headers=PNG)) for image in images]
    assert [entry.index for entry in response.data] == [0, 1, 2]
    for entry, expected in zip(response.data, single, strict=True):
        vector: Any = entry.embedding  # a string if base64 was requested explicitly
        row = np.frombuffer(base64.b64decode(vector), "<f4") if isinstance(vector, str) else np.array(vector)
        np.testing.assert_allclose(row, expected, atol=2e-6)
    assert response.model == manifest.name


def test_one_image_without_a_list(client: openai.OpenAI, manifest: Manifest) -> None:
    response = client.embeddings.create(model=manifest.name, input=uri(encode(noise(1))), dimensions=64)
    assert len(response.data) == 1
    assert np.linalg.norm(response.data[0].embedding) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"input": "a cat"}, (400, "invalid-request")),
        ({"input": "https://example.com/cat.png"}, (400, "invalid-request")),
        ({"input": "data:image/png;base64,%%%"}, (400, "invalid-request")),
        ({"input": "data:image/png,abc"}, (400, "invalid-request")),
        ({"input": []}, (400, "invalid-request")),
        ({"input": [uri(encode(noise(1)))] * 1001}, (400, "invalid-request")),
        ({"input": [1, 2]}, (400, "invalid-request")),
        ({}, (400, "invalid-request")),
        ({"input": uri(b"not an image")}, (400, "undecodable-image")),
        ({"input": uri(encode(noise(1))), "model": "another"}, (404, "unknown-model")),
        ({"input": uri(encode(noise(1))), "dimensions": 32}, (400, "invalid-request")),
        ({"input": uri(encode(noise(1))), "encoding_format": "int8"}, (400, "invalid-request")),
        ({"input": uri(b"\0" * (20 * 2**20 + 1))}, (413, "image-too-large")),
    ],
    ids=lambda value: str(value)[:40],
)
def test_invalid_requests(http: httpx.Client, body: dict[str, object], expected: tuple[int, str]) -> None:
    assert problem_of(http.post("/v1/embeddings", json=body)) == expected


def test_the_index_of_a_broken_image_is_reported(http: httpx.Client) -> None:
    response = http.post("/v1/embeddings", json={"input": [uri(encode(noise(1))), uri(TRUNCATED)]})
    assert problem_of(response) == (400, "undecodable-image")
    assert response.json()["index"] == 1


def test_it_takes_json_only(http: httpx.Client) -> None:
    response = http.post("/v1/embeddings", content=b"{}", headers={"Content-Type": "text/plain"})
    assert problem_of(response) == (415, "unsupported-media-type")
    response = http.post("/v1/embeddings", content=b"\xff{", headers={"Content-Type": "application/json"})
    assert problem_of(response) == (400, "invalid-request")
