"""Run files that a kill, a full disk or a copy damaged: repaired, or reported in one sentence."""

import json
import random
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.errors import RunError
from benchmarks.files import atomic_path
from benchmarks.load.driver import Client, drive
from benchmarks.load.null_server import null_server
from benchmarks.load.records import LoadRecord, SaturateSummary
from benchmarks.load.requests import Load, LoadRequest
from benchmarks.load.scenarios import Scenario
from benchmarks.load.trial import Trial
from benchmarks.operating_points.inputs import manifest_of
from benchmarks.replay.records import ReplayRecord
from benchmarks.runs.records import RunRecord, read_record, to_json, write_summary
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


def test_client_usage_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clients.jsonl").write_text('{"segment": 0, "busy": [0.25]}\n')
    with pytest.raises(RunError, match="another version"):
        Run(tmp_path).client_usage()


def test_a_packed_run_is_read_again_and_so_is_an_empty_one(packed: Run, tmp_path: Path) -> None:
    assert [observation.query_id for observation in packed.observations()] == [
        f"a/{n:07d}" for n in range(2000)
    ]
    (tmp_path / "observations-000-00.jsonl").touch()
    Run(tmp_path).pack()
    assert (tmp_path / PACKED).exists()
    assert Run(tmp_path).observations() == []


def test_packing_and_reading_hold_each_observation_once(tmp_path: Path) -> None:
    run = begun(Run(tmp_path))
    rng = random.Random(0)
    observe(run, [seen(f"a/{n}", [], n, 0.1, embedding=rng.randbytes(2000).hex()) for n in range(2000)])
    text_bytes = (run.folder / "observations-000-00.jsonl").stat().st_size
    tracemalloc.start()
    try:
        run.pack()
        observe(run, [seen("a/x", [], 0, 0.1, segment=1)])
        run.pack()
        assert tracemalloc.get_traced_memory()[1] < 1.5 * text_bytes
    finally:
        tracemalloc.stop()
    assert len(run.observations()) == 2001


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


NO_RECORD = ["{}", "[]", "[1]", "null", '"kind"', '{"version": 1, "data": "x"}']


@pytest.mark.parametrize(
    ("text", "reason"),
    [(text, "is not a run record: ") for text in NO_RECORD] + [(text, "is damaged: ") for text in ("{", "")],
)
def test_a_run_json_that_is_no_record_or_damaged_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "run.json").write_text(text)
    for read in (lambda: Run(tmp_path).record(ReplayRecord), lambda: Run(tmp_path).begin(RECORD)):
        with pytest.raises(RunError, match=rf"run\.json {reason}") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_errors_of_records_are_one_line_without_a_url(packed: Run, tmp_path: Path) -> None:
    errors = []

    def fails(read: Callable[[], object]) -> None:
        with pytest.raises(RunError) as caught:
            read()
        errors.append(str(caught.value))

    run, lines = Run(tmp_path / "run"), tmp_path / "run" / "observations-000-00.jsonl"
    begun(run, service={"model": "m", "index": [1], "precision": {}, "provider": 1})
    fails(lambda: run.record(RunRecord).info)
    assert errors[0].count("; ") == 2  # the first three of four
    for line in ("{}", "[]", "{", to_line(seen("a/0", [], 0, 1)).replace('"segment"', '"part"').rstrip()):
        lines.write_text(f"{line}\n")
        fails(run.observations)
    assert "segment: " in errors[-1]
    (run.folder / "clients.jsonl").write_text("{}\n")
    fails(run.client_usage)
    (packed.folder / PACKED).write_bytes((packed.folder / PACKED).read_bytes()[:-9])
    fails(packed.observations)
    for manifest in ("{}", "{"):
        (tmp_path / "manifest.json").write_text(manifest)
        fails(lambda: manifest_of(tmp_path))
    assert not [error for error in errors if "\n" in error or "http" in error]


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
    with pytest.raises(RunError, match=r"`replay`, not `load` or `trials`$"):
        run.record(LoadRecord)
    (run.folder / "summary.json").touch()
    with pytest.raises(RunError, match=r"; its results are in .*/summary\.json$"):
        run.record(LoadRecord)


def test_item_counts_of_the_index_may_change_and_nothing_else(tmp_path: Path) -> None:
    def record(**index: object) -> ReplayRecord:
        usual = {"items": 80, "indexed_vectors": 0, "backend": "qdrant-edge"}
        return replace(RECORD, service={"precision": "fp32", "index": {**usual, **index}})

    run = Run(tmp_path)
    run.begin(record())
    assert run.begin(record(items=81, indexed_vectors=64)) == []
    assert run.record(ReplayRecord) == record()
    others: list[dict[str, object]] = [{"backend": "qdrant"}, {"ef": {"items": 1}}, {"backend": {}}]
    for changes in others:
        with pytest.raises(RunError, match="another run: service differ"):
            run.begin(record(**changes))
    with pytest.raises(RunError, match="another run: service differ"):
        run.begin(replace(RECORD, service={"precision": "int8", "index": {"items": 80}}))


def test_a_summary_of_saturate_has_a_version(tmp_path: Path) -> None:
    trial = Trial(8.0, 0, 100, 1.0, 0, 0, 8.0, 10.0, 20.0, [])
    write_summary(tmp_path, SaturateSummary(8.0, [trial], [trial], slo_ms=500))
    file = tmp_path / "summary.json"
    assert read_record(file, SaturateSummary).confirmed == [trial]
    content = json.loads(file.read_text())
    assert content.keys() == {"version", "rate_per_s", "trials", "confirmed", "slo_ms"}
    file.write_text(json.dumps({**content, "version": 0}))
    with pytest.raises(RunError, match="another version"):
        read_record(file, SaturateSummary)


def test_a_packed_file_that_cannot_be_written_keeps_the_observations(tmp_path: Path) -> None:
    run = begun(Run(tmp_path))
    observe(run, [seen("a/0", [], 0, 1)])
    with atomic_path(run.folder / PACKED) as unfinished:
        unfinished.symlink_to("/dev/full")
        with pytest.raises(RunError, match=r"zst cannot be written: No space .* is kept"):
            run.pack()
        unfinished.touch()
    (run.folder / PACKED).unlink()
    assert [observation.query_id for observation in run.observations()] == ["a/0"]


def test_on_a_full_disk_the_first_error_is_reported(searches: list[LoadRequest], tmp_path: Path) -> None:
    run = begun(Run(tmp_path / "run"))
    for name in ("observations-000-00.jsonl", "clients.jsonl"):
        (run.folder / name).symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"observations-000-00\.jsonl .*No space"):
        sent(searches, run, 0)
    (run.folder / "observations-000-00.jsonl").unlink()
    with pytest.raises(RunError, match=r"clients\.jsonl .*No space .* is kept"):
        sent(searches, run, 0)
