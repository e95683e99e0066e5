"""A run is a folder: `run.json` says what was measured, the observations hold one line a query.

While it runs, each client process appends to a file of its own, `observations-*.jsonl`; once it is whole
they are one, `observations.jsonl.zst`.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import zstandard

from benchmarks.errors import RunError
from benchmarks.files import open_to_append, complete_lines, write_atomically

PACKED = "observations.jsonl.zst"
_OPEN = "observations*.jsonl"
_CLIENTS = "clients.jsonl"
_NEVER_THE_SAME = {"started"}
_MOVES = {"items", "indexed_vectors"}  # of the service's index, by itself: it is no other service for that
_CHUNK_BYTES = 2**18


@dataclass(frozen=True, slots=True)
class Observation:
    """One query. Times are seconds since its segment began, on a monotonic clock."""

    query_id: str
    domain: str
    status: int  # of HTTP; 0: no answer, or none that can be used
    hit_ids: list[str]  # best first
    scheduled_s: float
    sent_s: float
    done_s: float
    server_ms: dict[str, float]  # by stage
    segment: int  # 0, and one more each time the run was resumed
    cache: str = ""  # hit, miss or coalesced, where the service has a cache
    error: str | None = None
    kind: str = "search"  # search, embed, bulk, index, delete
    embedding: str = ""  # base64 of float32, little-endian, where the harness searches

    @property
    def latency_ms(self) -> float:
        """From the time it should have been sent."""
        return (self.done_s - self.scheduled_s) * 1e3

    @property
    def send_lag_ms(self) -> float:
        """How late the client was."""
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

    def begin(self, said: Mapping[str, Any]) -> list[Observation]:
        """Start the run, or resume it and return what it has. Raises RunError where it is another's."""
        file = self.folder / "run.json"
        if file.exists():
            before, now = _comparable(self.said()), _comparable(said)
            keys = before.keys() | now.keys()
            changed = sorted(key for key in keys if now.get(key) != before.get(key))
            if changed:
                raise RunError(
                    f"{self.folder} is another run: {', '.join(changed)} differ; name another --out"
                )
            return self.observations()
        write_atomically(file, json.dumps(said, indent=1) + "\n")
        return []

    def said(self) -> dict[str, Any]:
        """What `run.json` says. Raises RunError."""
        try:
            said = json.loads((self.folder / "run.json").read_text())
        except FileNotFoundError as error:
            raise RunError(f"{self.folder} is not a run: it has no run.json") from error
        except (OSError, ValueError) as error:
            raise RunError(f"{self.folder} is not a run: {error}") from error
        if not isinstance(said, dict) or "kind" not in said:
            raise RunError(f"{self.folder} is not a run: its run.json does not say what was measured")
        return said

    def observations(self) -> list[Observation]:
        """In the order in which they were sent. Raises RunError.

        A line that was cut short when the run was killed is left out.
        """
        try:
            found = [Observation(**json.loads(line)) for line in dict.fromkeys(self._lines())]
        except (ValueError, TypeError) as error:
            raise RunError(f"the observations in {self.folder} are damaged: {error}") from error
        return sorted(found, key=lambda one: (one.segment, one.sent_s))

    def write_client_usage(self, segment: int, usage: Sequence[ClientUsage]) -> None:
        """Append one line for a segment. Raises RunError."""
        file = self.folder / _CLIENTS
        try:
            with open_to_append(file) as stream:
                record = {"segment": segment, "processes": [asdict(process) for process in usage]}
                stream.write(json.dumps(record) + "\n")
        except OSError as error:
            raise RunError(f"{file} cannot be written: {error.strerror}; the run is kept") from error

    def client_usage(self) -> list[ClientUsage]:
        """The client processes of all segments. Raises RunError."""
        file = self.folder / _CLIENTS
        try:
            records = [json.loads(line) for line in complete_lines(file)]
            if any("busy" in record for record in records):
                raise RunError(f"{file} was written by an earlier version: replay into another --out")
            return [
                ClientUsage(float(process["cpu_s"]), float(process["wall_s"]))
                for record in records
                for process in record["processes"]
            ]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RunError(f"{file} is damaged: {error!r}") from error

    def pack(self) -> None:
        """All observations into one compressed file. Raises RunError; nothing is lost."""
        parts = sorted(self.folder.glob(_OPEN))
        if not parts:
            return
        unfinished = self.folder / f"{PACKED}.new"
        try:
            with zstandard.open(unfinished, "wt", encoding="utf-8") as stream:
                # A run that was killed between the next two steps has its lines twice, but for here.
                stream.writelines(dict.fromkeys(self._lines()))
            unfinished.replace(self.folder / PACKED)
        except OSError as error:
            raise RunError(f"{unfinished} cannot be written: {error.strerror}; the run is kept") from error
        finally:
            unfinished.unlink(missing_ok=True)
        for part in parts:
            part.unlink()

    def _lines(self) -> Iterator[str]:
        packed = self.folder / PACKED
        if packed.exists():
            yield from _unpacked(packed)
        for part in sorted(self.folder.glob(_OPEN)):
            yield from complete_lines(part)


def answered(observations: Sequence[Observation]) -> list[Observation]:
    """Those with an answer: the others have no latency."""
    return [one for one in observations if one.status == 200]






def to_line(observation: Observation) -> str:
    """One line of JSON."""
    return json.dumps(asdict(observation)) + "\n"




def _comparable(said: Mapping[str, Any]) -> dict[str, Any]:
    """Without what moves by itself."""
    found = {key: value for key, value in said.items() if key not in _NEVER_THE_SAME}
    service = found.get("service")
    if isinstance(service, dict) and isinstance(service.get("index"), dict):
        index = {key: value for key, value in service["index"].items() if key not in _MOVES}
        found["service"] = {**service, "index": index}
    return found


def _unpacked(file: Path) -> Iterator[str]:
    """Its lines. Raises RunError, also where it ends too early: what is missing would count as not asked.

    A reader of zstandard's own takes a file that was cut short for a whole one.
    """
    frame, rest = zstandard.ZstdDecompressor().decompressobj(), b""
    try:
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                whole, newline, rest = (rest + frame.decompress(chunk)).rpartition(b"\n")
                yield from (line.decode() for line in (whole + newline).splitlines(keepends=True))
    except (OSError, ValueError, zstandard.ZstdError) as error:
        raise RunError(f"{file} is damaged: {error}") from error
    if rest or not frame.eof or frame.unused_data:
        raise RunError(f"{file} is damaged: it was cut short, or something follows its end")
