"""Decoding of every kind of image that a client may send."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.errors import ImageTooLarge, UndecodableImage
from service.inference.images import FORMATS, decode, read_header
from service.manifest import fingerprint
from tests.support.images import MAX_PIXELS, SQUARE, encode, exif, noise, pixels_of, quadrants


def corners(pixels: NDArray[np.uint8]) -> list[tuple[int, ...]]:
    """Top left, top right, bottom left, bottom right."""
    return [tuple(int(v) for v in pixels[y, x]) for y in (8, 55) for x in (8, 55)]


RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
WHITE = (255, 255, 255)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_decodes_to_the_same_image(kind: str) -> None:
    options: dict[str, Any] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}, "AVIF": {"quality": 95}}
    pixels = pixels_of(encode(quadrants(), kind, **options.get(kind, {})))
    assert pixels.shape == (64, 64, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(corners(pixels), [RED, GREEN, BLUE, YELLOW], atol=12)


def test_resize_and_crop_follow_the_manifest() -> None:
    """The reference resizes the short side to 80, then crops the centre 64, in Pillow."""
    preprocessing = SQUARE.model_copy(update={"resize_px": 80})
    image = quadrants(240, 160)
    scaled = image.resize((120, 80), Image.Resampling.BICUBIC).crop((28, 8, 92, 72))
    difference = np.abs(pixels_of(encode(image), preprocessing).astype(int) - np.asarray(scaled).astype(int))
    assert difference.max() <= 2


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [RED, GREEN, BLUE, YELLOW]),
        (2, [GREEN, RED, YELLOW, BLUE]),
        (3, [YELLOW, BLUE, GREEN, RED]),
        (4, [BLUE, YELLOW, RED, GREEN]),
        (5, [RED, BLUE, GREEN, YELLOW]),
        (6, [BLUE, RED, YELLOW, GREEN]),
        (7, [YELLOW, GREEN, BLUE, RED]),
        (8, [GREEN, YELLOW, RED, BLUE]),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_exif_rotation_is_applied(kind: str, orientation: int, expected: list[tuple[int, ...]]) -> None:
    data = encode(quadrants(), kind, exif=exif(orientation))
    np.testing.assert_allclose(corners(pixels_of(data)), expected, atol=40)


def test_exif_rotation_is_ignored_if_the_manifest_says_so() -> None:
    data = encode(quadrants(), "PNG", exif=exif(3))
    ignoring = SQUARE.model_copy(update={"exif": "ignore"})
    assert corners(pixels_of(data, ignoring)) == [RED, GREEN, BLUE, YELLOW]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow warns and continues
def test_unreadable_exif_causes_no_rotation() -> None:
    data = encode(quadrants(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\xff\xff")
    np.testing.assert_allclose(corners(pixels_of(data)), [RED, GREEN, BLUE, YELLOW], atol=40)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_becomes_white(mode: str) -> None:
    image = Image.new("RGBA", (100, 100), (200, 0, 0, 0)).convert(mode)
    assert corners(pixels_of(encode(image, "TIFF" if mode == "PA" else "PNG"))) == [WHITE] * 4


def test_transparency_of_a_palette_becomes_white() -> None:
    image = Image.new("P", (100, 100), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    assert corners(pixels_of(encode(image))) == [RED] * 4
    assert corners(pixels_of(encode(image, transparency=1))) == [WHITE] * 4


def test_half_transparent_black_becomes_gray() -> None:
    pixels = pixels_of(encode(Image.new("RGBA", (10, 10), (0, 0, 0, 128))))
    np.testing.assert_allclose(pixels, 127, atol=1)


def test_cmyk_is_converted() -> None:
    data = encode(quadrants().convert("CMYK"), "JPEG", quality=95)
    np.testing.assert_allclose(corners(pixels_of(data)), [RED, GREEN, BLUE, YELLOW], atol=12)


def test_sixteen_bits_keep_their_high_byte() -> None:
    values = np.full((50, 50), 0x80FF, dtype=np.uint16)
    assert (pixels_of(encode(Image.fromarray(values))) == 0x80).all()


def test_sixteen_bit_colour() -> None:
    """The PNG is assembled here because Pillow cannot write this kind."""
    row = b"\0" + struct.pack(">3H", 0xFF00, 0x8000, 0x0100) * 4

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">2I5B", 4, 4, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    data += chunk(b"IDAT", zlib.compress(row * 4)) + chunk(b"IEND", b"")
    np.testing.assert_allclose(pixels_of(data), [[[0xFF, 0x80, 0x01]]] * np.ones((64, 64, 1)), atol=1)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_thirty_two_bits_are_scaled_to_their_range(mode: str) -> None:
    ramp = np.linspace(-7, 100_000, 100).reshape(1, 100).repeat(100, axis=0)
    image = Image.fromarray(ramp.astype(np.int32 if mode == "I" else np.float32))
    assert image.mode == mode
    pixels = pixels_of(encode(image, "TIFF"))
    assert pixels[0, 0, 0] < 5
    assert pixels[0, -1, 0] > 250


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG", "AVIF"])
def test_the_first_of_many_frames_is_decoded(kind: str) -> None:
    first, second = Image.new("RGB", (80, 80), RED), Image.new("RGB", (80, 80), BLUE)
    data = encode(first, kind, save_all=True, append_images=[second])
    np.testing.assert_allclose(corners(pixels_of(data)), [RED] * 4, atol=12)


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_a_single_pixel_is_an_image(mode: str) -> None:
    assert (pixels_of(encode(Image.new(mode, (1, 1), "white"))) == 255).all()


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1)])
def test_extreme_shapes(size: tuple[int, int]) -> None:
    assert pixels_of(encode(Image.new("RGB", size, RED))).shape == (64, 64, 3)


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_images_are_refused(kind: str) -> None:
    data = encode(Image.effect_noise((300, 200), 90).convert("RGB"), kind)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(UndecodableImage):
            pixels_of(data[: int(len(data) * share)])


@pytest.mark.parametrize("data", [b"", b"\0", b"hello", b"<svg/>", b"%PDF-1.4", b"\x89PNG\r\n\x1a\n"])
def test_other_data_than_images_is_refused(data: bytes) -> None:
    with pytest.raises(UndecodableImage):
        pixels_of(data)


def test_the_pixel_limit_applies_before_decoding() -> None:
    """The file is a header of 400 million pixels without data."""
    stream = io.BytesIO(encode(Image.new("L", (8, 8))))
    data = bytearray(stream.getvalue())
    data[16:24] = struct.pack(">2I", 20_000, 20_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    with pytest.raises(ImageTooLarge) as refusal:
        pixels_of(bytes(data))
    assert refusal.value.members == {"limit": MAX_PIXELS, "got": 400_000_000}


def test_the_pixel_limit_is_exact() -> None:
    data = encode(Image.new("L", (40, 25)))
    decode(data, SQUARE, 1000)
    with pytest.raises(ImageTooLarge):
        decode(data, SQUARE, 999)


def test_the_header_gives_the_number_of_pixels_before_they_are_decoded() -> None:
    assert read_header(encode(noise(1, 30, 20)), SQUARE, 10**6)[0] == 600
    pixels, decode_pixels = read_header(encode(noise(1, 30, 20), "JPEG")[:-50], SQUARE, 10**6)
    assert pixels == 600
    with pytest.raises(UndecodableImage):
        decode_pixels()


@pytest.mark.parametrize(
    ("size", "kind", "decoded_px"),
    [
        ((1100, 520), "JPEG", 275 * 130),  # at 1/4 both sides are at least twice 64, at 1/8 not
        ((1100, 500), "JPEG", 550 * 250),
        ((250, 250), "JPEG", 250 * 250),
        ((1100, 520), "PNG", 1100 * 520),
    ],
)
def test_large_jpegs_are_decoded_at_reduced_size_if_the_manifest_says_so(
    size: tuple[int, int], kind: str, decoded_px: int
) -> None:
    data = encode(noise(1, 55, 26).resize(size), kind)
    draft = SQUARE.model_copy(update={"jpeg": "draft"})
    pixels, decode_reduced = read_header(data, draft, MAX_PIXELS)
    assert pixels == decoded_px
    reduced, full = decode_reduced(), decode(data, SQUARE, MAX_PIXELS)
    assert np.abs(reduced.astype(int) - full).mean() < 2


def test_the_default_jpeg_decoding_is_not_serialized_so_that_fingerprints_stay_valid() -> None:
    assert "jpeg" not in SQUARE.model_dump()
    draft = SQUARE.model_copy(update={"jpeg": "draft"})
    assert draft.model_dump()["jpeg"] == "draft"
    assert fingerprint("a", draft, "fp32") != fingerprint("a", SQUARE, "fp32")
