"""Embeddings on an NVIDIA GPU equal those on the CPU. Skipped on machines without one."""

import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.targets.process import running_service
from service.inference.encoder import Encoder
from service.manifest import Manifest
from tests.support.live import PNG, embedding_of
from tests.support.pictures import encode, noise
from tests.support.waiting import LIMIT_S

IMAGES = 64
Work = Callable[[], object]


def has_gpu() -> bool:
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not has_gpu(), reason="no NVIDIA GPU")]


def report(capsys: pytest.CaptureFixture[str], title: str, cpu: Work, cuda: Work) -> None:
    """Prints the throughput of both; nothing is asserted about it. Both have run before."""
    with capsys.disabled():
        Console().print(f"{title}: cuda {images_per_s(cuda):.0f} images/s, cpu {images_per_s(cpu):.0f}")


def random_images(count: int, px: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, px, px, 3), dtype=np.uint8)


def images_per_s(work: Work) -> float:
    started = time.perf_counter()
    work()
    return IMAGES / (time.perf_counter() - started)


def test_the_gpu_gives_the_embeddings_of_the_cpu(
    zoo_model: Path, manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = random_images(IMAGES, manifest.input_px)
    cpu, cuda = (Encoder(zoo_model, manifest, provider, 4) for provider in ("cpu", "cuda"))
    embeddings = cuda.encode(pixels)
    assert (cpu.encode(pixels) * embeddings).sum(axis=1).min() > 0.9999
    singles = np.concatenate([cuda.encode(pixels[row : row + 1]) for row in range(8)])
    assert (singles * embeddings[:8]).sum(axis=1).min() > 0.9999
    report(capsys, "in process", partial(cpu.encode, pixels), partial(cuda.encode, pixels))


def test_the_service_runs_on_the_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [encode(noise(seed)) for seed in range(IMAGES)]
    with (
        running_service(tmp_path / "cpu.log", provider="cpu", data_dir=str(tmp_path / "cpu")) as cpu,
        running_service(tmp_path / "cuda.log", provider="cuda", data_dir=str(tmp_path / "cuda")) as cuda,
        ThreadPoolExecutor(16) as threads,
        httpx.Client(timeout=LIMIT_S) as client,
    ):

        def embedded(url: str, image: bytes) -> NDArray[np.float64]:
            return embedding_of(client.post(f"{url}/v1/embed", content=image, headers=PNG))

        def all_embedded(url: str) -> list[NDArray[np.float64]]:
            return list(threads.map(partial(embedded, url), images))

        assert client.get(f"{cuda.url}/v1/info").json()["provider"] == "cuda"
        for embedding, expected in zip(all_embedded(cuda.url), all_embedded(cpu.url), strict=True):
            assert embedding @ expected > 0.9999
        report(capsys, "served", partial(all_embedded, cpu.url), partial(all_embedded, cuda.url))
