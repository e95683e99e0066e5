"""`/v1/embeddings` with OpenAI's own client, and what it refuses."""

import base64
from typing import Any, Literal

import httpx
import numpy as np
import openai
import pytest

from benchmarks.targets.process import ServiceProcess
from service.manifest import Manifest
from tests.support.live import PNG, TRUNCATED, embedding_of, problem_of
from tests.support.pictures import encode, noise


def uri(data: bytes, media: str = "image/png") -> str:
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


@pytest.fixture(scope="module")
def client(service: ServiceProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key="none is asked for", max_retries=0)


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_the_client_gets_the_embeddings_of_v1_embed(
    client: openai.OpenAI, http: httpx.Client, manifest: Manifest, encoding: Literal["float", "base64"] | None
) -> None:
    images = [encode(noise(seed)) for seed in (1, 2, 3)]
    answer = client.embeddings.create(
        model=manifest.name, input=[uri(one) for one in images], encoding_format=encoding or openai.omit
    )
    alone = [embedding_of(http.post("/v1/embed", content=image, headers=PNG)) for image in images]
    assert [one.index for one in answer.data] == [0, 1, 2]
    for one, wanted in zip(answer.data, alone, strict=True):
        vector: Any = one.embedding  # base64 that was asked for by name stays what it is
        got = np.frombuffer(base64.b64decode(vector), "<f4") if isinstance(vector, str) else np.array(vector)
        np.testing.assert_allclose(got, wanted, atol=2e-6)  # batched, not alone
    assert answer.model == manifest.name


def test_one_image_may_stand_alone(client: openai.OpenAI, manifest: Manifest) -> None:
    answer = client.embeddings.create(model=manifest.name, input=uri(encode(noise(1))), dimensions=64)
    assert len(answer.data) == 1
    assert np.linalg.norm(answer.data[0].embedding) == pytest.approx(1, abs=1e-5)


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
def test_what_it_refuses(http: httpx.Client, body: dict[str, object], expected: tuple[int, str]) -> None:
    assert problem_of(http.post("/v1/embeddings", json=body)) == expected


def test_of_several_the_broken_one_is_named(http: httpx.Client) -> None:
    answer = http.post("/v1/embeddings", json={"input": [uri(encode(noise(1))), uri(TRUNCATED)]})
    assert problem_of(answer) == (400, "undecodable-image")
    assert answer.json()["index"] == 1


def test_it_takes_json_only(http: httpx.Client) -> None:
    answer = http.post("/v1/embeddings", content=b"{}", headers={"Content-Type": "text/plain"})
    assert problem_of(answer) == (415, "unsupported-media-type")
    answer = http.post("/v1/embeddings", content=b"\xff{", headers={"Content-Type": "application/json"})
    assert problem_of(answer) == (400, "invalid-request")
