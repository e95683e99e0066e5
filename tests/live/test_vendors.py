"""Requests in the shapes of vLLM, Jina, Cohere and OpenAI, and errors that their clients show."""

import json
from collections.abc import Iterator
from typing import Any

import cohere
import httpx
import numpy as np
import openai
import pytest
from cohere.core.api_error import ApiError

from benchmarks.targets.process import ServiceProcess
from service.manifest import Manifest
from tests.support.images import encode, noise
from tests.support.live import PNG, embedding_of, problem_of, uri
from tests.support.waiting import LIMIT_S

pytestmark = pytest.mark.integration

IMAGE = encode(noise(1))
PART = {"type": "image_url", "image_url": {"url": uri(IMAGE)}}
TEXT = {"type": "text", "text": "Represent the given image."}
CONVERSATION = [{"role": "user", "content": [PART, TEXT]}]


@pytest.fixture(scope="module")
def openai_client(service: ServiceProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="not required", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def cohere_client(service: ServiceProcess) -> Iterator[cohere.ClientV2]:
    with httpx.Client(timeout=LIMIT_S) as connections:
        yield cohere.ClientV2(base_url=service.url, api_key="not required", httpx_client=connections)


@pytest.mark.parametrize(
    "body",
    [
        {"input": {"image": uri(IMAGE)}},
        {"input": [{"image": uri(IMAGE).partition(",")[2]}], "model": None, "dimensions": None},
        {"messages": CONVERSATION, "encoding_format": None, "input": None},
        {"messages": [CONVERSATION], "truncate_prompt_tokens": 1},
    ],
    ids=["object", "bare base64", "messages", "several lists of messages"],
)
def test_items_as_objects_and_messages_are_embedded(http: httpx.Client, body: dict[str, Any]) -> None:
    expected = embedding_of(http.post("/v1/embed", content=IMAGE, headers=PNG))
    response = http.post("/v1/embeddings", json=body)
    assert response.status_code == 200, response.text
    [row] = response.json()["data"]
    np.testing.assert_allclose(row["embedding"], expected, atol=2e-6)


@pytest.mark.parametrize("empty", [None, []])
def test_empty_texts_count_as_absent(http: httpx.Client, empty: list[str] | None) -> None:
    """Jackson writes an empty list with a space."""
    body = json.dumps({"images": [uri(IMAGE)], "texts": empty}).replace("[]", "[ ]")
    response = http.post("/v2/embed", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200, response.text


def test_a_byte_order_mark_before_the_body_is_ignored(http: httpx.Client) -> None:
    body = b"\xef\xbb\xbf" + json.dumps({"input": uri(IMAGE)}).encode()
    response = http.post("/v1/embeddings", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200, response.text


def test_cohere_gets_the_embeddings_of_embed(
    cohere_client: cohere.ClientV2, http: httpx.Client, manifest: Manifest
) -> None:
    images = [encode(noise(seed)) for seed in (1, 2)]
    response = cohere_client.embed(
        model=manifest.name,
        images=[uri(image) for image in images],
        input_type="image",
        embedding_types=["float", "base64"],
    )
    rows = response.embeddings.float_
    assert rows is not None
    for row, image in zip(rows, images, strict=True):
        expected = embedding_of(http.post("/v1/embed", content=image, headers=PNG))
        np.testing.assert_allclose(row, expected, atol=2e-6)
    assert len(response.embeddings.base64 or []) == 2


def test_the_served_models_are_listed(openai_client: openai.OpenAI, manifest: Manifest) -> None:
    assert [model.id for model in openai_client.models.list()] == [manifest.name]
    assert openai_client.models.retrieve(manifest.name).object == "model"
    with pytest.raises(openai.NotFoundError, match="not served"):
        openai_client.models.retrieve("another")


def test_clients_show_the_reason_of_an_error(
    openai_client: openai.OpenAI, cohere_client: cohere.ClientV2, manifest: Manifest
) -> None:
    broken = [uri(IMAGE), uri(b"not an image")]
    with pytest.raises(openai.BadRequestError, match="image 1: not an image"):
        openai_client.embeddings.create(model=manifest.name, input=broken)
    with pytest.raises(ApiError, match="image 1: not an image"):
        cohere_client.embed(model=manifest.name, images=broken, input_type="image")
    with pytest.raises(ApiError, match="only images"):
        cohere_client.embed(model=manifest.name, texts=["a cat"], input_type="search_query")


@pytest.mark.parametrize(
    ("method", "path", "headers", "expected"),
    [
        ("GET", "/v1/embeddings", {}, (405, "method-not-allowed")),
        ("POST", "/v2/nothing", {}, (404, "not-found")),
        ("POST", "/v2/embed", {}, (415, "unsupported-media-type")),
        ("POST", "/v1/embeddings", {"Content-Encoding": "gzip"}, (415, "unsupported-media-type")),
        ("POST", "/v1/embeddings", {"X-Deadline-Ms": "soon"}, (400, "invalid-request")),
        ("POST", "/v1/embeddings", {"Host": "example.org"}, (421, "unknown-host")),
    ],
)
def test_every_error_has_the_members_of_the_vendors(
    http: httpx.Client, method: str, path: str, headers: dict[str, str], expected: tuple[int, str]
) -> None:
    kind = "text/plain" if expected[0] == 415 else "application/json"
    response = http.request(method, path, headers={"Content-Type": kind, **headers}, content=b"{}")
    assert problem_of(response) == expected
    body = response.json()
    assert body["message"] == body["detail"] == body["error"]["message"]
    assert body["error"]["code"] == expected[1]
