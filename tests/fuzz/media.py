"""Bodies that schemathesis sends as images: valid, damaged and random ones."""

import schemathesis
from hypothesis import strategies as st

from benchmarks.soak.faults import bomb, noise_image

_PICTURES = [noise_image(seed, kind) for seed, kind in enumerate(("PNG", "JPEG", "WEBP", "GIF"))]


@st.composite
def _damaged(draw: st.DrawFn) -> bytes:
    """A valid image in which one piece is replaced by other bytes."""
    data = draw(st.sampled_from(_PICTURES))
    start = draw(st.integers(0, len(data)))
    end = draw(st.integers(start, len(data)))
    return data[:start] + draw(st.binary(max_size=64)) + data[end:]


_IMAGES = st.one_of(st.sampled_from([*_PICTURES, bomb()]), _damaged(), st.binary(max_size=64))

for _media in ("image/*", "application/octet-stream"):
    schemathesis.openapi.media_type(_media, _IMAGES)
schemathesis.openapi.format("binary", _IMAGES)
