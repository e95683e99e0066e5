"""Bytes to pixels: encoded image -> uint8 (input_px, input_px, 3), RGB. Pure."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.errors import ImageTooLarge, UndecodableImage
from service.manifest import Preprocessing

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

# Pillow's own guard is a process-wide number; ours is an argument, checked before a pixel is decoded.
Image.MAX_IMAGE_PIXELS = None

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
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def decode(data: bytes, preprocessing: Preprocessing, max_pixels: int) -> NDArray[np.uint8]:
    """Decode, convert, resize, crop and turn one image.

    Returns uint8 (input_px, input_px, 3). Of an animated or multi-page image, the first frame.
    Raises UndecodableImage, or ImageTooLarge where width x height is over `max_pixels`.
    """
    image, orientation = _load(data, max_pixels)
    square = _centre_square(_to_rgb(image), preprocessing)
    # A centred square may be turned after it was cut: the same pixels, but far fewer of them.
    if preprocessing.exif == "apply" and orientation in _ROTATIONS:
        square = square.transpose(_ROTATIONS[orientation])
    return np.asarray(square)  # (input_px, input_px, 3) uint8


def decode_whole(data: bytes, exif: str, max_pixels: int) -> Image.Image:
    """The whole picture in RGB, neither resized nor cropped: what a training crop is cut from.

    Raises as `decode` does.
    """
    image, orientation = _load(data, max_pixels)
    image = _to_rgb(image)
    if exif == "apply" and orientation in _ROTATIONS:
        image = image.transpose(_ROTATIONS[orientation])
    return image


def _load(data: bytes, max_pixels: int) -> tuple[Image.Image, int | None]:
    # Pillow's decoders raise nearly anything on broken bytes (OSError, SyntaxError, struct.error, ...):
    # whatever comes out of these calls says that the image is broken, so all of it is one error.
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
    try:
        image.load()
    except Exception as error:
        raise UndecodableImage(f"the {image.format} image is truncated or damaged") from error
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # whole pixels with unreadable EXIF are still an image, one that is not turned
        orientation = None
    return image, orientation


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return _gray(np.asarray(image) >> 8)
    if image.mode in ("I", "F"):  # 32 bits a pixel, of no fixed range: spread over what there is
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        span = float(values.max() - values.min())
        return _gray((values - values.min()) * (255 / span) if span else values * 0)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _gray(values: NDArray[np.generic]) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def _centre_square(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    # Scaling the short side to resize_px and then cutting input_px out of the middle is one resize
    # of the box that will be left, so the rest is never computed.
    side = min(image.size) * preprocessing.input_px / preprocessing.resize_px
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    px = preprocessing.input_px
    return image.resize((px, px), _FILTERS[preprocessing.interpolation], box=box)
