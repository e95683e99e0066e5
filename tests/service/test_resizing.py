"""The ways of resizing that a manifest may name, each against an independent reference."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from service.inference.images import decode
from service.manifest import Preprocessing
from tests.support.pictures import encode, exif, quadrants

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
    """Every pixel for itself: the hardest picture for a resize."""
    rng = np.random.default_rng(width * 10_000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def by_torch(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """The long side and the crop's offset are cut to whole pixels, as UnED's reference code does."""
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
def test_bilinear_without_antialias_is_that_of_torch(size: tuple[int, int], resize_px: int) -> None:
    """Up and down, odd sizes: rounded to the nearest level, and no further off than that."""
    preprocessing = SAMPLED.model_copy(update={"resize_px": resize_px})
    image = speckle(*size)
    got = decode(encode(image), preprocessing, 10**9)
    assert got.shape == (224, 224, 3)
    assert got.dtype == np.uint8
    assert np.abs(got - by_torch(image, preprocessing)).max() < 0.51


def test_without_antialias_is_not_with_it() -> None:
    data = encode(speckle(640, 480))
    smoothed = decode(data, SAMPLED.model_copy(update={"interpolation": "bilinear"}), 10**9)
    assert np.abs(decode(data, SAMPLED, 10**9) - smoothed.astype(float)).max() > 50


def test_a_long_picture_is_never_scaled_whole() -> None:
    """Whole, it would be 224 x 13,440,000 pixels; its middle is where black turns to white."""
    strip = np.zeros((1, 60_000, 3), dtype=np.uint8)
    strip[:, 30_000:] = 255
    row = decode(encode(Image.fromarray(strip)), SAMPLED, 10**9)[0, :, 0].astype(int)
    assert row[0] < 2
    assert row[-1] > 253
    assert (np.diff(row) >= 0).all()


def test_exif_is_ignored_without_antialias() -> None:
    turned = decode(encode(quadrants(), "PNG", exif=exif(3)), SAMPLED, 10**9)
    assert (turned == decode(encode(quadrants()), SAMPLED, 10**9)).all()


def test_squash_keeps_both_sides_and_not_their_ratio() -> None:
    """Both sides to 64, then the middle 48: as two steps in Pillow, which is the definition."""
    image = quadrants(300, 100)
    scaled = image.resize((64, 64), Image.Resampling.BICUBIC).crop((8, 8, 56, 56))
    got = decode(encode(image), SQUASHED, 10**9)
    assert np.abs(got - np.asarray(scaled).astype(int)).max() <= 2
    upright = decode(encode(image, "PNG", exif=exif(6)), SQUASHED, 10**9)
    assert (upright == np.rot90(got, k=-1)).all()


@pytest.mark.parametrize("change", [{"exif": "apply"}, {"resize": "squash"}])
def test_what_does_not_go_together_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="bilinear-no-antialias"):
        Preprocessing.model_validate(SAMPLED.model_dump() | change)
