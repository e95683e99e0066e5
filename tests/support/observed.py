"""Records, runs and observations for tests."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.load.scenarios import Scenario
from benchmarks.replay.records import ClientRecord, ReplayRecord
from benchmarks.runs.provenance import Machine
from benchmarks.runs.run import Observation, Run, to_line
from benchmarks.targets.target import Target

URL = "http://127.0.0.1:1"
RECORD = ReplayRecord(
    started="2026-11-24T23:50:01+00:00",
    commit="abc1234+",
    machine=Machine(cpu="a CPU", cores=2, memory_gb=24.0, gpu=None, system="Linux"),
    versions={"python": "3.11"},
    url=URL,
    target=Target("uie", URL),
    data="/data",
    data_fingerprint="f" * 64,
    domains=["a", "b"],
    left_out={},
    scenario=Scenario("ClosedLoop", streams=1),
    client=ClientRecord(processes=1, warm_up=0),
    service={},
)


def seen(query_id: str, hits: list[str], at_s: float, took_s: float, **changes: object) -> Observation:
    """An observation that was sent on time and answered with 200, except for `changes`."""
    values: dict[str, Any] = {
        "query_id": query_id,
        "domain": query_id.split("/")[0],
        "status": 200,
        "hit_ids": hits,
        "scheduled_s": at_s,
        "sent_s": at_s,
        "done_s": at_s + took_s,
        "server_ms": {"decode": 1.0, "infer": 2.0, "total": 4.0},
        "segment": 0,
        **changes,
    }
    return Observation(**values)


def observe(run: Run, observations: Sequence[Observation], torn: str = "") -> None:
    """Append observations as a client process does; `torn` is a last line that a kill cut off."""
    for segment in sorted({observation.segment for observation in observations}):
        with (run.folder / f"observations-{segment:03d}-00.jsonl").open("a") as stream:
            stream.writelines(
                to_line(observation) for observation in observations if observation.segment == segment
            )
            stream.write(torn)


def begun(run: Run, **changes: Any) -> Run:
    """The run, started with RECORD except for `changes`."""
    run.begin(replace(RECORD, **changes))
    return run
