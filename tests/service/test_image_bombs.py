"""Small files that cause much work or memory are refused, and harmless files that resemble them are not."""

import struct
import subprocess
import sys

import pytest
from PIL import Image

from benchmarks.soak.faults import scan_bomb
from service.errors import UndecodableImage
from service.inference.images import decode
from tests.support.images import MAX_PIXELS, SQUARE, encode, noise, pixels_of

SCANS = b"\xff\xda" * 200


def tiff_of(jpeg: bytes, side_px: int) -> bytes:
    """A TIFF whose only strip is this JPEG, because Pillow writes none with a progressive JPEG."""
    tags = [(256, side_px), (257, side_px), (258, 8), (259, 7), (262, 6), (277, 3), (278, side_px)]
    tags += [(279, len(jpeg)), (530, 0x00020002)]
    at = 8 + 2 + 12 * (len(tags) + 1) + 4
    entries = b"".join(
        struct.pack("<HHII", tag, 3 if tag in (258, 530) else 4, 2 if tag == 530 else 1, value)
        for tag, value in sorted([*tags, (273, at)])
    )
    return b"II*\0" + struct.pack("<IH", 8, len(tags) + 1) + entries + bytes(4) + jpeg


def test_a_jpeg_with_many_scans_is_refused_before_decoding() -> None:
    decode(scan_bomb(100), SQUARE, MAX_PIXELS)
    with pytest.raises(UndecodableImage, match="100 scans"):
        decode(scan_bomb(101), SQUARE, MAX_PIXELS)


def test_the_scan_limit_applies_to_a_jpeg_in_a_tiff() -> None:
    assert pixels_of(tiff_of(scan_bomb(20), 2048)).shape == (64, 64, 3)
    with pytest.raises(UndecodableImage):
        pixels_of(tiff_of(scan_bomb(), 2048))


def test_a_gif_whose_first_frame_exceeds_its_screen_is_refused_before_it_is_opened() -> None:
    screen = b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0, 0, 0)
    disposed = b"!\xf9\4" + bytes([2 << 2, 0, 0, 0]) + b"\0"
    frame = b"," + struct.pack("<4HB", 0, 0, 16_000, 8_000, 0) + b"\2\0;"  # 128 MB, or 512 as RGBA
    result = subprocess.run(
        [sys.executable, "-c", REFUSED], input=screen + disposed + frame, capture_output=True, check=True
    )
    got, grown_bytes = map(int, result.stdout.split())
    assert got == 128_000_000
    assert grown_bytes < 50_000_000


REFUSED = """
import resource, sys
from service.errors import ImageTooLarge
from service.inference.images import decode
from tests.support.images import SQUARE, encode, noise

def peak_kb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

decode(encode(noise(1)), SQUARE, 10**6)
data, before_kb = sys.stdin.buffer.read(), peak_kb()
try:
    decode(data, SQUARE, 10**6)
except ImageTooLarge as error:
    print(error.members["got"], (peak_kb() - before_kb) * 1024)
"""


MEMORY = """
import resource, sys
from service.inference.images import decode
from tests.support.images import SQUARE, encode, noise

def peak_kb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

decode(encode(noise(1)), SQUARE, 10**9)
data, before_kb = sys.stdin.buffer.read(), peak_kb()
decode(data, SQUARE, 10**9)
print((peak_kb() - before_kb) * 1024)
"""


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("LA", "PNG"), ("F", "TIFF")])
def test_converting_an_image_takes_no_more_memory_than_its_copy(mode: str, kind: str) -> None:
    """The image takes 4 bytes per pixel, its RGB copy another 4, and the tiles a few."""
    data = encode(
        Image.new(mode, (3000, 3000)), kind, **({"compression": "tiff_deflate"} if mode == "F" else {})
    )
    grown_bytes = subprocess.run(
        [sys.executable, "-c", MEMORY], input=data, capture_output=True, check=True
    ).stdout
    assert int(grown_bytes) < 13 * 3000 * 3000


@pytest.mark.parametrize(
    "between",
    [
        b"\xff\x02\xff\xff",
        b"\xff\xff",
        b"\xff\xd3",
        b"\xff\x01\xff\xff",
        b"\xff\xfe\x00\x02",
        b"\xff\xdb\x00\x02",
    ],
    ids=["reserved", "fill", "restart", "TEM", "comment", "table"],
)
def test_no_marker_hides_a_scan(between: bytes) -> None:
    bomb = scan_bomb()
    last = bomb[bomb.rindex(b"\xff\xda") : -2]
    with pytest.raises(UndecodableImage, match="100 scans"):
        pixels_of(bomb.replace(last, last + between))


def test_bytes_that_resemble_scans_are_ignored() -> None:
    jpeg = encode(noise(1), "JPEG")
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(SCANS)) + SCANS
    for data in (jpeg + SCANS, jpeg[:2] + comment + jpeg[2:], encode(noise(1), "PNG") + SCANS):
        assert pixels_of(data).shape == (64, 64, 3)
