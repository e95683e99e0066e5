"""Bytes to pixels: encoded image -> uint8 (input_px, input_px, 3), RGB. Pure."""

import contextlib
import io
import itertools
import re
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.errors import ImageTooLarge, UndecodableImage
from service.manifest import Preprocessing

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

# Pillow's own guard is a process-wide number; ours is an argument, checked before a pixel is decoded.
Image.MAX_IMAGE_PIXELS = None

# Each scan of a progressive JPEG goes over all pixels, and sixteen bytes make one. Real ones have about ten.
_MAX_SCANS = 100
_SCAN = 0xFFDA
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # in a scan's data 0xFF is stuffed or a restart

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
_DRAFT_SPARE = 2  # that the filter has something to average: twice the side it scales to
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def decode(
    data: bytes,
    preprocessing: Preprocessing,
    max_pixels: int,
    holding: Callable[[int], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> NDArray[np.uint8]:
    """Decode, convert, resize, crop and turn one image.

    Returns uint8 (input_px, input_px, 3). Of an animated or multi-page image, the first frame.
    `holding` is entered with the number of pixels, known from the header, before one of them is decoded.
    Raises UndecodableImage, or ImageTooLarge where width x height is over `max_pixels`.
    """
    image = _open(data, max_pixels)
    if preprocessing.jpeg == "draft":
        least_px = _DRAFT_SPARE * preprocessing.resize_px
        image.draft(None, (least_px, least_px))  # of a JPEG, while it is being decoded; of others nothing
    with holding(image.width * image.height):
        return _square(image, preprocessing)


def _square(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    orientation = _load(image)
    if preprocessing.interpolation == "bilinear-no-antialias":
        return _sampled_square(_to_rgb(image), preprocessing)
    square = _centre_square(_to_rgb(image), preprocessing)
    # A centred square may be turned after it was cut: the same pixels, but far fewer of them.
    if preprocessing.exif == "apply" and orientation in _ROTATIONS:
        square = square.transpose(_ROTATIONS[orientation])
    return np.asarray(square)  # (input_px, input_px, 3) uint8


def decode_whole(data: bytes, exif: str, max_pixels: int) -> Image.Image:
    """The whole picture in RGB, neither resized nor cropped: what a training crop is cut from.

    Raises as `decode` does.
    """
    image = _open(data, max_pixels)
    orientation = _load(image)
    image = _to_rgb(image)
    if exif == "apply" and orientation in _ROTATIONS:
        image = image.transpose(_ROTATIONS[orientation])
    return image


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """The header is read, and no pixel."""
    # Pillow's decoders raise nearly anything on broken bytes (OSError, SyntaxError, struct.error, ...):
    # whatever comes out of these calls, here and below, says that the image is broken, as one error.
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:
        what = "no bytes were sent" if not data else "not an image of a known format"
        raise UndecodableImage(what) from error
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise ImageTooLarge(
            f"the image has {image.width} x {image.height} pixels", limit=max_pixels, got=pixels
        )
    # Of a JPEG within a TIFF, libtiff counts the scans itself, to the same limit.
    if image.format in ("JPEG", "MPO") and _too_many_scans(data):
        raise UndecodableImage(f"the JPEG has more than {_MAX_SCANS} scans")
    return image


def _too_many_scans(data: bytes) -> bool:
    # At even and at odd places: a quarter of the time that `data.count` takes.
    pairs = (np.frombuffer(data, ">u2", (len(data) - start) // 2, start) for start in (0, 1))
    seen = sum(int(np.count_nonzero(pair == _SCAN)) for pair in pairs)
    return seen > _MAX_SCANS and _scans(data) > _MAX_SCANS


def _scans(data: bytes) -> int:
    """How many scans the decoder would meet: those of previews, and of what follows the image, are others."""
    scans, found = 0, _MARKER.search(data, 2)
    while found and found[1] != b"\xd9":
        at, kind = found.end(), found[1][0]
        scans += kind == _SCAN & 0xFF
        # Segments that may hold anything, other images among it.
        skipped = int.from_bytes(data[at : at + 2], "big") if 0xE0 <= kind <= 0xEF or kind == 0xFE else 0
        found = _MARKER.search(data, at + skipped)
    return scans


def _load(image: Image.Image) -> int | None:
    """Decode all of it; returns its EXIF orientation."""
    try:
        image.load()
    except Exception as error:
        raise UndecodableImage(f"the {image.format} image is truncated or damaged") from error
    try:
        return image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # whole pixels with unreadable EXIF are still an image, one that is not turned
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return _by_tiles(image, lambda tile: _gray(np.asarray(tile) >> 8))
    if image.mode in ("I", "F"):  # 32 bits a pixel, of no fixed range: spread over what there is
        extremes = [(part.min(), part.max()) for part in map(_numbers, _tiles(image))]
        low, high = float(min(least for least, _ in extremes)), float(max(most for _, most in extremes))
        scale = 255 / (high - low) if high > low else 0
        return _by_tiles(image, lambda tile: _gray((_numbers(tile) - low) * scale))
    if image.has_transparency_data:
        return _by_tiles(image, _on_white)
    return image.convert("RGB")


def _by_tiles(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """The same as converting it whole, but what lies between is a tile and not a picture of four."""
    made = Image.new("RGB", image.size)
    for tile, box in zip(_tiles(image), _boxes(image), strict=True):
        made.paste(convert(tile), box)
    return made


def _tiles(image: Image.Image) -> Iterator[Image.Image]:
    return (image.crop(box) for box in _boxes(image))


def _boxes(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    for top, left in itertools.product(range(0, image.height, _TILE_PX), range(0, image.width, _TILE_PX)):
        yield left, top, min(left + _TILE_PX, image.width), min(top + _TILE_PX, image.height)


def _on_white(tile: Image.Image) -> Image.Image:
    layer = tile.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _numbers(tile: Image.Image) -> NDArray[np.float64]:
    return np.nan_to_num(np.asarray(tile, dtype=np.float64))


def _gray(values: NDArray[np.generic]) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def _centre_square(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    # Scaling to resize_px and then cutting input_px out of the middle is one resize of the box that
    # will be left, so the rest is never computed.
    px, short = preprocessing.input_px, min(image.size)
    sides = image.size if preprocessing.resize == "squash" else (short, short)
    width, height = (side * px / preprocessing.resize_px for side in sides)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    box = (left, top, left + width, top + height)
    return image.resize((px, px), _FILTERS[preprocessing.interpolation], box=box)


def _sampled_square(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """TensorFlow's bilinear resize, which blends four pixels however far it scales down, and a crop.

    The short side becomes resize_px, the long side is cut to whole pixels, and so is the crop's offset
    (as in UnED's reference code). TensorFlow keeps fractions; here they are rounded, at most 1/2 level.
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
    """Of each pixel that the crop keeps: the two source pixels, and the second's share. (crop_px,) each."""
    kept = (scaled_px - crop_px) // 2 + np.arange(crop_px)
    centres = np.clip((kept + 0.5) * (side_px / scaled_px) - 0.5, 0, side_px - 1)
    first = centres.astype(np.intp)
    return first, np.minimum(first + 1, side_px - 1), (centres - first).astype(np.float32)


def _blend(
    one: NDArray[np.generic], other: NDArray[np.generic], share: NDArray[np.float32]
) -> NDArray[np.float32]:
    start = one.astype(np.float32)
    return start + (other.astype(np.float32) - start) * share
