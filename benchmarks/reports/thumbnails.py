"""Pictures small enough to stand in a page."""

import base64
import io
from pathlib import Path

from PIL import Image, ImageOps

THUMBNAIL_PX = 112
_QUALITY = 72


def thumbnail(file: Path) -> str | None:
    """A data URI of WebP, at most 112 px either way; None where there is no picture to be had."""
    try:
        with Image.open(file) as image:
            image.draft("RGB", (THUMBNAIL_PX, THUMBNAIL_PX))  # a JPEG is decoded no larger than needed
            upright = ImageOps.exif_transpose(image)
            upright.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
            mode = "RGBA" if upright.has_transparency_data else "RGB"
            packed = io.BytesIO()
            upright.convert(mode).save(packed, "WEBP", quality=_QUALITY)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # a placeholder is shown: a report is not the place to fail over a picture
    return "data:image/webp;base64," + base64.b64encode(packed.getvalue()).decode()
