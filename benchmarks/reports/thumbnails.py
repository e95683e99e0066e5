"""Images small enough to embed in a page."""

import base64
import io
from pathlib import Path

from PIL import Image, ImageOps

THUMBNAIL_PX = 112
_QUALITY = 72


def thumbnail(file: Path) -> str | None:
    """A data URI of a WebP image, at most 112 px wide and high; None if the file cannot be decoded."""
    try:
        with Image.open(file) as image:
            image.draft("RGB", (THUMBNAIL_PX, THUMBNAIL_PX))  # a JPEG is decoded no larger than needed
            upright = ImageOps.exif_transpose(image)
            upright.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
            mode = "RGBA" if upright.has_transparency_data else "RGB"
            stream = io.BytesIO()
            upright.convert(mode).save(stream, "WEBP", quality=_QUALITY)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # the report shows a placeholder instead
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()
