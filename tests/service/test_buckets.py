"""Batch sizes on other providers than the CPU, and the choice of a session, recorded by stub sessions."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from service.errors import EncoderFailed, StartupError
from service.inference.budget import Budget
from service.inference.encoder import Encoder, buckets
from service.inference.pipeline import Pipeline
from service.manifest import Manifest
from service.metrics import Metrics, ModelMetrics
from service.settings import Settings


@pytest.mark.parametrize(
    ("max_batch", "sizes"),
    [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8)), (9, (1, 2, 4, 8, 9))],
)
def test_powers_of_two_and_the_largest(max_batch: int, sizes: tuple[int, ...]) -> None:
    assert buckets(max_batch) == sizes


class Node(NamedTuple):
    """An input or output of a graph."""

    name: str
    type: str
    shape: list[object]


class Session:
    """Stands in for an ONNX Runtime session on a GPU: an embedding repeats the first pixel's red."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self.sizes: list[int] = []

    def get_inputs(self) -> list[Node]:
        px = self._manifest.input_px
        return [Node("pixels", "tensor(uint8)", ["N", px, px, 3])]

    def get_outputs(self) -> list[Node]:
        return [Node("embedding", "tensor(float)", ["N", self._manifest.dim])]

    def run(self, _: list[str], feed: dict[str, NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        self.sizes.append(len(feed["pixels"]))
        return [np.repeat(feed["pixels"][:, 0, 0, :1].astype(np.float32), self._manifest.dim, axis=1)]


class SmallSession(Session):
    """Fails on more than four images."""

    def run(self, names: list[str], feed: dict[str, NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        if len(feed["pixels"]) > 4:
            raise MemoryError
        return super().run(names, feed)


def test_a_max_batch_too_large_for_the_memory_is_a_startup_error(zoo_model: Path, manifest: Manifest) -> None:
    session = SmallSession(manifest)
    with pytest.raises(StartupError, match="UIE_MAX_BATCH=6"):
        Encoder(zoo_model, manifest, "other", threads=1, max_batch=6, session_factory=lambda *_: session)


@pytest.mark.parametrize(
    ("provider", "warmed", "later"),
    [("other", [1, 2, 4, 6], [1, 2, 4, 4, 6, 6, 6, 1]), ("cpu", [], [1] * sum(range(1, 8)))],
)
def test_batches_are_padded_to_sizes_that_ran_at_start_or_split_on_a_cpu(
    zoo_model: Path, manifest: Manifest, provider: str, warmed: list[int], later: list[int]
) -> None:
    session = Session(manifest)
    encoder = Encoder(
        zoo_model, manifest, provider, threads=1, max_batch=6, session_factory=lambda *_: session
    )
    assert session.sizes == warmed
    for count in range(1, 8):
        pixels = np.zeros((count, manifest.input_px, manifest.input_px, 3), dtype=np.uint8)
        pixels[:, 0, 0, 0] = range(count)
        assert encoder.encode(pixels)[:, 0].tolist() == list(range(count))
    assert session.sizes[len(warmed) :] == later


def test_only_a_single_image_in_flight_uses_all_threads(zoo_model: Path, manifest: Manifest) -> None:
    sessions: dict[int, Session] = {}

    def open_stub(_: Path, __: str, threads: int) -> Session:
        return sessions.setdefault(threads, Session(manifest))

    settings = Settings(threads=4, lanes=2)
    encoder = Encoder(zoo_model, manifest, "cpu", 4, 2, session_factory=open_stub)
    pipeline = Pipeline(encoder, settings, ModelMetrics(Metrics(), manifest.name), Budget(10**9))
    image = np.zeros((1, manifest.input_px, manifest.input_px, 3), dtype=np.uint8)
    for in_flight in (1, 2):
        pipeline.in_flight = in_flight
        encoder.encode(image)
    encoder.encode(np.concatenate([image, image]))
    pipeline.close()
    assert {threads: session.sizes for threads, session in sessions.items()} == {4: [1], 2: [1, 1, 1]}


class WideSession(Session):
    """Returns two rows for each image."""

    def run(self, names: list[str], feed: dict[str, NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        return [np.repeat(super().run(names, feed)[0], 2, axis=0)]


@pytest.mark.parametrize("provider", ["cpu", "other"])
def test_another_number_of_rows_than_images_is_an_error(
    zoo_model: Path, manifest: Manifest, provider: str
) -> None:
    """The rows would go to the wrong images."""
    session = WideSession(manifest)
    with pytest.raises((EncoderFailed, StartupError), match="1 images in, embeddings"):
        Encoder(zoo_model, manifest, provider, threads=1, session_factory=lambda *_: session).encode(
            np.zeros((3, manifest.input_px, manifest.input_px, 3), dtype=np.uint8)
        )
