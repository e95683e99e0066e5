"""Pictures made by code: no licence, and every pixel known."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def quadrants(width: int = 300, height: int = 200) -> Image.Image:
    """Red, green / blue, yellow: shows any turn or flip."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[: height // 2, : width // 2] = (255, 0, 0)
    pixels[: height // 2, width // 2 :] = (0, 255, 0)
    pixels[height // 2 :, : width // 2] = (0, 0, 255)
    pixels[height // 2 :, width // 2 :] = (255, 255, 0)
    return Image.fromarray(pixels)


def noise(seed: int, width: int = 120, height: int = 90) -> Image.Image:
    """Smooth noise: different seeds give clearly different embeddings."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The image file's bytes."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def exif(orientation: int) -> Image.Exif:
    """EXIF that asks for a turn."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    """Rows of unit norm."""
    scaled: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)
    return scaled
