"""Run files that a kill, a full disk or a copy damaged: repaired, or reported in one sentence."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.errors import RunError
from benchmarks.load.driver import Client, drive
from benchmarks.load.null_server import null_server
from benchmarks.load.records import LoadRecord
from benchmarks.load.requests import Load, LoadRequest
from benchmarks.load.scenarios import Scenario
from benchmarks.replay.records import ReplayRecord
from benchmarks.runs.records import RunRecord, to_json
from benchmarks.runs.run import PACKED, Run, answered, to_line
from benchmarks.targets.target import Target
from tests.support.loads import searches
from tests.support.observed import RECORD, begun, observe, seen

__all__ = ["searches"]  # a fixture

TORN = to_line(seen("a/00", [], 0, 1))[:40]


@pytest.fixture
def packed(tmp_path: Path) -> Run:
    """Two thousand observations."""
    run = begun(Run(tmp_path / "packed"))
    observe(run, [seen(f"a/{n:07d}", [f"a/{n * n:09d}"], n, 0.1) for n in range(2000)])
    run.pack()
    return run


def sent(searches: list[LoadRequest], run: Run, segment: int) -> None:
    with null_server() as url:
        load = Load(Target("uie", url), Scenario("ClosedLoop", streams=2), searches)
        drive(load, Client(warm_up=0), run.folder, segment, "", Console(quiet=True))


@pytest.mark.parametrize("segment", [0, 3])
def test_a_segment_of_a_torn_line_alone_is_begun_again(
    searches: list[LoadRequest], tmp_path: Path, segment: int
) -> None:
    run = begun(Run(tmp_path / "run"))
    (run.folder / f"observations-{segment:03d}-00.jsonl").write_text(TORN)
    (run.folder / "clients.jsonl").write_text(
        '{"segment": 0, "processes": [{"cpu_s": 1, "wall_s": 4}]}\n{"segment": 1, "pro'
    )
    assert run.begin(RECORD) == []
    sent(searches, run, segment)
    assert len(answered(run.observations())) == len(searches)
    run.pack()
    assert sorted(observation.query_id for observation in run.observations()) == [
        search.images[0].id for search in searches
    ]
    assert run.client_usage()[0].core_share == 0.25
    assert len(run.client_usage()) == 2


@pytest.mark.parametrize(
    "line",
    ['{"segment": 0, "pro{"segment": 1, "processes": []}', "[1]", "{}", '{"processes": ["x"]}', "\udcff"],
)
def test_damaged_lines_of_the_clients_are_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "clients.jsonl").write_text(f"{line}\n", errors="surrogateescape")
    with pytest.raises(RunError, match=r"clients\.jsonl is damaged"):
        Run(tmp_path).client_usage()


def test_client_usage_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clients.jsonl").write_text('{"segment": 0, "busy": [0.25]}\n')
    with pytest.raises(RunError, match="earlier version"):
        Run(tmp_path).client_usage()


def test_a_packed_run_is_read_again_and_so_is_an_empty_one(packed: Run, tmp_path: Path) -> None:
    assert [observation.query_id for observation in packed.observations()] == [
        f"a/{n:07d}" for n in range(2000)
    ]
    (tmp_path / "observations-000-00.jsonl").touch()
    Run(tmp_path).pack()
    assert (tmp_path / PACKED).exists()
    assert Run(tmp_path).observations() == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:0],
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: b"garbage" + content,
        lambda content: content + content,
    ],
    ids=["empty", "half", "but a byte", "garbage", "twice"],
)
def test_a_truncated_packed_file_is_refused(packed: Run, damage: Any) -> None:
    """Otherwise half a file would be taken for a run of which half was not sent."""
    file = packed.folder / PACKED
    file.write_bytes(damage(file.read_bytes()))
    before = file.read_bytes()
    with pytest.raises(RunError, match="damaged"):
        packed.observations()
    observe(packed, [seen("a/x", [], 0, 1, segment=1)])
    with pytest.raises(RunError, match="damaged"):
        packed.pack()
    names = {file.name for file in packed.folder.iterdir()}
    assert names == {"run.json", PACKED, "observations-001-00.jsonl"}
    assert file.read_bytes() == before


@pytest.mark.parametrize("text", ["{}", "[1]", "null", '"kind"', "{", '{"version": 1, "data": "x"}'])
def test_a_damaged_run_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        Run(tmp_path).record(ReplayRecord)
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        Run(tmp_path).begin(RECORD)


@pytest.mark.parametrize("version", [None, 0, 2])
def test_a_run_of_another_version_is_refused(tmp_path: Path, version: int | None) -> None:
    content = {**to_json(RECORD), "version": version}
    if version is None:
        del content["version"]
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"another version .* new --out"):
        Run(tmp_path).record(ReplayRecord)


def test_a_run_of_another_kind_is_refused(tmp_path: Path) -> None:
    run = begun(Run(tmp_path))
    assert run.record(RunRecord).kind == "replay"
    with pytest.raises(RunError, match="`replay`, not `load` or `trials`"):
        run.record(LoadRecord)


def test_item_counts_of_the_index_may_change_and_nothing_else(tmp_path: Path) -> None:
    def record(**index: object) -> ReplayRecord:
        usual = {"items": 80, "indexed_vectors": 0, "backend": "qdrant-edge"}
        return replace(RECORD, service={"precision": "fp32", "index": {**usual, **index}})

    run = Run(tmp_path)
    run.begin(record())
    assert run.begin(record(items=81, indexed_vectors=64)) == []
    assert run.record(ReplayRecord) == record()
    with pytest.raises(RunError, match="another run: service differ"):
        run.begin(record(backend="qdrant"))
    with pytest.raises(RunError, match="another run: service differ"):
        run.begin(replace(RECORD, service={"precision": "int8", "index": {"items": 80}}))


def test_on_a_full_disk_the_first_error_is_reported(searches: list[LoadRequest], tmp_path: Path) -> None:
    run = begun(Run(tmp_path / "run"))
    for name in ("observations-000-00.jsonl", "clients.jsonl"):
        (run.folder / name).symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"observations-000-00\.jsonl .*No space"):
        sent(searches, run, 0)
    (run.folder / "observations-000-00.jsonl").unlink()
    with pytest.raises(RunError, match=r"clients\.jsonl .*No space .* is kept"):
        sent(searches, run, 0)
