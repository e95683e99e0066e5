"""The resize methods of a manifest, each compared with an independent reference."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from service.inference.images import decode
from service.manifest import Preprocessing
from tests.support.images import encode, exif, quadrants

SAMPLED = Preprocessing(
    input_px=224,
    resize="short-side",
    resize_px=224,
    interpolation="bilinear-no-antialias",
    crop="centre",
    exif="ignore",
)
SQUASHED = Preprocessing(
    input_px=48, resize="squash", resize_px=64, interpolation="bicubic", crop="centre", exif="apply"
)


def speckle(width: int, height: int) -> Image.Image:
    """Independent random pixels, the hardest input for a resize."""
    rng = np.random.default_rng(width * 10_000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def by_torch(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Truncate the long side and the crop's offset to integers, as UnED's reference code does."""
    width, height = image.size
    short, px = preprocessing.resize_px, preprocessing.input_px
    wide = (short, int(width / height * short))
    size = wide if height <= width else (int(height / width * short), short)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    scaled = torch.nn.functional.interpolate(
        pixels, size, mode="bilinear", align_corners=False, antialias=False
    )
    top, left = (size[0] - px) // 2, (size[1] - px) // 2
    cropped: NDArray[np.float32] = scaled[0, :, top : top + px, left : left + px].permute(1, 2, 0).numpy()
    return cropped


@pytest.mark.parametrize(
    "size",
    [(640, 480), (481, 641), (1001, 333), (100, 37), (37, 100), (3, 5), (1, 1), (225, 224), (224, 449)],
)
@pytest.mark.parametrize("resize_px", [224, 257])
def test_bilinear_without_antialias_matches_torch(size: tuple[int, int], resize_px: int) -> None:
    """Values are rounded to the nearest level, for upscaling, downscaling and odd sizes."""
    preprocessing = SAMPLED.model_copy(update={"resize_px": resize_px})
    image = speckle(*size)
    pixels = decode(encode(image), preprocessing, 10**9)
    assert pixels.shape == (224, 224, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels - by_torch(image, preprocessing)).max() < 0.51


def test_antialias_makes_a_difference() -> None:
    data = encode(speckle(640, 480))
    smoothed = decode(data, SAMPLED.model_copy(update={"interpolation": "bilinear"}), 10**9)
    assert np.abs(decode(data, SAMPLED, 10**9) - smoothed.astype(float)).max() > 50


def test_only_the_crop_of_a_long_image_is_scaled() -> None:
    """The full result would have 224 x 13,440,000 pixels; its centre is the edge from black to white."""
    strip = np.zeros((1, 60_000, 3), dtype=np.uint8)
    strip[:, 30_000:] = 255
    row = decode(encode(Image.fromarray(strip)), SAMPLED, 10**9)[0, :, 0].astype(int)
    assert row[0] < 2
    assert row[-1] > 253
    assert (np.diff(row) >= 0).all()


def test_exif_is_ignored_without_antialias() -> None:
    rotated = decode(encode(quadrants(), "PNG", exif=exif(3)), SAMPLED, 10**9)
    assert (rotated == decode(encode(quadrants()), SAMPLED, 10**9)).all()


def test_squash_ignores_the_aspect_ratio() -> None:
    """The reference resizes both sides to 64, then crops the centre 48, in Pillow."""
    image = quadrants(300, 100)
    scaled = image.resize((64, 64), Image.Resampling.BICUBIC).crop((8, 8, 56, 56))
    pixels = decode(encode(image), SQUASHED, 10**9)
    assert np.abs(pixels - np.asarray(scaled).astype(int)).max() <= 2
    rotated = decode(encode(image, "PNG", exif=exif(6)), SQUASHED, 10**9)
    assert (rotated == np.rot90(pixels, k=-1)).all()


@pytest.mark.parametrize("change", [{"exif": "apply"}, {"resize": "squash"}])
def test_incompatible_preprocessing_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="bilinear-no-antialias"):
        Preprocessing.model_validate(SAMPLED.model_dump() | change)
