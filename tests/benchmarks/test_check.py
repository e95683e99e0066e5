"""Is a data set whole, and are its pictures found whatever an unzip tool called them?"""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.datasets.check import check
from benchmarks.datasets.dataset import Dataset, Record
from benchmarks.datasets.subset import subset
from benchmarks.datasets.uned import DOMAINS
from benchmarks.errors import DataError
from tests.support.pictures import encode, noise

QUIET = Console(quiet=True)


def lay(root: Path, domain: str, splits: dict[str, list[str]], card: dict[str, Any] | None = None) -> Dataset:
    """Info files of these paths, and the pictures: none for `missing`, half of one for `broken`."""
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


def test_a_folder_of_ones_own_is_held_against_its_info_files(tmp_path: Path) -> None:
    data = lay(tmp_path, "tea", {"test": ["a.png", "broken.png"], "train": ["a.png", "missing.png"]})
    found = check(data, True, QUIET)["tea"]
    assert (found.rows, found.images) == ({"test": 2, "train": 2}, 3)
    assert (found.missing, found.undecodable) == (["missing.png"], ["broken.png"])
    assert not found.whole
    assert check(data, False, QUIET)["tea"].undecodable == []
    (tmp_path / "data/images/missing.png").write_bytes(encode(noise(1, 8, 8)))
    (tmp_path / "data/images/broken.png").write_bytes(encode(noise(1, 8, 8)))
    assert check(data, True, QUIET)["tea"].whole


def test_uned_is_held_against_its_table(tmp_path: Path) -> None:
    data = lay(
        tmp_path, "cars", {split: ["a.png"] * DOMAINS["cars"].rows[split] for split in ("val", "test")}
    )
    found = check(data, True, QUIET)
    assert found.keys() == DOMAINS.keys()
    assert found["cars"].miscounted == ["train"]
    assert found["met"].miscounted == ["train", "val", "test", "index", "small_index"]
    with_train = ["a.png"] * DOMAINS["cars"].rows["train"]
    (tmp_path / "data/info_files/cars/train.json").write_text(
        json.dumps([{"path": path, "class_id": 0} for path in with_train])
    )
    assert check(data, True, QUIET)["cars"].whole


def test_the_table_adds_up_to_the_papers() -> None:
    rows = [source.rows for source in DOMAINS.values()]
    assert sum(one["train"] for one in rows) == 2_831_222
    assert sum(one["val"] for one in rows) == 293_409
    assert sum(one.get("small_index", one["val"]) for one in rows) == 331_587
    assert sum(one["test"] for one in rows) == 241_986
    assert sum(one.get("index", one["test"]) for one in rows) == 1_397_126


def test_a_built_data_set_may_have_a_domain_of_uneds(tmp_path: Path) -> None:
    data = lay(tmp_path, "cars", {"test": ["a.png"]}, {"fingerprint": "f"})
    assert check(data, True, QUIET)["cars"].whole


def test_the_command_says_what_to_fetch_and_fails(tmp_path: Path) -> None:
    lay(tmp_path, "cars", {"test": ["missing.png"]})
    done = CliRunner().invoke(app, ["check", str(tmp_path), "--no-decode", "--json"])
    assert isinstance(done.exception, DataError)
    assert f"{tmp_path} is not whole: cars, food2k" in str(done.exception)
    assert "there is no train.json (6,346 rows)" in done.stdout
    assert "1 pictures missing, the first missing.png" in done.stdout
    assert "fetch Cars196" in done.stdout
    assert "cars/car_ims" in done.stdout
    said = json.loads(done.stdout.splitlines()[-1])
    assert not said["whole"]
    assert said["domains"]["cars"]["first_missing"] == ["missing.png"]


@pytest.mark.parametrize("name", ["x[/y] missing.png", "x[bold]y missing.png"])
def test_names_are_printed_as_they_are(tmp_path: Path, name: str) -> None:
    lay(tmp_path, "tea[b]", {"test": [name]})
    done = CliRunner().invoke(app, ["check", str(tmp_path)])
    assert isinstance(done.exception, DataError)
    assert f"tea[b]: 1 pictures missing, the first {name}" in done.stdout
    assert "tea[b] " in done.stdout  # the table's row


def test_the_command_is_content_with_what_is_whole(tmp_path: Path) -> None:
    lay(tmp_path, "tea", {"test": ["a.png"]})
    done = CliRunner().invoke(app, ["check", str(tmp_path), "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    assert json.loads(done.stdout.splitlines()[-1])["whole"]


@pytest.mark.parametrize(
    ("said", "on_disk"),
    [
        ("all/中文 é.png", "all/#U4e2d#U6587 #U00e9.png"),
        ("all/中文.png", "all/#U4E2D#U6587.png"),
        ("中/🍵.png", "#U4e2d/#L01f375.png"),
        ("all/#U4e2d.png", "all/中.png"),
        ("all/中.png", "all/中.png"),
        ("all/#1.png", "all/#1.png"),
    ],
)
def test_names_that_an_unzip_tool_escaped_are_found(tmp_path: Path, said: str, on_disk: str) -> None:
    data = lay(tmp_path, "rp", {"test": [said]})
    there = tmp_path / "data/images" / on_disk
    there.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "data/images" / said).rename(there)
    (record,) = data.queries("rp")
    assert data.image(record) == there
    assert check(data, True, QUIET)["rp"].whole


def test_a_name_that_is_nowhere_stays_as_it_was_said(tmp_path: Path) -> None:
    data = lay(tmp_path, "rp", {"test": ["missing 中.png"]})
    assert data.image(data.queries("rp")[0]).name == "missing 中.png"


def test_val_searches_a_small_index_where_there_is_one(tmp_path: Path) -> None:
    lay(tmp_path, "met", {"val": ["a"], "test": ["b"], "index": ["c"], "small_index": ["d"]})
    data = lay(tmp_path, "sop", {"val": ["e"], "test": ["f"]})
    found = {
        (domain, split): (data.queries(domain, split)[0].path, data.gallery(domain, split)[0].path)
        for domain in ("met", "sop")
        for split in ("val", "test")
    }
    assert found == {
        ("met", "val"): ("a", "d"),
        ("met", "test"): ("b", "c"),
        ("sop", "val"): ("e", "e"),
        ("sop", "test"): ("f", "f"),
    }


def queries(domain: str, count: int) -> list[Record]:
    return [Record(f"{domain}/test/{row:07d}", domain, f"{row}.png", (0,)) for row in range(count)]


def test_a_subset_is_the_same_for_a_seed_and_leaves_met_and_gldv2_whole() -> None:
    asked = {domain: queries(domain, 100) for domain in ("cars", "met", "gldv2", "sop")}
    some = subset(asked, 10, 1)
    assert {domain: len(records) for domain, records in some.items()} == {
        "cars": 10, "met": 100, "gldv2": 100, "sop": 10
    }  # fmt: skip
    assert some == subset({domain: asked[domain] for domain in reversed(asked)}, 10, 1)
    assert some["cars"] == sorted(some["cars"], key=lambda record: record.id)
    assert set(some["cars"]) < set(subset(asked, 11, 1)["cars"])
    assert some["cars"] != subset(asked, 10, 2)["cars"]
    assert [one.path for one in some["cars"]] != [one.path for one in some["sop"]]
    assert subset({"cars": asked["cars"][:7]}, 10, 1)["cars"] == asked["cars"][:7]
