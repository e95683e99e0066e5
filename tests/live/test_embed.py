"""The embedding routes of the live service."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from benchmarks.targets.process import ServiceProcess, running_service
from service.inference.encoder import Encoder
from service.inference.images import decode
from service.manifest import Manifest
from tests.support.images import encode, exif, noise, quadrants
from tests.support.live import (
    NAME,
    PNG,
    TRUNCATED,
    begun,
    embedding_of,
    metric,
    problem_of,
    queue_is_empty,
)
from tests.support.waiting import LIMIT_S, wait_until


def test_the_embedding_is_that_of_the_model(http: httpx.Client, zoo_model: Path, manifest: Manifest) -> None:
    data = encode(noise(1))
    response = http.post("/v1/embed", content=data, headers=PNG)
    direct = Encoder(zoo_model, manifest, "cpu", 1).encode(decode(data, manifest.preprocessing, 10**6)[None])
    np.testing.assert_allclose(embedding_of(response), direct[0], atol=2e-6)
    body = response.json()
    assert (body["dim"], body["model"], body["fingerprint"]) == (64, manifest.name, manifest.fingerprint)


def test_every_response_has_the_headers(http: httpx.Client, manifest: Manifest) -> None:
    valid = http.post("/v1/embed", content=encode(noise(1)), headers={**PNG, "X-Request-Id": "mine-1"})
    assert valid.headers["x-request-id"] == "mine-1"
    assert valid.headers["x-model-fingerprint"] == manifest.fingerprint
    stages = dict(part.strip().split(";dur=") for part in valid.headers["server-timing"].split(","))
    assert set(stages) == {"decode", "queue", "infer", "total"}
    assert all(float(ms) >= 0 for ms in stages.values())
    for response in (http.get("/v1/nothing"), http.post("/v1/embed", content=b"x", headers=PNG)):
        assert response.headers["x-model-fingerprint"] == manifest.fingerprint
        assert len(response.headers["x-request-id"]) == 32
    injected = http.get("/v1/info", headers={"X-Request-Id": "a b"})
    assert injected.headers["x-request-id"] != "a b"


def test_raw_multipart_and_binary_embeddings_are_equal(http: httpx.Client) -> None:
    data = encode(noise(2))
    raw = embedding_of(http.post("/v1/embed", content=data, headers=PNG))
    for kind in ("image/jpg", "application/octet-stream", "IMAGE/PNG; x=y"):
        np.testing.assert_array_equal(
            raw, embedding_of(http.post("/v1/embed", content=data, headers={"Content-Type": kind}))
        )
    np.testing.assert_array_equal(raw, embedding_of(http.post("/v1/embed", files={"image": data})))
    binary = http.post("/v1/embed", content=data, headers={**PNG, "Accept": "application/octet-stream"})
    assert binary.headers["content-type"] == "application/octet-stream"
    assert len(binary.content) == 64 * 4
    np.testing.assert_array_equal(raw, np.frombuffer(binary.content, dtype="<f4"))


def test_exif_rotation_is_applied(http: httpx.Client) -> None:
    upright = embedding_of(http.post("/v1/embed", content=encode(quadrants(200, 200)), headers=PNG))
    turned = quadrants(200, 200).transpose(Image.Transpose.ROTATE_90)
    rotated = http.post("/v1/embed", content=encode(turned, exif=exif(6)), headers=PNG)
    # The order of resampling, rows or columns first, changes the rounding.
    assert float(embedding_of(rotated) @ upright) > 0.9999
    unturned = http.post("/v1/embed", content=encode(turned), headers=PNG)
    assert float(embedding_of(unturned) @ upright) < 0.99


async def test_of_32_concurrent_requests_only_the_broken_one_fails(service: ServiceProcess) -> None:
    images = [encode(noise(seed)) for seed in range(31)]
    async with httpx.AsyncClient(base_url=service.url, timeout=LIMIT_S) as client:
        expected = [
            embedding_of(await client.post("/v1/embed", content=image, headers=PNG)) for image in images
        ]
        sent = [*images[:16], TRUNCATED, *images[16:]]
        responses = await asyncio.gather(
            *(client.post("/v1/embed", content=image, headers=PNG) for image in sent)
        )
    assert [response.status_code for response in responses] == [200] * 16 + [400] + [200] * 15
    assert problem_of(responses[16]) == (400, "undecodable-image")
    embeddings = [embedding_of(response) for response in responses[:16] + responses[17:]]
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)


def test_batch_has_one_result_per_image_in_order(http: httpx.Client) -> None:
    images = [encode(noise(seed)) for seed in range(40)]
    files: list[tuple[str, Any]] = [("images", (f"{n}.png", image)) for n, image in enumerate(images)]
    files[7] = ("images", ("broken.png", TRUNCATED))
    files[9] = ("images", (None, "http://127.0.0.1/x.png"))
    response = http.post("/v1/embed/batch", files=files)
    assert response.status_code == 200
    results = response.json()["results"]
    assert results[7]["error"]["type"] == "undecodable-image"
    assert results[9]["error"]["type"] == "invalid-request"
    for n in (0, 8, 39):
        single = embedding_of(http.post("/v1/embed", content=images[n], headers=PNG))
        np.testing.assert_allclose(results[n]["embedding"], single, atol=1e-5)
    assert [set(result) for n, result in enumerate(results) if n not in (7, 9)] == [{"embedding"}] * 38


def test_batch_without_images(http: httpx.Client) -> None:
    assert problem_of(http.post("/v1/embed/batch", files={"other": b"x"})) == (400, "invalid-request")
    assert problem_of(http.post("/v1/embed/batch", json={})) == (415, "unsupported-media-type")


def inferred_images(http: httpx.Client) -> float:
    """The number of images in all batches since the service started."""
    return metric(http, f'uie_batch_images_sum{{model="{NAME}"}}')


def test_images_of_disconnected_clients_are_not_inferred(service: ServiceProcess, http: httpx.Client) -> None:
    data = encode(noise(1, 600, 600))
    before = inferred_images(http)
    connections = [begun(service, len(data)) for _ in range(200)]
    for connection in connections:
        connection.sendall(data[:-1])
    for connection in connections:
        connection.sendall(data[-1:])
        connection.close()
    embedding_of(http.post("/v1/embed", content=data, headers=PNG))
    wait_until(lambda: queue_is_empty(http))
    assert inferred_images(http) - before < 100


def test_a_deadline_that_is_exceeded(http: httpx.Client) -> None:
    large = encode(Image.effect_noise((3000, 3000), 90).convert("RGB"), "PNG", compress_level=1)
    response = http.post("/v1/embed", content=large, headers={**PNG, "X-Deadline-Ms": "1"})
    assert problem_of(response) == (504, "deadline-exceeded")


def test_telemetry_is_off(service: ServiceProcess) -> None:
    """ONNX Runtime queues its telemetry in a database that it keeps open."""
    processes = psutil.Process(service.pid).children(recursive=True)
    files = [file.path for process in processes for file in process.open_files()]
    assert any("uie-metrics" in name for name in files)  # one of them is the worker
    assert not [name for name in files if "onnxruntime.db" in name]


def test_health_info_and_metrics(http: httpx.Client, manifest: Manifest) -> None:
    assert http.get("/livez").status_code == 200
    assert http.get("/readyz").status_code == 200
    info = http.get("/v1/info").json()
    assert info["provider"] == "cpu"
    assert info["model"] == json.loads(manifest.model_dump_json())
    assert info["index"]["backend"] == "qdrant-edge"
    http.post("/v1/embed", content=encode(noise(1)), headers=PNG)
    metrics = http.get("/metrics").text
    for name in (
        'uie_requests_total{route="/v1/embed",status="200"}',
        f'uie_stage_duration_seconds_count{{model="{NAME}",stage="decode"}}',
        f'uie_stage_duration_seconds_count{{model="{NAME}",stage="queue"}}',
        f'uie_stage_duration_seconds_count{{model="{NAME}",stage="infer"}}',
        f'uie_batch_images_count{{model="{NAME}"}}',
        'uie_request_duration_seconds_count{route="/v1/embed"}',
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        f'uie_queue_depth_images{{model="{NAME}"}} 0.0',
        f'uie_model_info{{fingerprint="{manifest.fingerprint}"',
    ):
        assert name in metrics, name


@pytest.mark.parametrize("path", ["/embed", "/search"])
def test_bentoml_adds_no_endpoints(http: httpx.Client, path: str) -> None:
    assert http.post(path, files={"image": encode(noise(1))}).status_code == 404


def test_keys_and_a_short_queue(tmp_path: Path, http: httpx.Client) -> None:
    with running_service(
        tmp_path / "log",
        api_keys="alpha,beta",
        queue_limit="1",
        golden_interval_s="3600",
        data_dir=str(tmp_path / "index"),
    ) as service:
        with httpx.Client(base_url=service.url, timeout=LIMIT_S) as client:
            assert client.get("/readyz").status_code == 200
            assert inferred_images(client) == 1  # the golden image, and none of the other service's
            assert inferred_images(http) >= 1  # which has separate metrics
            for headers in ({}, {"Authorization": "Bearer gamma"}, {"Authorization": "alpha"}):
                refused = client.get("/v1/info", headers=headers)
                assert problem_of(refused) == (401, "unauthorized")
            for key in ("Bearer alpha", "bearer beta"):
                assert client.get("/v1/info", headers={"Authorization": key}).status_code == 200
        asyncio.run(_overload(service.url))
    assert "alpha" not in (tmp_path / "log").read_text()


async def _overload(url: str) -> None:
    """Sends requests together until one is refused; at least one of them succeeds."""
    headers = {**PNG, "Authorization": "Bearer alpha"}
    data = encode(noise(1, 1500, 1500))
    responses: dict[int, httpx.Response] = {}
    async with (
        asyncio.timeout(LIMIT_S),
        httpx.AsyncClient(base_url=url, timeout=LIMIT_S, headers=headers) as client,
    ):
        while not {200, 429} <= responses.keys():
            for response in await asyncio.gather(
                *(client.post("/v1/embed", content=data) for _ in range(16))
            ):
                responses[response.status_code] = response
    assert responses.keys() == {200, 429}
    assert problem_of(responses[429]) == (429, "overloaded")
    assert responses[429].headers["retry-after"] == "1"
