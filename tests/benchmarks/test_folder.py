"""A data set from a folder of images: every image once, disjoint classes, labels by name."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.datasets.dataset import Dataset
from benchmarks.datasets.image_folder import write_dataset
from benchmarks.errors import DataError
from tests.support.images import encode, noise


def fill(root: Path, domain: str, classes: dict[str, int]) -> None:
    for name, count in classes.items():
        for number in range(count):
            file = root / domain / name / f"{number}.PNG"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode(noise(number, 8, 8), "PNG"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    fill(root, "shoes", {"boot": 3, "clog": 2, "mule": 2, "pump": 4, "only one": 1})
    fill(root, "tea", {"green": 2, "black": 2, "white": 2})
    (root / "tea" / "green" / "notes.txt").write_text("not an image")
    (root / "readme.txt").write_text("not a domain")
    return root


def test_every_image_is_in_one_split_and_the_splits_classes_are_disjoint(
    images: Path, tmp_path: Path
) -> None:
    domains = write_dataset(images, tmp_path / "data")
    data = Dataset(tmp_path / "data")
    assert data.domains == ["shoes", "tea"]
    for domain, count in (("shoes", 12), ("tea", 6)):
        splits = {split: data.records(domain, split) for split in ("train", "val", "test")}
        classes = {split: {record.class_ids for record in rows} for split, rows in splits.items()}
        assert all(splits.values())
        assert not classes["train"] & classes["val"]
        assert not classes["train"] & classes["test"]
        assert not classes["val"] & classes["test"]
        rows = [record for records in splits.values() for record in records]
        assert len({record.path for record in rows}) == len(rows) == count
        for record in rows:
            assert data.image(record).read_bytes().startswith(b"\x89PNG")
            assert data.label(record) == Path(record.path).parent.name
    assert domains["shoes"].singles == 1
    assert any(data.label(record) == "only one" for record in data.records("shoes", "train"))


def test_the_fingerprint_depends_on_the_images(images: Path, tmp_path: Path) -> None:
    def fingerprint(name: str) -> str:
        write_dataset(images, tmp_path / name)
        return Dataset(tmp_path / name).fingerprint

    before = fingerprint("a")
    assert fingerprint("b") == before
    (images / "tea" / "green" / "0.PNG").write_bytes(encode(noise(9, 8, 8), "PNG"))
    assert fingerprint("c") != before


@pytest.mark.parametrize(
    ("classes", "message"),
    [({}, "no folders"), ({"a": 2, "b": 2, "c": 1}, "2 classes with two or more images")],
)
def test_a_folder_without_enough_classes_is_refused(
    tmp_path: Path, classes: dict[str, int], message: str
) -> None:
    (tmp_path / "images").mkdir()
    fill(tmp_path / "images", "one", classes)
    with pytest.raises(DataError, match=message):
        write_dataset(tmp_path / "images", tmp_path / "data")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


@pytest.mark.parametrize("name", ["My Cars", "voitures-é", "a" * 65])
def test_a_domain_name_that_the_service_refuses_is_refused(tmp_path: Path, name: str) -> None:
    fill(tmp_path / "images", name, {"a": 2, "b": 2, "c": 2})
    with pytest.raises(DataError, match=f"{name}.*a-z, 0-9, _ and - only"):
        write_dataset(tmp_path / "images", tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("card", ["{", "[1]"])
def test_a_broken_card_is_a_data_error(images: Path, tmp_path: Path, card: str) -> None:
    write_dataset(images, tmp_path / "data")
    (tmp_path / "data" / "dataset.json").write_text(card)
    with pytest.raises(DataError, match=r"dataset\.json"):
        _ = Dataset(tmp_path / "data").fingerprint


def test_an_existing_folder_is_left_alone(images: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.json").write_text(json.dumps([1]))
    with pytest.raises(DataError, match="left alone"):
        write_dataset(images, tmp_path / "data")
    with pytest.raises(DataError, match="not a folder"):
        write_dataset(images / "nowhere", tmp_path / "other")


def test_broken_images_are_named_before_anything_is_written(images: Path, tmp_path: Path) -> None:
    broken = images / "tea" / "black" / "1.PNG"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError, match=r"^1 image .*black/1\.PNG"):
        write_dataset(images, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_the_command_prints_the_counts_of_each_domain(images: Path, tmp_path: Path) -> None:
    (images / ".DS_Store").touch()
    done = CliRunner().invoke(app, ["folder", str(images), "--out", str(tmp_path / "data")])
    header, _, shoes, tea, *notes = (line.split() for line in done.stdout.splitlines())
    assert header == ["domain", "classes", "single", "image", "train", "val", "test"]
    assert (shoes[:3], tea[:3]) == (["shoes", "5", "1"], ["tea", "3", "0"])
    assert notes[-1][:3] == ["skipped:", "2", "files,"]
    assert notes[-1][-2:] == ["2", ".txt"]


def test_images_without_class_folders_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "images", "", {"hammer": 3})
    with pytest.raises(DataError, match="hammer holds images"):
        write_dataset(tmp_path / "images", tmp_path / "data")


def test_a_folder_that_cannot_be_written_is_an_error(images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="cannot be written"):
        write_dataset(images, tmp_path / "file" / "data")
