"""Image decoding and preprocessing: encoded image -> uint8 (input_px, input_px, 3), RGB."""

import io
import itertools
import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.errors import ImageTooLarge, UndecodableImage
from service.manifest import Preprocessing

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

# Pillow applies its own limit, which `_open` sets, before it allocates anything: for a GIF already as it
# reads the header. A small GIF whose first frame is larger than its screen took 8 GB and 11 s without it.
warnings.simplefilter("error", Image.DecompressionBombWarning)
_BOMB = re.compile(r"\((\d+) pixels\)")

# Each scan of a progressive JPEG is a pass over all pixels, for only 16 bytes. Real files have about ten.
_MAX_SCANS = 100
_SCAN = 0xFFDA
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # excludes stuffed 0xFF and restarts in a scan's data

_EXIF_ORIENTATION = 0x0112
_ROTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TILE_PX = 1024
_DRAFT_SCALE = 2  # times the resized side, so that the filter still averages several pixels
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def decode(data: bytes, preprocessing: Preprocessing, max_pixels: int) -> NDArray[np.uint8]:
    """Decode, convert, resize, crop and rotate an image to uint8 (input_px, input_px, 3).

    Takes the first frame of an animated or multi-page image.
    Raises UndecodableImage, or ImageTooLarge if width x height exceeds `max_pixels`.
    """
    _, decode_pixels = read_header(data, preprocessing, max_pixels)
    return decode_pixels()


def read_header(
    data: bytes, preprocessing: Preprocessing, max_pixels: int
) -> tuple[int, Callable[[], NDArray[np.uint8]]]:
    """Return the number of pixels to decode, and the function that does the rest of `decode`.

    Raises the same errors as `decode`.
    """
    image = _open(data, max_pixels)
    if preprocessing.jpeg == "draft":
        min_px = _DRAFT_SCALE * preprocessing.resize_px
        image.draft(None, (min_px, min_px))  # has an effect on JPEG only
    return image.width * image.height, partial(_decode_pixels, image, preprocessing)


def _decode_pixels(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    orientation = _load(image)
    if preprocessing.interpolation == "bilinear-no-antialias":
        return _sampled_square(_to_rgb(image), preprocessing)
    square = _centre_square(_to_rgb(image), preprocessing)
    # Rotating the centre crop gives the same pixels as rotating the image, and touches far fewer.
    if preprocessing.exif == "apply" and orientation in _ROTATIONS:
        square = square.transpose(_ROTATIONS[orientation])
    return np.asarray(square)  # (input_px, input_px, 3) uint8


def decode_rgb(data: bytes, exif: str, max_pixels: int) -> Image.Image:
    """Decode an image to RGB without resizing or cropping, for training augmentation.

    Raises the same errors as `decode`.
    """
    image = _open(data, max_pixels)
    orientation = _load(image)
    image = _to_rgb(image)
    if exif == "apply" and orientation in _ROTATIONS:
        image = image.transpose(_ROTATIONS[orientation])
    return image


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header only."""
    # Pillow's decoders raise unrelated classes on broken bytes (OSError, SyntaxError, struct.error, ...),
    # so every exception of these calls, here and below, means that the image is broken.
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        match = _BOMB.search(str(error))
        raise _too_large(int(match[1]) if match else 0, max_pixels) from error
    except Exception as error:
        reason = f"not an image of a known format: {', '.join(FORMATS)}" if data else "the image is empty"
        raise UndecodableImage(reason) from error
    if (pixels := image.width * image.height) > max_pixels:  # whatever the process does with warnings
        raise _too_large(pixels, max_pixels)
    # libtiff applies the same limit to a JPEG within a TIFF.
    if image.format in ("JPEG", "MPO") and _too_many_scans(data):
        raise UndecodableImage(f"the JPEG has more than {_MAX_SCANS} scans")
    return image


def _too_large(got: int, max_pixels: int) -> ImageTooLarge:
    return ImageTooLarge("the image has too many pixels", limit=max_pixels, got=got)


def _too_many_scans(data: bytes) -> bool:
    # Counting at even and at odd offsets takes a quarter of the time of `data.count`.
    words = (np.frombuffer(data, ">u2", (len(data) - start) // 2, start) for start in (0, 1))
    upper_bound = sum(int(np.count_nonzero(part == _SCAN)) for part in words)
    return upper_bound > _MAX_SCANS and _count_scans(data) > _MAX_SCANS


def _count_scans(data: bytes) -> int:
    """Count the scans that the decoder reads: not those of embedded previews, nor those after the image."""
    scans, marker = 0, _MARKER.search(data, 2)
    while marker and marker[1] != b"\xd9":
        end, code = marker.end(), marker[1][0]
        scans += code == _SCAN & 0xFF
        # APPn and COM segments may contain anything, including other images.
        skipped = int.from_bytes(data[end : end + 2], "big") if 0xE0 <= code <= 0xEF or code == 0xFE else 0
        marker = _MARKER.search(data, end + skipped)
    return scans


def _load(image: Image.Image) -> int | None:
    """Decode all pixels and return the EXIF orientation."""
    try:
        image.load()
    except Exception as error:
        raise UndecodableImage(f"the {image.format} image is truncated or damaged") from error
    try:
        return image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # an image with unreadable EXIF is served without rotation
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return _by_tiles(image, lambda tile: _gray(np.asarray(tile) >> 8))
    if image.mode in ("I", "F"):  # 32 bits per pixel without a fixed range: scaled to the image's range
        ranges = [(values.min(), values.max()) for values in (_finite(tile) for tile, _ in _tiles(image))]
        low, high = float(min(low for low, _ in ranges)), float(max(high for _, high in ranges))
        scale = 255 / (high - low) if high > low else 0
        return _by_tiles(image, lambda tile: _gray((_finite(tile) - low) * scale))
    if image.has_transparency_data:
        return _by_tiles(image, _on_white)
    return image.convert("RGB")


def _by_tiles(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert tile by tile, so that intermediate copies have the size of a tile."""
    converted = Image.new("RGB", image.size)
    for tile, corner in _tiles(image):
        converted.paste(convert(tile), corner)
    return converted


def _tiles(image: Image.Image) -> Iterator[tuple[Image.Image, tuple[int, int]]]:
    for top, left in itertools.product(range(0, image.height, _TILE_PX), range(0, image.width, _TILE_PX)):
        right, bottom = min(left + _TILE_PX, image.width), min(top + _TILE_PX, image.height)
        yield image.crop((left, top, right, bottom)), (left, top)


def _on_white(tile: Image.Image) -> Image.Image:
    layer = tile.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _finite(tile: Image.Image) -> NDArray[np.float64]:
    return np.nan_to_num(np.asarray(tile, dtype=np.float64))


def _gray(values: NDArray[np.generic]) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def _centre_square(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    # Scaling to resize_px and cropping the centre input_px equals one resize of the box that remains.
    px, short = preprocessing.input_px, min(image.size)
    sides = image.size if preprocessing.resize == "squash" else (short, short)
    width, height = (side * px / preprocessing.resize_px for side in sides)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    box = (left, top, left + width, top + height)
    return image.resize((px, px), _FILTERS[preprocessing.interpolation], box=box)


def _sampled_square(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Resize as TensorFlow's bilinear filter does, which always blends four pixels, then crop the centre.

    The short side becomes resize_px; the long side and the crop's offset are truncated to integers, as in
    UnED's reference code. Values are rounded, which differs from TensorFlow's floats by at most 1/2 level.
    """
    px, short = preprocessing.input_px, min(image.size)
    (left, right, across), (top, bottom, down) = (
        _taps(side, int(side / short * preprocessing.resize_px), px) for side in image.size
    )
    pixels = np.asarray(image)
    upper, lower = (
        _blend(pixels[rows[:, None], left], pixels[rows[:, None], right], across[:, None])
        for rows in (top, bottom)
    )  # (px, px, 3) float32 each
    return np.rint(_blend(upper, lower, down[:, None, None])).astype(np.uint8)


def _taps(
    side_px: int, scaled_px: int, crop_px: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Return both source pixels of each cropped pixel, and the weight of the second. (crop_px,) each."""
    cropped = (scaled_px - crop_px) // 2 + np.arange(crop_px)
    centres = np.clip((cropped + 0.5) * (side_px / scaled_px) - 0.5, 0, side_px - 1)
    first = centres.astype(np.intp)
    return first, np.minimum(first + 1, side_px - 1), (centres - first).astype(np.float32)


def _blend(
    first: NDArray[np.generic], second: NDArray[np.generic], weight: NDArray[np.float32]
) -> NDArray[np.float32]:
    start = first.astype(np.float32)
    return start + (second.astype(np.float32) - start) * weight
