"""Files of a run that a kill, a full disk or a copy left behind: mended, or named in one sentence."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.errors import RunError
from benchmarks.load.driver import Client, Load, drive
from benchmarks.load.null_server import null_server
from benchmarks.load.requests import LoadRequest
from benchmarks.load.scenarios import Scenario
from benchmarks.runs.run import PACKED, Run, answered, to_line
from benchmarks.targets.target import Target
from tests.support.loads import searches
from tests.support.observed import RUN, observe, seen

__all__ = ["searches"]  # a fixture

TORN = to_line(seen("a/00", [], 0, 1))[:40]


@pytest.fixture
def packed(tmp_path: Path) -> Run:
    """Two thousand answers."""
    run = Run(tmp_path / "packed")
    run.begin(RUN)
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
    run = Run(tmp_path / "run")
    run.begin(RUN)
    (run.folder / f"observations-{segment:03d}-00.jsonl").write_text(TORN)
    (run.folder / "clients.jsonl").write_text(
        '{"segment": 0, "processes": [{"cpu_s": 1, "wall_s": 4}]}\n{"segment": 1, "pro'
    )
    assert run.begin(RUN) == []
    sent(searches, run, segment)
    assert len(answered(run.observations())) == len(searches)
    run.pack()
    assert sorted(one.query_id for one in run.observations()) == [search.images[0].id for search in searches]
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
    assert [one.query_id for one in packed.observations()] == [f"a/{n:07d}" for n in range(2000)]
    (tmp_path / "observations-000-00.jsonl").touch()
    Run(tmp_path).pack()
    assert (tmp_path / PACKED).exists()
    assert Run(tmp_path).observations() == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:0],
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-1],
        lambda whole: b"garbage" + whole,
        lambda whole: whole + whole,
    ],
    ids=["empty", "half", "but a byte", "garbage", "twice"],
)
def test_a_packed_file_that_is_not_whole_is_refused(packed: Run, damage: Any) -> None:
    """Half of it would read as a run of which half was not asked."""
    file = packed.folder / PACKED
    file.write_bytes(damage(file.read_bytes()))
    before = file.read_bytes()
    with pytest.raises(RunError, match="damaged"):
        packed.observations()
    observe(packed, [seen("a/x", [], 0, 1, segment=1)])
    with pytest.raises(RunError, match="damaged"):
        packed.pack()
    names = {one.name for one in packed.folder.iterdir()}
    assert names == {"run.json", PACKED, "observations-001-00.jsonl"}
    assert file.read_bytes() == before


@pytest.mark.parametrize("text", ["{}", "[1]", "null", '"kind"', "{", '{"data": "x"}'])
def test_a_run_json_that_says_nothing_is_no_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunError, match="is not a run"):
        Run(tmp_path).said()
    with pytest.raises(RunError, match="is not a run"):
        Run(tmp_path).begin(RUN)


def test_a_service_whose_items_moved_is_the_same_and_another_index_is_not(tmp_path: Path) -> None:
    def said(**index: object) -> dict[str, object]:
        usual = {"items": 80, "indexed_vectors": 0, "backend": "qdrant-edge"}
        return {**RUN, "service": {"precision": "fp32", "index": {**usual, **index}}}

    run = Run(tmp_path)
    run.begin(said())
    assert run.begin(said(items=81, indexed_vectors=64)) == []
    assert run.said() == said()
    with pytest.raises(RunError, match="another run: service differ"):
        run.begin(said(backend="qdrant"))
    with pytest.raises(RunError, match="another run: service differ"):
        run.begin({**said(), "service": {"precision": "int8", "index": {"items": 80}}})


def test_on_a_full_disk_the_first_error_is_told(searches: list[LoadRequest], tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.begin(RUN)
    for name in ("observations-000-00.jsonl", "clients.jsonl"):
        (run.folder / name).symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"observations-000-00\.jsonl cannot be written: No space .* is kept"):
        sent(searches, run, 0)
    (run.folder / "observations-000-00.jsonl").unlink()
    with pytest.raises(RunError, match=r"clients\.jsonl cannot be written: No space .* is kept"):
        sent(searches, run, 0)
