"""`python -m tests.fuzz.images SECONDS`: atheris on the decoder: only its documented errors may escape."""

import io
import sys
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["PIL", "service.inference.images"]):
    from PIL import Image

    from benchmarks.soak.faults import bomb, noise_image
    from service.errors import ImageTooLarge, UndecodableImage
    from service.inference.images import FORMATS, decode
    from service.manifest import load_manifest
    from service.settings import load_settings

    Image.init()  # otherwise its plugins are imported at the first image, without instrumentation

_RUNS = Path("runs/fuzz")
_MAX_PIXELS = 1_000_000
_MAX_BYTES = 4096
_PREPROCESSING = load_manifest(load_settings().model_folders[0]).preprocessing


def _decode(data: bytes) -> None:
    try:
        pixels = decode(data, _PREPROCESSING, _MAX_PIXELS)
    except (UndecodableImage, ImageTooLarge):
        return
    assert pixels.shape == (_PREPROCESSING.input_px, _PREPROCESSING.input_px, 3)


def _seeds(folder: Path) -> None:
    """Writes a small image of each format and mode, as a start."""
    for kind in FORMATS:
        for mode in ("RGB", "RGBA", "P", "L", "1", "I;16", "F", "CMYK", "LA"):
            stream = io.BytesIO()
            try:
                _as_mode(mode).save(stream, kind)
            except (OSError, KeyError, ValueError):  # the format has no such mode
                continue
            (folder / f"{kind}-{mode.replace(';', '')}").write_bytes(stream.getvalue())
    (folder / "bomb").write_bytes(bomb())


def _as_mode(mode: str) -> Image.Image:
    image = Image.open(io.BytesIO(noise_image(0, "PNG", 16, 12)))
    return image.convert("I").convert(mode) if mode == "I;16" else image.convert(mode)


def main(seconds: int) -> None:
    """Runs for so many seconds. A finding is printed, saved in `runs/fuzz`, and sets the exit status."""
    warnings.simplefilter("ignore")  # Pillow's, about broken files
    corpus = _RUNS / "corpus"  # kept for the next run
    corpus.mkdir(parents=True, exist_ok=True)
    _seeds(corpus)
    options = [f"-max_total_time={seconds}", f"-max_len={_MAX_BYTES}", "-timeout=20", "-rss_limit_mb=4096"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={_RUNS}/", str(corpus)], _decode)
    atheris.Fuzz()


if __name__ == "__main__":
    main(int(sys.argv[1]))
