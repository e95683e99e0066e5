"""A run is a folder: `run.json` says what was measured, `observations.jsonl` holds one line a query."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from benchmarks.errors import RunError


@dataclass(frozen=True, slots=True)
class Observation:
    """One query. Times are seconds since its segment began, on a monotonic clock."""

    query_id: str
    domain: str
    status: int  # of HTTP; 0: no answer
    hit_ids: list[str]  # best first
    scheduled_s: float
    sent_s: float
    done_s: float
    server_ms: dict[str, float]  # by stage
    segment: int  # 0, and one more each time the run was resumed
    cache: str = ""  # hit, miss or coalesced, where the service has a cache
    error: str | None = None

    @property
    def latency_ms(self) -> float:
        """From the time it should have been sent."""
        return (self.done_s - self.scheduled_s) * 1e3


@dataclass(frozen=True)
class Run:
    """A run folder."""

    folder: Path

    def begin(self, said: dict[str, Any]) -> list[Observation]:
        """Start the run, or resume it and return what it has. Raises RunError where it is another's."""
        file = self.folder / "run.json"
        if file.exists():
            before = self.said()
            changed = sorted(key for key in said | before if said.get(key) != before.get(key))
            if changed:
                raise RunError(f"{self.folder} is another run: {', '.join(changed)} differ")
            return self.observations()
        self.folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(said, indent=1) + "\n")
        return []

    def said(self) -> dict[str, Any]:
        """What `run.json` says. Raises RunError."""
        try:
            return dict(json.loads((self.folder / "run.json").read_text()))
        except (OSError, ValueError) as error:
            raise RunError(f"{self.folder} is not a run: {error}") from error

    def observations(self) -> list[Observation]:
        """All whole lines; one that was cut short when the run was killed is taken off the file."""
        file = self.folder / "observations.jsonl"
        if not file.exists():
            return []
        text = file.read_text()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            file.write_text(whole)
        try:
            return [Observation(**json.loads(line)) for line in whole.splitlines()]
        except (ValueError, TypeError) as error:
            raise RunError(f"{file} is damaged: {error}") from error

    @contextmanager
    def writer(self) -> Iterator[TextIO]:
        """Appends observations, line by line."""
        with (self.folder / "observations.jsonl").open("a", buffering=1) as stream:
            yield stream


def to_line(observation: Observation) -> str:
    """One line of JSON."""
    return json.dumps(asdict(observation)) + "\n"
