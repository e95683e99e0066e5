"""The check of a data set, image files with escaped names, splits that are galleries, and subsets."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.datasets.check import check
from benchmarks.datasets.dataset import Dataset, Record, subset
from benchmarks.datasets.image_folder import write_dataset
from benchmarks.datasets.uned import DOMAINS
from benchmarks.errors import DataError
from tests.support.images import encode, noise

QUIET = Console(quiet=True)


def write_data(
    root: Path, domain: str, splits: dict[str, list[str]], card: dict[str, Any] | None = None
) -> Dataset:
    """Write info files of these paths, and images: none for `missing`, a truncated one for `broken`."""
    info, images = root / "data/info_files" / domain, root / "data/images"
    info.mkdir(parents=True)
    for split, paths in splits.items():
        (info / f"{split}.json").write_text(json.dumps([{"path": path, "class_id": 0} for path in paths]))
        for path in dict.fromkeys(paths):
            content = encode(noise(0, 8, 8))
            if "missing" not in path:
                (images / path).parent.mkdir(parents=True, exist_ok=True)
                (images / path).write_bytes(content[:60] if "broken" in path else content)
    if card is not None:
        (root / "dataset.json").write_text(json.dumps(card))
    return Dataset(root)


def test_images_are_compared_with_the_info_files(tmp_path: Path) -> None:
    data = write_data(tmp_path, "tea", {"test": ["a.png", "broken.png"], "train": ["a.png", "missing.png"]})
    result = check(data, True, QUIET)["tea"]
    assert (result.rows, result.images) == ({"test": 2, "train": 2}, 3)
    assert (result.missing, result.undecodable) == (["missing.png"], ["broken.png"])
    assert not result.complete
    assert check(data, False, QUIET)["tea"].undecodable == []
    (tmp_path / "data/images/missing.png").write_bytes(encode(noise(1, 8, 8)))
    (tmp_path / "data/images/broken.png").write_bytes(encode(noise(1, 8, 8)))
    assert check(data, True, QUIET)["tea"].complete


def test_uneds_rows_are_compared_with_its_table(tmp_path: Path) -> None:
    data = write_data(
        tmp_path, "cars", {split: ["a.png"] * DOMAINS["cars"].rows[split] for split in ("val", "test")}
    )
    results = check(data, True, QUIET)
    assert results.keys() == DOMAINS.keys()
    assert results["cars"].miscounted == ["train"]
    assert results["met"].miscounted == ["train", "val", "test", "index", "small_index"]
    with_train = ["a.png"] * DOMAINS["cars"].rows["train"]
    (tmp_path / "data/info_files/cars/train.json").write_text(
        json.dumps([{"path": path, "class_id": 0} for path in with_train])
    )
    assert check(data, True, QUIET)["cars"].complete


def test_the_table_adds_up_to_the_papers_totals() -> None:
    rows = [source.rows for source in DOMAINS.values()]
    assert sum(counts["train"] for counts in rows) == 2_831_222
    assert sum(counts["val"] for counts in rows) == 293_409
    assert sum(counts.get("small_index", counts["val"]) for counts in rows) == 331_587
    assert sum(counts["test"] for counts in rows) == 241_986
    assert sum(counts.get("index", counts["test"]) for counts in rows) == 1_397_126


def test_a_data_set_with_a_card_is_not_compared_with_uned(tmp_path: Path) -> None:
    data = write_data(tmp_path, "cars", {"test": ["a.png"]}, {"fingerprint": "f"})
    assert check(data, True, QUIET)["cars"].complete


def test_a_missing_split_is_reported(tmp_path: Path) -> None:
    counts = {"splits": {split: {"images": 1, "classes": 1} for split in ("train", "val", "test", "index")}}
    for card, missing in (
        (None, ["test"]),
        ({"domains": {"tea": {"labels": ["a"]}}}, ["val", "test"]),  # of a folder, by an older version
        ({"domains": {"tea": {"labels": ["a"], "counts": counts}}}, ["val", "test", "index"]),
    ):
        root = tmp_path / f"{len(missing)}"
        write_data(root, "tea", {"train": ["a.png"]}, card)
        done = CliRunner().invoke(app, ["check", str(root), "--json"])
        assert isinstance(done.exception, DataError)
        assert all(f"{split}.json is missing" in done.stdout for split in missing)
        assert "info files" not in done.stdout.lower()  # UnED's
        (domain,) = json.loads(done.stdout.splitlines()[-1])["domains"].values()
        assert not domain["whole"]
        assert domain["expected"].keys() - domain["rows"].keys() == set(missing)


def test_a_built_data_set_lacks_nothing_until_a_split_is_deleted(tmp_path: Path) -> None:
    for number in range(6):
        folder = tmp_path / "images" / "tea" / f"class{number // 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(encode(noise(number, 8, 8)))
    write_dataset(tmp_path / "images", tmp_path / "built")
    data = Dataset(tmp_path / "built")
    assert check(data, True, QUIET)["tea"].complete
    file = tmp_path / "built/data/info_files/tea/val.json"
    file.write_text(json.dumps(json.loads(file.read_text())[:1]))
    assert check(data, True, QUIET)["tea"].miscounted == ["val"]
    file.unlink()
    assert check(data, True, QUIET)["tea"].miscounted == ["val"]


def test_the_command_fails_and_names_the_files_to_fetch(tmp_path: Path) -> None:
    write_data(tmp_path, "cars", {"test": ["missing.png"]})
    done = CliRunner().invoke(app, ["check", str(tmp_path), "--no-decode", "--json"])
    assert isinstance(done.exception, DataError)
    assert f"{tmp_path} is not complete: cars, food2k" in str(done.exception)
    assert "train.json is missing (6,346 rows)" in done.stdout
    assert "1 image missing, first: missing.png" in done.stdout
    assert "fetch Cars196" in done.stdout
    assert "cars/car_ims" in done.stdout
    body = json.loads(done.stdout.splitlines()[-1])
    assert not body["whole"]
    assert body["domains"]["cars"]["first_missing"] == ["missing.png"]


@pytest.mark.parametrize("name", ["x[/y] missing.png", "x[bold]y missing.png"])
def test_markup_in_names_is_printed_literally(tmp_path: Path, name: str) -> None:
    write_data(tmp_path, "tea[b]", {"test": [name]})
    done = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert isinstance(done.exception, DataError)
    assert f"tea[b]: 1 image missing, first: {name}" in done.stdout
    assert "tea[b] " in done.stdout  # the table's row


def test_the_command_accepts_a_complete_data_set(tmp_path: Path) -> None:
    write_data(tmp_path, "tea", {"test": ["a.png"]})
    done = CliRunner().invoke(app, ["check", str(tmp_path), "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    assert json.loads(done.stdout.splitlines()[-1])["whole"]


@pytest.mark.parametrize(
    ("listed", "on_disk"),
    [
        ("all/中文 é.png", "all/#U4e2d#U6587 #U00e9.png"),
        ("all/中文.png", "all/#U4E2D#U6587.png"),
        ("中/🍵.png", "#U4e2d/#L01f375.png"),
        ("all/#U4e2d.png", "all/中.png"),
        ("all/中.png", "all/中.png"),
        ("all/#1.png", "all/#1.png"),
    ],
)
def test_names_that_an_unzip_tool_escaped_are_resolved(tmp_path: Path, listed: str, on_disk: str) -> None:
    data = write_data(tmp_path, "rp", {"test": [listed]})
    file = tmp_path / "data/images" / on_disk
    file.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "data/images" / listed).rename(file)
    (record,) = data.queries("rp")
    assert data.image(record) == file
    assert check(data, True, QUIET)["rp"].complete


def test_a_missing_file_keeps_its_listed_name(tmp_path: Path) -> None:
    data = write_data(tmp_path, "rp", {"test": ["missing 中.png"]})
    assert data.image(data.queries("rp")[0]).name == "missing 中.png"


def test_val_searches_the_small_index_if_there_is_one(tmp_path: Path) -> None:
    write_data(tmp_path, "met", {"val": ["a"], "test": ["b"], "index": ["c"], "small_index": ["d"]})
    data = write_data(tmp_path, "sop", {"val": ["e"], "test": ["f"]})
    paths = {
        (domain, split): (data.queries(domain, split)[0].path, data.gallery(domain, split)[0].path)
        for domain in ("met", "sop")
        for split in ("val", "test")
    }
    assert paths == {
        ("met", "val"): ("a", "d"),
        ("met", "test"): ("b", "c"),
        ("sop", "val"): ("e", "e"),
        ("sop", "test"): ("f", "f"),
    }


def queries(domain: str, count: int) -> list[Record]:
    return [Record(f"{domain}/test/{row:07d}", domain, f"{row}.png", (0,)) for row in range(count)]


def test_a_subset_depends_on_the_seed_and_keeps_all_of_met_and_gldv2() -> None:
    full = {domain: queries(domain, 100) for domain in ("cars", "met", "gldv2", "sop")}
    sampled = subset(full, 10, 1)
    assert {domain: len(records) for domain, records in sampled.items()} == {
        "cars": 10, "met": 100, "gldv2": 100, "sop": 10
    }  # fmt: skip
    assert sampled == subset({domain: full[domain] for domain in reversed(full)}, 10, 1)
    assert sampled["cars"] == sorted(sampled["cars"], key=lambda record: record.id)
    assert set(sampled["cars"]) < set(subset(full, 11, 1)["cars"])
    assert sampled["cars"] != subset(full, 10, 2)["cars"]
    assert [query.path for query in sampled["cars"]] != [query.path for query in sampled["sop"]]
    assert subset({"cars": full["cars"][:7]}, 10, 1)["cars"] == full["cars"][:7]
