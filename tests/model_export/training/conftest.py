"""A data set that trains in seconds: shapes in colours, three domains, real PNG files."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from benchmarks.datasets.dataset import Dataset
from model_export.training.config import Strategy

SHAPES = ("ellipse", "rectangle", "line")


def draw(seed: int, shape: str, colour: tuple[int, int, int]) -> Image.Image:
    """A shape somewhere on a light ground."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (48, 40), tuple(int(one) for one in rng.integers(200, 256, 3)))
    left, top = (int(one) for one in rng.integers(2, 12, 2))
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
            shape, colour = SHAPES[label % 3], [(200, 30, 30), (30, 160, 40), (40, 60, 210)][label // 3 % 3]
            path = root / "data" / "images" / domain / f"{split}-{label}-{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(hash((label, number)) % 1000, shape, colour).save(path)
            rows.append({"path": f"{domain}/{path.name}", "class_id": label})
    info = root / "data" / "info_files" / domain / f"{split}.json"
    info.parent.mkdir(parents=True, exist_ok=True)
    info.write_text(json.dumps(rows))


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Domains of 4, 2 and 3 training classes; 14, 4 and 9 training images."""
    root = tmp_path_factory.mktemp("shapes")
    for domain, classes, images in (("discs", 4, 3), ("plates", 2, 2), ("signs", 3, 3)):
        write_split(root, domain, "train", range(classes), images)
        write_split(root, domain, "val", range(4, 6), 2)
        write_split(root, domain, "test", range(6, 9), 2)
    return Dataset(root)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Descriptors, shared by all the tests that train."""
    return tmp_path_factory.mktemp("cache")


def tiny(**changes: object) -> Strategy:
    """A few steps on a frozen backbone."""
    said = {
        "title": "tiny",
        "backbone": "efficientnet-lite0",
        "stages": [{"train": "head", "epochs": 4, "batch": 8, "lr": 0.01, "evaluations": 3}],
        **changes,
    }
    return Strategy.model_validate(said)
