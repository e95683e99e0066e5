"""A folder of one's own, laid out: every picture once, classes apart, labels by name."""

import json
from pathlib import Path

import pytest

from benchmarks.datasets.dataset import Dataset
from benchmarks.datasets.image_folder import lay_out
from benchmarks.errors import DataError
from tests.support.pictures import encode, noise


def fill(root: Path, domain: str, classes: dict[str, int]) -> None:
    for name, count in classes.items():
        for number in range(count):
            file = root / domain / name / f"{number}.PNG"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode(noise(number, 8, 8), "PNG"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    fill(root, "shoes", {"boot": 3, "clog": 2, "mule": 2, "pump": 4, "only one": 1})
    fill(root, "tea", {"green": 2, "black": 2, "white": 2})
    (root / "tea" / "green" / "notes.txt").write_text("not a picture")
    (root / "readme.txt").write_text("not a domain")
    return root


def test_every_picture_is_in_one_split_and_classes_are_apart(pictures: Path, tmp_path: Path) -> None:
    found = lay_out(pictures, tmp_path / "data")
    data = Dataset(tmp_path / "data")
    assert data.domains == ["shoes", "tea"]
    for domain, pictures_of in (("shoes", 12), ("tea", 6)):
        splits = {split: data.records(domain, split) for split in ("train", "val", "test")}
        classes = {split: {record.class_ids for record in rows} for split, rows in splits.items()}
        assert all(splits.values())
        assert not classes["train"] & classes["val"]
        assert not classes["train"] & classes["test"]
        assert not classes["val"] & classes["test"]
        rows = [record for of in splits.values() for record in of]
        assert len({record.path for record in rows}) == len(rows) == pictures_of
        for record in rows:
            assert data.image(record).read_bytes().startswith(b"\x89PNG")
            assert data.label(record) == Path(record.path).parent.name
    assert found["shoes"].singles == 1
    assert any(data.label(record) == "only one" for record in data.records("shoes", "train"))


def test_the_fingerprint_follows_the_pictures(pictures: Path, tmp_path: Path) -> None:
    def made(name: str) -> str:
        lay_out(pictures, tmp_path / name)
        return Dataset(tmp_path / name).fingerprint

    before = made("a")
    assert made("b") == before
    (pictures / "tea" / "green" / "0.PNG").write_bytes(encode(noise(9, 8, 8), "PNG"))
    assert made("c") != before


@pytest.mark.parametrize(
    ("classes", "message"),
    [({}, "no folders"), ({"a": 2, "b": 2, "c": 1}, "2 classes with two pictures or more")],
)
def test_what_cannot_be_laid_out_is_a_sentence(tmp_path: Path, classes: dict[str, int], message: str) -> None:
    (tmp_path / "pictures").mkdir()
    fill(tmp_path / "pictures", "one", classes)
    with pytest.raises(DataError, match=message):
        lay_out(tmp_path / "pictures", tmp_path / "data")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]


@pytest.mark.parametrize("name", ["My Cars", "voitures-é", "a" * 65])
def test_a_domain_that_the_service_would_refuse_is_refused(tmp_path: Path, name: str) -> None:
    fill(tmp_path / "pictures", name, {"a": 2, "b": 2, "c": 2})
    with pytest.raises(DataError, match=f"{name}.*a-z, 0-9, _ and - only"):
        lay_out(tmp_path / "pictures", tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("card", ["{", "[1]"])
def test_a_broken_card_is_a_sentence(pictures: Path, tmp_path: Path, card: str) -> None:
    lay_out(pictures, tmp_path / "data")
    (tmp_path / "data" / "dataset.json").write_text(card)
    with pytest.raises(DataError, match=r"dataset\.json"):
        _ = Dataset(tmp_path / "data").fingerprint


def test_what_is_there_is_left_alone(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.json").write_text(json.dumps([1]))
    with pytest.raises(DataError, match="left alone"):
        lay_out(pictures, tmp_path / "data")
    with pytest.raises(DataError, match="not a folder"):
        lay_out(pictures / "nowhere", tmp_path / "other")


def test_broken_pictures_are_named_before_anything_is_written(pictures: Path, tmp_path: Path) -> None:
    broken = pictures / "tea" / "black" / "1.PNG"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError, match=r"1 pictures cannot be read.*black/1\.PNG"):
        lay_out(pictures, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_forgotten_level_is_said(tmp_path: Path) -> None:
    fill(tmp_path / "pictures", "", {"hammer": 3})
    with pytest.raises(DataError, match="hammer holds pictures, not class folders"):
        lay_out(tmp_path / "pictures", tmp_path / "data")
