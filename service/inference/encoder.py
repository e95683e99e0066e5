"""Pixels to embeddings: uint8 (N, H, W, 3) -> float32 (N, dim), unit norm, by ONNX Runtime."""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.errors import EncoderFailed, StartupError
from service.manifest import Manifest

_SUFFIX = "ExecutionProvider"


def available_providers() -> dict[str, str]:
    """What this wheel of ONNX Runtime was built with: our names (cpu, cuda, openvino, ...) to its own."""
    names = {name.removesuffix(_SUFFIX).lower(): name for name in ort.get_available_providers()}
    names.pop("azure", None)  # in every CPU wheel; it sends to a remote endpoint, and computes nothing
    return names


class Encoder:
    """A model in ONNX Runtime, for up to `lanes` threads at a time.

    On a CPU each lane computes with its share of the threads, so that no core waits at the end of every
    layer for the others; a lone image has all of them, by a second session (docs/decisions/01). Any other
    provider prepares each size of a batch that is new to it: it sees few, and those before the start is over.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        provider: str,
        threads: int,
        lanes: int = 1,
        max_batch: int = 1,
    ) -> None:
        """Raises StartupError where the provider asked for is not active, or cannot run `max_batch`."""
        wanted = available_providers().get(provider)
        if wanted is None:
            raise StartupError(
                f"provider {provider!r} is not available here; available: {', '.join(available_providers())}"
            )
        if provider in ("cuda", "tensorrt"):
            ort.preload_dlls()  # CUDA and cuDNN, from the packages that came with the wheel
        self._wide = self._narrow = _session(folder, wanted, threads)
        if provider == "cpu" and lanes > 1:
            self._narrow = _session(folder, wanted, max(1, threads // lanes))
        self._busy = 0
        self._lock = threading.Lock()
        active = self._wide.get_providers()[0]
        if active != wanted:  # ONNX Runtime falls back to the CPU without a word
            raise StartupError(f"provider {provider!r} was asked for, but {active} is active")
        self.manifest = manifest
        self._check_graph(folder)
        self._buckets = buckets(max_batch) if provider != "cpu" else ()
        for size in self._buckets:
            try:
                self.encode(np.zeros((size, manifest.input_px, manifest.input_px, 3), dtype=np.uint8))
            except EncoderFailed as error:
                raise StartupError(f"UIE_MAX_BATCH={max_batch} is too much: {error.detail}") from error

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (N, H, W, 3) -> float32 (N, dim), unit norm. Raises EncoderFailed."""
        with self._lock:
            session = self._wide if self._busy == 0 and len(pixels) == 1 else self._narrow
            self._busy += 1
        try:
            padded = _padded(pixels, self._buckets)
            (embeddings,) = session.run(["embedding"], {"pixels": padded})
        except Exception as error:  # the bindings raise several unrelated classes
            raise EncoderFailed(f"inference failed on a batch of {len(pixels)}") from error
        finally:
            with self._lock:
                self._busy -= 1
        if embeddings.shape != (len(padded), self.manifest.dim):
            raise EncoderFailed(f"{len(padded)} images in, embeddings {embeddings.shape} out")
        return np.asarray(embeddings[: len(pixels)], dtype=np.float32)

    def _check_graph(self, folder: Path) -> None:
        px, dim = self.manifest.input_px, self.manifest.dim
        inputs = {node.name: (node.type, node.shape[1:]) for node in self._wide.get_inputs()}
        outputs = {node.name: (node.type, node.shape[1:]) for node in self._wide.get_outputs()}
        if inputs != {"pixels": ("tensor(uint8)", [px, px, 3])} or outputs != {
            "embedding": ("tensor(float)", [dim])
        }:
            raise StartupError(
                f"{folder / 'model.onnx'} does not take uint8 (N, {px}, {px}, 3) and give float32 (N, {dim})"
            )


def buckets(max_batch: int) -> tuple[int, ...]:
    """Sizes of a batch: powers of two, and the largest."""
    return (*(1 << power for power in range((max_batch - 1).bit_length())), max_batch)


def _padded(pixels: NDArray[np.uint8], sizes: Sequence[int]) -> NDArray[np.uint8]:
    missing = min((size for size in sizes if size >= len(pixels)), default=len(pixels)) - len(pixels)
    return (
        np.concatenate([pixels, np.zeros_like(pixels, shape=(missing, *pixels.shape[1:]))])
        if missing
        else pixels
    )


def _session(folder: Path, provider: str, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Spinning threads would take the cores that decode the next batch.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(folder / "model.onnx", options, providers=[provider])
