"""Runs and observations for tests."""

from collections.abc import Sequence
from typing import Any

from benchmarks.runs.run import Observation, Run, to_line

RUN: dict[str, Any] = {
    "kind": "replay",
    "split": "test",
    "scope": "merged",
    "self_exclusion": "id",
    "queries_per_domain": None,
    "subset_seed": 0,
    "scenario": {"name": "ClosedLoop", "streams": 1, "group": 1, "bulk": 1, "rate_per_s": None, "seed": 0},
    "left_out": {},
}


def seen(query_id: str, hits: list[str], at_s: float, took_s: float, **changes: object) -> Observation:
    """Return an observation that was sent on time and answered with 200, with `changes`."""
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
    """Write observations as a client process does; `torn` is the rest of a line after a kill."""
    for segment in sorted({observation.segment for observation in observations}):
        with (run.folder / f"observations-{segment:03d}-00.jsonl").open("a") as stream:
            in_segment = [observation for observation in observations if observation.segment == segment]
            stream.writelines(map(to_line, in_segment))
            stream.write(torn)
