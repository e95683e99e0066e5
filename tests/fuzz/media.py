"""Hooks of schemathesis: it sends valid, damaged and random images, and no deadlines."""

import schemathesis
from hypothesis import strategies as st

from benchmarks.soak.faults import bomb, noise_image

_VALID = [noise_image(seed, kind) for seed, kind in enumerate(("PNG", "JPEG", "WEBP", "GIF"))]


@st.composite
def _damaged(draw: st.DrawFn) -> bytes:
    """A valid image in which one piece is replaced by other bytes."""
    data = draw(st.sampled_from(_VALID))
    start = draw(st.integers(0, len(data)))
    end = draw(st.integers(start, len(data)))
    return data[:start] + draw(st.binary(max_size=64)) + data[end:]


_IMAGES = st.one_of(st.sampled_from([*_VALID, bomb()]), _damaged(), st.binary(max_size=64))

for _media in ("image/*", "application/octet-stream"):
    schemathesis.openapi.media_type(_media, _IMAGES)
schemathesis.openapi.format("binary", _IMAGES)


@schemathesis.hook  # type: ignore[untyped-decorator]
def before_call(_: schemathesis.HookContext, case: schemathesis.Case, __: dict[str, object]) -> None:
    """Send no deadline: to a short one, 504 is the documented response of every operation."""
    (case.headers or {}).pop("X-Deadline-Ms", None)
