"""On a machine with an NVIDIA GPU: the same embeddings as on the CPU, and served. Elsewhere these skip."""

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

PICTURES = 64
Work = Callable[[], object]


def has_gpu() -> bool:
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not has_gpu(), reason="no NVIDIA GPU")]


def say(capsys: pytest.CaptureFixture[str], what: str, cpu: Work, cuda: Work) -> None:
    """The throughput of both, for the reader; both have run before."""
    with capsys.disabled():
        Console().print(f"{what}: cuda {images_per_s(cuda):.0f} images/s, cpu {images_per_s(cpu):.0f}")


def drawn(count: int, px: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, px, px, 3), dtype=np.uint8)


def images_per_s(work: Work) -> float:
    started = time.perf_counter()
    work()
    return PICTURES / (time.perf_counter() - started)


def test_the_gpu_answers_as_the_cpu(
    zoo_model: Path, manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = drawn(PICTURES, manifest.input_px)
    cpu, cuda = (Encoder(zoo_model, manifest, provider, 4) for provider in ("cpu", "cuda"))
    found = cuda.encode(pixels)
    assert (cpu.encode(pixels) * found).sum(axis=1).min() > 0.9999
    singles = np.concatenate([cuda.encode(pixels[at : at + 1]) for at in range(8)])
    assert (singles * found[:8]).sum(axis=1).min() > 0.9999
    say(capsys, "in process", partial(cpu.encode, pixels), partial(cuda.encode, pixels))


def test_it_serves_from_the_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = [encode(noise(seed)) for seed in range(PICTURES)]
    with (
        running_service(tmp_path / "cpu.log", provider="cpu", data_dir=str(tmp_path / "cpu")) as cpu,
        running_service(tmp_path / "cuda.log", provider="cuda", data_dir=str(tmp_path / "cuda")) as cuda,
        ThreadPoolExecutor(16) as threads,
        httpx.Client(timeout=60) as client,
    ):

        def embedded(url: str, picture: bytes) -> NDArray[np.float64]:
            return embedding_of(client.post(f"{url}/v1/embed", content=picture, headers=PNG))

        def all_embedded(url: str) -> list[NDArray[np.float64]]:
            return list(threads.map(partial(embedded, url), pictures))

        assert client.get(f"{cuda.url}/v1/info").json()["provider"] == "cuda"
        for found, wanted in zip(all_embedded(cuda.url), all_embedded(cpu.url), strict=True):
            assert found @ wanted > 0.9999
        say(capsys, "served", partial(all_embedded, cpu.url), partial(all_embedded, cuda.url))
