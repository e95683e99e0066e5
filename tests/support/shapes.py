"""A data set that trains in seconds: coloured shapes in three domains, as PNG files."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.datasets.dataset import Dataset
from model_export.training.config import Strategy

SHAPES = ("ellipse", "rectangle", "line")
_COLOURS = [(200, 30, 30), (30, 160, 40), (40, 60, 210)]


def draw(seed: int, shape: str, colour: tuple[int, int, int]) -> Image.Image:
    """Draw a shape at a random position on a light background."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (48, 40), tuple(int(level) for level in rng.integers(200, 256, 3)))
    left, top = (int(offset) for offset in rng.integers(2, 12, 2))
    box = (left, top, left + int(rng.integers(18, 30)), top + int(rng.integers(14, 24)))
    pen = ImageDraw.Draw(image)
    if shape == "line":
        pen.line(box, fill=colour, width=6)
    else:
        getattr(pen, shape)(box, fill=colour)
    return image


def write_split(root: Path, domain: str, split: str, classes: range, images: int) -> None:
    rows = []
    for label in classes:
        for number in range(images):
            path = root / "data" / "images" / domain / f"{split}-{label}-{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            seed = hash((label, number)) % 1000
            draw(seed, SHAPES[label % 3], _COLOURS[label // 3 % 3]).save(path)
            rows.append({"path": f"{domain}/{path.name}", "class_id": label})
    info = root / "data" / "info_files" / domain / f"{split}.json"
    info.parent.mkdir(parents=True, exist_ok=True)
    info.write_text(json.dumps(rows))


def shapes_data(root: Path) -> Dataset:
    """Write domains of 4, 2 and 3 training classes with 12, 4 and 9 training images."""
    for domain, classes, images in (("discs", 4, 3), ("plates", 2, 2), ("signs", 3, 3)):
        write_split(root, domain, "train", range(classes), images)
        write_split(root, domain, "val", range(4, 6), 2)
        write_split(root, domain, "test", range(6, 9), 2)
    return Dataset(root)


def tiny_strategy(**changes: object) -> Strategy:
    """Return a strategy of a few steps on a frozen backbone."""
    table = {
        "title": "tiny",
        "backbone": "efficientnet-lite0",
        "stages": [{"train": "head", "epochs": 4, "batch": 8, "lr": 0.01, "evaluations": 3}],
        **changes,
    }
    return Strategy.model_validate(table)
