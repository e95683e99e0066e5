"""The embedding routes of the live service, good requests and bad."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
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
from tests.support.live import NAME, PNG, TRUNCATED, embedding_of, problem_of
from tests.support.pictures import encode, exif, noise, quadrants


def test_the_embedding_is_the_models(http: httpx.Client, zoo_model: Path, manifest: Manifest) -> None:
    data = encode(noise(1))
    response = http.post("/v1/embed", content=data, headers=PNG)
    direct = Encoder(zoo_model, manifest, "cpu", 1).encode(decode(data, manifest.preprocessing, 10**6)[None])
    np.testing.assert_allclose(embedding_of(response), direct[0], atol=2e-6)
    said = response.json()
    assert (said["dim"], said["model"], said["fingerprint"]) == (64, manifest.name, manifest.fingerprint)


def test_every_answer_is_labelled(http: httpx.Client, manifest: Manifest) -> None:
    given = http.post("/v1/embed", content=encode(noise(1)), headers={**PNG, "X-Request-Id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    assert given.headers["x-model-fingerprint"] == manifest.fingerprint
    stages = dict(part.strip().split(";dur=") for part in given.headers["server-timing"].split(","))
    assert set(stages) == {"decode", "queue", "infer", "total"}
    assert all(float(ms) >= 0 for ms in stages.values())
    for response in (http.get("/v1/nothing"), http.post("/v1/embed", content=b"x", headers=PNG)):
        assert response.headers["x-model-fingerprint"] == manifest.fingerprint
        assert len(response.headers["x-request-id"]) == 32
    injected = http.get("/v1/info", headers={"X-Request-Id": "a b"})
    assert injected.headers["x-request-id"] != "a b"


def test_raw_multipart_and_binary_answer_agree(http: httpx.Client) -> None:
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


def test_exif_rotation_reaches_the_embedding(http: httpx.Client) -> None:
    upright = embedding_of(http.post("/v1/embed", content=encode(quadrants(200, 200)), headers=PNG))
    turned = quadrants(200, 200).transpose(Image.Transpose.ROTATE_90)
    rotated = http.post("/v1/embed", content=encode(turned, exif=exif(6)), headers=PNG)
    # Resampling rows before columns, or columns before rows, rounds differently.
    assert float(embedding_of(rotated) @ upright) > 0.9999
    unturned = http.post("/v1/embed", content=encode(turned), headers=PNG)
    assert float(embedding_of(unturned) @ upright) < 0.99


async def test_of_32_at_once_only_the_broken_one_fails(service: ServiceProcess) -> None:
    images = [encode(noise(seed)) for seed in range(31)]
    async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
        alone = [embedding_of(await client.post("/v1/embed", content=image, headers=PNG)) for image in images]
        sent = [*images[:16], TRUNCATED, *images[16:]]
        answers = await asyncio.gather(
            *(client.post("/v1/embed", content=image, headers=PNG) for image in sent)
        )
    assert [answer.status_code for answer in answers] == [200] * 16 + [400] + [200] * 15
    assert problem_of(answers[16]) == (400, "undecodable-image")
    together = [embedding_of(answer) for answer in answers[:16] + answers[17:]]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_batch_answers_each_image_in_order(http: httpx.Client) -> None:
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


def images_seen(http: httpx.Client) -> float:
    """Images that went through the session since the service started."""
    lines = http.get("/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("uie_batch_images_sum")))


def test_images_of_clients_that_have_gone_are_not_inferred(
    service: ServiceProcess, http: httpx.Client
) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    data = encode(noise(1, 600, 600))
    head = "POST /v1/embed HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    head += f"Content-Length: {len(data)}\r\n\r\n"
    before = images_seen(http)
    clients = [socket.create_connection((host, int(port)), timeout=20) for _ in range(200)]
    for client in clients:
        client.sendall(head.encode() + data)
    for client in clients:
        client.close()
    # The queue is empty again once the next picture is through.
    embedding_of(http.post("/v1/embed", content=data, headers=PNG))
    while f'uie_queue_depth_images{{model="{NAME}"}} 0.0' not in http.get("/metrics").text:
        time.sleep(0.05)
    assert images_seen(http) - before < 100


def test_a_deadline_that_cannot_be_met(http: httpx.Client) -> None:
    large = encode(Image.effect_noise((3000, 3000), 90).convert("RGB"), "PNG", compress_level=1)
    response = http.post("/v1/embed", content=large, headers={**PNG, "X-Deadline-Ms": "1"})
    assert problem_of(response) == (504, "deadline-exceeded")


def test_a_deadline_is_bentomls_routes_too(http: httpx.Client) -> None:
    large = encode(Image.new("RGB", (7000, 7000), "red"))
    late = http.post("/embed", files={"image": ("x.png", large)}, headers={"X-Deadline-Ms": "150"})
    assert problem_of(late) == (504, "deadline-exceeded")
    assert late.headers["x-request-id"]


def test_nothing_reports_on_its_use(service: ServiceProcess) -> None:
    """ONNX Runtime queues its reports in a database that it keeps open."""
    processes = psutil.Process(service.pid).children(recursive=True)
    files = [file.path for process in processes for file in process.open_files()]
    assert any("uie-metrics" in name for name in files)  # it is the worker that we look at
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


def test_bentoml_clients_have_endpoints_of_their_own(http: httpx.Client) -> None:
    data = encode(noise(5))
    wanted = embedding_of(http.post("/v1/embed", content=data, headers=PNG))
    np.testing.assert_array_equal(embedding_of(http.post("/embed", files={"image": data})), wanted)
    found = http.post("/search", files={"image": data}, data={"k": "3"}).json()
    assert set(found) == {"hits", "domains", "dim", "model", "fingerprint"}
    assert problem_of(http.post("/embed", files={"image": TRUNCATED})) == (400, "undecodable-image")


@pytest.mark.parametrize("path", ["/embed", "/search", "/embed%0A"])
def test_bentoml_fetches_and_unpickles_nothing(http: httpx.Client, path: str) -> None:
    url = "http://127.0.0.1:9/x.png"
    assert problem_of(http.post(path, files={"image": (None, url)})) == (400, "invalid-request")
    both: list[tuple[str, Any]] = [("image", ("a.png", encode(noise(1)))), ("image", (None, url))]
    assert problem_of(http.post(path, files=both)) == (400, "invalid-request")
    for kind in ("application/json", "application/vnd.bentoml+pickle", "application/x-www-form-urlencoded"):
        refused = http.post(path, content=b"{}", headers={"Content-Type": kind})
        assert problem_of(refused) == (415, "unsupported-media-type")
    assert problem_of(http.post(path, files={"image": bytes(50_000_000)})) == (413, "image-too-large")
    odd = {"Content-Type": "multipart/form-data; boundary=x; charset=undefined"}
    assert problem_of(http.post(path, content=b"x", headers=odd)) == (400, "invalid-request")


def test_an_upload_to_bentomls_endpoint_that_is_dropped_keeps_nothing_waiting(tmp_path: Path) -> None:
    """Else the service waits for it, and so for its own end, until BentoML's timeout."""
    with running_service(tmp_path / "log", data_dir=str(tmp_path / "index")) as service:
        host, port = service.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as client:
            client.sendall(
                b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
            )
            time.sleep(0.5)
        supervisor = psutil.Process(service.pid)
        supervisor.send_signal(signal.SIGTERM)
        supervisor.wait(20)


NATIVE = """
import sys
import time
from pathlib import Path
import bentoml
with bentoml.SyncHTTPClient(sys.argv[1], token="beta") as client:
    print(len(client.embed(image=Path(sys.argv[2]))["embedding"]))
"""


def test_keys_a_small_queue_and_the_real_bentoml_client(tmp_path: Path, http: httpx.Client) -> None:
    """One more service, for the settings that the shared one does not have."""
    index = str(tmp_path / "index")
    with running_service(tmp_path / "log", api_keys="alpha,beta", queue_limit="1", data_dir=index) as service:
        with httpx.Client(base_url=service.url, timeout=60) as client:
            assert client.get("/readyz").status_code == 200
            assert images_seen(client) == 1  # the golden image, and none of the other service's
            assert images_seen(http) >= 1  # which keeps its own
            for headers in ({}, {"Authorization": "Bearer gamma"}, {"Authorization": "alpha"}):
                refused = client.get("/v1/info", headers=headers)
                assert problem_of(refused) == (401, "unauthorized")
            for given in ("Bearer alpha", "bearer beta"):
                assert client.get("/v1/info", headers={"Authorization": given}).status_code == 200
        asyncio.run(_overload(service.url))
        picture = tmp_path / "picture.png"
        picture.write_bytes(encode(noise(1)))
        # A process of its own: the client leaves a temporary folder to the interpreter's end, and warns.
        arguments = [sys.executable, "-c", NATIVE, service.url, str(picture)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
        assert done.stdout == "64\n"
    assert "alpha" not in (tmp_path / "log").read_text()


async def _overload(url: str) -> None:
    headers = {**PNG, "Authorization": "Bearer alpha"}
    data = encode(noise(1, 1500, 1500))
    async with httpx.AsyncClient(base_url=url, timeout=60, headers=headers) as client:
        answers = await asyncio.gather(*(client.post("/v1/embed", content=data) for _ in range(16)))
    codes = {answer.status_code for answer in answers}
    assert codes == {200, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert problem_of(refused) == (429, "overloaded")
    assert refused.headers["retry-after"] == "1"
