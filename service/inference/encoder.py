"""Inference in ONNX Runtime: uint8 (N, H, W, 3) -> float32 (N, dim), unit norm."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.errors import EncoderFailed, StartupError
from service.manifest import Manifest

_SUFFIX = "ExecutionProvider"


def available_providers() -> dict[str, str]:
    """Providers of this build of ONNX Runtime: short name (cpu, cuda, openvino, ...) to full name."""
    names = {name.removesuffix(_SUFFIX).lower(): name for name in ort.get_available_providers()}
    names.pop("azure", None)  # in every CPU wheel, but only forwards to a remote endpoint
    return names


def open_session(folder: Path, provider: str, threads: int) -> ort.InferenceSession:
    """Load `folder/model.onnx`. Raises StartupError if the provider is unavailable or not active."""
    available = available_providers()
    if provider not in available:
        raise StartupError(f"provider {provider!r} is not available here; available: {', '.join(available)}")
    if provider in ("cuda", "tensorrt"):
        ort.preload_dlls()  # CUDA and cuDNN, from the packages installed with the wheel
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Spinning threads would take the cores that decode the next batch.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(folder / "model.onnx", options, providers=[available[provider]])
    active = session.get_providers()[0]
    if active != available[provider]:  # ONNX Runtime silently falls back to the CPU
        raise StartupError(f"provider {provider!r} was requested, but {active} is active")
    return session


class Encoder:
    """A model in ONNX Runtime, for up to `lanes` concurrent calls.

    On a CPU each concurrent inference uses its share of the threads, so that no core idles at the end of
    each layer; a single image in flight uses all threads, through a second session (docs/decisions/01). The
    images of a batch run one after the other: the layers of several do not fit a CPU's caches. Other
    providers prepare for each new batch size, so batches are padded to a few sizes, all run once at start.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        provider: str,
        threads: int,
        lanes: int = 1,
        max_batch: int = 1,
        session_factory: Callable[[Path, str, int], ort.InferenceSession] = open_session,
    ) -> None:
        """Raises StartupError if the provider is not active, or cannot run `max_batch` images."""
        self._wide = self._narrow = session_factory(folder, provider, threads)
        if provider == "cpu" and lanes > 1:
            self._narrow = session_factory(folder, provider, max(1, threads // lanes))
        self._running = 0
        self.crowded: Callable[[], bool] = lambda: False  # True while other images need the cores
        self._lock = threading.Lock()
        self.manifest = manifest
        self._check_graph(folder)
        size = self._wide.get_inputs()[0].shape[0]
        self.fixed_batch: int | None = size if isinstance(size, int) else None  # None: of any size
        if self.fixed_batch:
            self._buckets: tuple[int, ...] = (self.fixed_batch,)
        else:
            self._buckets = buckets(max_batch) if provider != "cpu" else (1,)
        for size in self._buckets if provider != "cpu" or self.fixed_batch else ():
            try:
                self.encode(np.zeros((size, manifest.input_px, manifest.input_px, 3), dtype=np.uint8))
            except EncoderFailed as error:
                raise StartupError(f"UIE_MAX_BATCH={max_batch} is too large: {error.detail}") from error

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (N, H, W, 3) -> float32 (N, dim), unit norm. Raises EncoderFailed."""
        with self._lock:
            single = len(pixels) == 1 and self._running == 0 and not self.crowded()
            session = self._wide if single else self._narrow
            self._running += 1
        try:
            parts = list(self._parts(pixels))
            runs = [session.run(["embedding"], {"pixels": part})[0] for part in parts]
        except Exception as error:  # the bindings raise several unrelated classes
            raise EncoderFailed(f"inference failed on a batch of {len(pixels)}") from error
        finally:
            with self._lock:
                self._running -= 1
        for part, run in zip(parts, runs, strict=True):
            if run.shape != (len(part), self.manifest.dim):
                raise EncoderFailed(f"{len(part)} images in, embeddings {run.shape} out")
        return np.asarray(np.concatenate(runs)[: len(pixels)], dtype=np.float32)

    def _parts(self, pixels: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
        """Yield the images of each run. Only the last run is padded."""
        largest = self._buckets[-1]
        for start in range(0, len(pixels), largest):
            part = pixels[start : start + largest]
            missing = next(size for size in self._buckets if size >= len(part)) - len(part)
            yield np.pad(part, [(0, missing), (0, 0), (0, 0), (0, 0)]) if missing else part

    def _check_graph(self, folder: Path) -> None:
        px, dim = self.manifest.input_px, self.manifest.dim
        nodes = [*self._wide.get_inputs(), *self._wide.get_outputs()]
        expected = [("pixels", "tensor(uint8)", [px, px, 3]), ("embedding", "tensor(float)", [dim])]
        if [(node.name, node.type, node.shape[1:]) for node in nodes] != expected:
            raise StartupError(
                f"{folder / 'model.onnx'} does not map uint8 (N, {px}, {px}, 3) to float32 (N, {dim})"
            )


def buckets(max_batch: int) -> tuple[int, ...]:
    """Batch sizes to pad to: powers of two below `max_batch`, and `max_batch`."""
    return (*(1 << power for power in range((max_batch - 1).bit_length())), max_batch)
