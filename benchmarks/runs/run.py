"""Run folders: `run.json` records what was measured, the observations hold one line per request.

During a run each client process appends to its own file, `observations-*.jsonl`; at its end they are packed
into `observations.jsonl.zst`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import zstandard

from benchmarks.errors import RunError
from benchmarks.files import atomic_path, complete_lines, open_to_append
from benchmarks.runs.records import RunRecord, faults_of, parse, read_record, to_json, write_record

PACKED = "observations.jsonl.zst"
_UNPACKED = "observations*.jsonl"
_CLIENTS = "clients.jsonl"
_CHUNK_BYTES = 2**18

R = TypeVar("R", bound=RunRecord)


@dataclass(frozen=True, slots=True)
class Observation:
    """One request. Times are seconds since the start of its segment, on a monotonic clock."""

    query_id: str
    domain: str
    status: int  # of HTTP; 0: no response, or an unusable one
    hit_ids: list[str]  # best first
    scheduled_s: float
    sent_s: float
    done_s: float
    server_ms: dict[str, float]  # by stage
    segment: int  # 0, and one more each time the run was resumed
    cache: str = ""  # hit, miss or coalesced, if the service has a cache
    error: str | None = None
    kind: str = "search"  # search, embed, bulk, index, delete
    embedding: str = ""  # base64 of float32, little-endian, if the harness searches

    @property
    def from_cache(self) -> bool:
        """True if the service computed nothing for this request."""
        return self.cache not in ("", "miss")

    @property
    def latency_ms(self) -> float:
        """Milliseconds from the scheduled time to the complete response."""
        return (self.done_s - self.scheduled_s) * 1e3

    @property
    def send_lag_ms(self) -> float:
        """Milliseconds by which the client sent the request late."""
        return (self.sent_s - self.scheduled_s) * 1e3


@dataclass(frozen=True, slots=True)
class ClientUsage:
    """CPU time and wall time of one client process, both from the start of the load to its end."""

    cpu_s: float
    wall_s: float

    @property
    def core_share(self) -> float:
        """The share of a core that the process used."""
        return self.cpu_s / self.wall_s if self.wall_s > 0 else 0.0


@dataclass(frozen=True)
class Run:
    """A run folder."""

    folder: Path

    @property
    def exists(self) -> bool:
        """True if the run was started."""
        return (self.folder / "run.json").exists()

    def begin(self, record: RunRecord) -> list[Observation]:
        """Start the run, or resume it and return its observations. Raises RunError if it is another run."""
        if not self.exists:
            write_record(self.folder / "run.json", record)
            return []
        if changes := self.record(type(record)).changes(record):
            raise RunError(f"{self.folder} holds another run: {', '.join(changes)} differ; use a new --out")
        return self.observations()

    def record(self, cls: type[R]) -> R:
        """The content of `run.json`. Raises RunError, also if the run is not of a kind that `cls` reads."""
        if not self.exists:
            raise RunError(f"{self.folder} is not a run: it has no run.json")
        file = self.folder / "run.json"
        if cls.kinds and (kind := read_record(file, RunRecord).kind) not in cls.kinds:
            summary = self.folder / "summary.json"
            results = f"; its results are in {summary}" if summary.exists() else ""
            raise RunError(
                f"{self.folder} is a run of kind `{kind}`, not `{'` or `'.join(cls.kinds)}`{results}"
            )
        return read_record(file, cls)

    def observations(self) -> list[Observation]:
        """The observations in the order in which they were sent. Raises RunError.

        A last line that was cut off when the run was killed is left out.
        """
        try:
            observations = [parse(Observation, line) for line in dict.fromkeys(self._lines())]
        except ValueError as error:
            raise RunError(f"the observations in {self.folder} cannot be read: {faults_of(error)}") from error
        return sorted(observations, key=lambda observation: (observation.segment, observation.sent_s))

    def write_client_usage(self, segment: int, usage: Sequence[ClientUsage]) -> None:
        """Append one line for a segment. Raises RunError."""
        file = self.folder / _CLIENTS
        try:
            with open_to_append(file) as stream:
                stream.write(json.dumps(to_json(_SegmentUsage(segment, list(usage)))) + "\n")
        except OSError as error:
            raise RunError(f"{file} cannot be written: {error.strerror}; the run is kept") from error

    def client_usage(self) -> list[ClientUsage]:
        """The usage of the client processes of all segments. Raises RunError."""
        file = self.folder / _CLIENTS
        try:
            segments = [parse(_SegmentUsage, line) for line in complete_lines(file)]
        except (OSError, ValueError) as error:
            reason = f"is damaged or of another version, use a new --out: {faults_of(error)}"
            raise RunError(f"{file} {reason}") from error
        return [process for segment in segments for process in segment.processes]

    def pack(self) -> None:
        """Pack all observations into one compressed file. Raises RunError; the observations are kept."""
        parts = sorted(self.folder.glob(_UNPACKED))
        if not parts:
            return
        file = self.folder / PACKED
        try:
            with atomic_path(file) as path, zstandard.open(path, "wt", encoding="utf-8") as stream:
                # If an earlier call was killed before it removed the parts, their lines are in both files.
                stream.writelines(dict.fromkeys(self._lines()))
        except OSError as error:
            raise RunError(f"{file} cannot be written: {error.strerror}; the run is kept") from error
        for part in parts:
            part.unlink()

    def _lines(self) -> Iterator[str]:
        if (packed := self.folder / PACKED).exists():
            yield from _unpacked(packed)
        for part in sorted(self.folder.glob(_UNPACKED)):
            yield from complete_lines(part)


@dataclass(frozen=True, slots=True)
class _SegmentUsage:
    segment: int
    processes: list[ClientUsage]


def answered(observations: Sequence[Observation]) -> list[Observation]:
    """The observations with status 200; only they have a latency."""
    return [observation for observation in observations if observation.status == 200]


def to_line(observation: Observation) -> str:
    """The observation as one line of JSON."""
    return json.dumps(asdict(observation)) + "\n"


def _unpacked(file: Path) -> Iterator[str]:
    """The lines of a packed file, read in chunks. Raises RunError if the file is truncated.

    zstandard's own reader accepts a truncated file, and its missing observations would count as not sent.
    """
    frame, rest = zstandard.ZstdDecompressor().decompressobj(), b""
    try:
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                complete, newline, rest = (rest + frame.decompress(chunk)).rpartition(b"\n")
                # JSON escapes every other line separator.
                yield from (line.decode() for line in (complete + newline).splitlines(keepends=True))
    except (OSError, ValueError, zstandard.ZstdError) as error:
        raise RunError(f"{file} is damaged: {error}") from error
    if rest or not frame.eof or frame.unused_data:
        raise RunError(f"{file} is damaged: it is truncated, or other data follows its end")
