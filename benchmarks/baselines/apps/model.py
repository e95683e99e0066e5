"""The service's model for servers in other frameworks, with as many threads as the service uses."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from service.inference.encoder import open_session
from service.inference.images import decode
from service.manifest import load_manifest
from service.settings import load_settings

PATH = "/v1/embed"  # an image as the raw body -> {"embedding": [...]}
_POLL_S = 0.5

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class PlainModel:
    """Decoding as in the service, and inference on the calling thread alone."""

    decode: Callable[[bytes], Pixels]
    infer: Callable[[Pixels], NDArray[np.float32]]  # uint8 (N, H, W, 3) -> float32 (N, dim)


def load_model() -> PlainModel:
    """Load the first model of `UIE_MODEL`. Raises StartupError."""
    settings = load_settings()
    folder = settings.model_folders[0]
    manifest = load_manifest(folder)
    session = open_session(folder, settings.provider, threads=1)

    def infer(pixels: Pixels) -> NDArray[np.float32]:
        (embeddings,) = session.run(["embedding"], {"pixels": pixels})
        return np.asarray(embeddings, dtype=np.float32)

    decoder = partial(decode, preprocessing=manifest.preprocessing, max_pixels=settings.max_image_pixels)
    return PlainModel(decoder, infer)


def threads() -> int:
    """Return the number of threads that the service uses. Raises SettingsError."""
    return load_settings().threads


def stop_with_parent() -> None:
    """Send this process a SIGTERM when its parent dies, so that no server outlives the harness."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
