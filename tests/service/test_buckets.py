"""Few sizes of a batch for what is no CPU, by a session that says what it was given."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.errors import StartupError
from service.inference import encoder
from service.inference.encoder import Encoder, buckets
from service.manifest import Manifest


@pytest.mark.parametrize(
    ("max_batch", "sizes"),
    [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8)), (9, (1, 2, 4, 8, 9))],
)
def test_powers_of_two_and_the_largest(max_batch: int, sizes: tuple[int, ...]) -> None:
    assert buckets(max_batch) == sizes


class Session:
    """In the place of ONNX Runtime's on a GPU: an embedding is the first pixel's red."""

    def __init__(self, manifest: Manifest, provider: str) -> None:
        self._manifest = manifest
        self._provider = provider
        self.sizes: list[int] = []

    def get_providers(self) -> list[str]:
        return [self._provider]

    def run(self, _: list[str], feed: dict[str, NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        self.sizes.append(len(feed["pixels"]))
        return [np.repeat(feed["pixels"][:, 0, 0, :1].astype(np.float32), self._manifest.dim, axis=1)]


class Small(Session):
    """Has no memory for more than four."""

    def run(self, names: list[str], feed: dict[str, NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        if len(feed["pixels"]) > 4:
            raise MemoryError
        return super().run(names, feed)


def with_session(monkeypatch: pytest.MonkeyPatch, session: Session, provider: str) -> None:
    monkeypatch.setattr(encoder, "_session", lambda *_: session)
    monkeypatch.setattr(encoder, "available_providers", lambda: {provider: provider})
    monkeypatch.setattr(Encoder, "_check_graph", lambda *_: None)


def test_a_batch_that_the_memory_does_not_hold_is_a_refusal_to_start(
    zoo_model: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_session(monkeypatch, Small(manifest, "other"), "other")
    with pytest.raises(StartupError, match="UIE_MAX_BATCH=6 is too much: inference failed on a batch of 6"):
        Encoder(zoo_model, manifest, "other", threads=1, max_batch=6)


@pytest.mark.parametrize(
    ("provider", "warmed", "then"),
    [("other", [1, 2, 4, 6], [1, 2, 4, 4, 6, 6, 7]), ("cpu", [], [1, 2, 3, 4, 5, 6, 7])],
)
def test_batches_are_filled_up_to_sizes_that_were_warmed(
    zoo_model: Path,
    manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    provider: str,
    warmed: list[int],
    then: list[int],
) -> None:
    session = Session(manifest, provider)
    with_session(monkeypatch, session, provider)
    made = Encoder(zoo_model, manifest, provider, threads=1, max_batch=6)
    assert session.sizes == warmed
    for count in range(1, 8):
        pixels = np.zeros((count, manifest.input_px, manifest.input_px, 3), dtype=np.uint8)
        pixels[:, 0, 0, 0] = range(count)
        assert made.encode(pixels)[:, 0].tolist() == list(range(count))
    assert session.sizes[len(warmed) :] == then
