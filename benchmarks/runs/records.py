"""The JSON records of a run folder: one reader, one writer, and the fields that all kinds of runs share."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import TypeAdapter, ValidationError

from benchmarks.errors import RunError
from benchmarks.files import write_atomically
from benchmarks.runs.provenance import Provenance

VERSION = 1
_MAX_FAULTS = 3
_COUNTERS = {"index.items", "index.indexed_vectors"}  # they change while the service stays the same

T = TypeVar("T")
_cached_adapter = cache(TypeAdapter)  # building one takes milliseconds


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model, as `GET /v1/info` reports it."""

    name: str | None = None
    fingerprint: str | None = None
    dim: int | None = None


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """The index, as `GET /v1/info` reports it."""

    backend: str | None = None
    quantization: str | None = None


@dataclass(frozen=True, slots=True)
class ServiceInfo:
    """The fields of `GET /v1/info` that the harness reads; all are empty for another target."""

    version: str | None = None
    model: ModelInfo = ModelInfo()
    models: tuple[ModelInfo, ...] = ()  # all that are served; the first one is `model`
    index: IndexInfo = IndexInfo()
    precision: str | None = None
    provider: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunRecord(Provenance):
    """The part of `run.json` that every kind of run has."""

    kinds: ClassVar[tuple[str, ...]] = ()  # the kinds that a class reads; none: every kind

    version: int = VERSION
    kind: str
    url: str
    data: str  # folder of the data set
    data_fingerprint: str
    service: dict[str, Any]  # the JSON of `GET /v1/info`, complete; empty for another target

    @property
    def info(self) -> ServiceInfo:
        """The service's description of itself. Raises RunError."""
        try:
            return _adapter(ServiceInfo).validate_python(self.service)
        except ValueError as error:
            raise RunError(f"run.json does not describe the service: {faults_of(error)}") from error

    def changes(self, other: "RunRecord") -> list[str]:
        """Names of the fields in which `other`, of the same class, describes another run."""
        a, b = _stable(self), _stable(other)
        return sorted(field.name for field in fields(a) if getattr(a, field.name) != getattr(b, field.name))


def read_record(file: Path, kind: type[T]) -> T:
    """The record in a JSON file. Raises RunError if it is missing, malformed, or of another version."""
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise RunError(f"{file} does not exist") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{file} is damaged: {error}") from error
    if content and isinstance(content, dict) and content.get("version") != VERSION:
        raise RunError(f"{file} was written by another version of the harness: use a new --out")
    try:
        return _adapter(kind).validate_python(content)
    except ValueError as error:
        raise RunError(f"{file} is not a {file.stem} record: {faults_of(error)}") from error


def parse(kind: type[T], line: str) -> T:
    """The record in JSON. Raises ValueError; `faults_of` describes it."""
    return _adapter(kind).validate_json(line)


def faults_of(error: Exception) -> str:
    """The error in one line; the first faults of an invalid record as `field: message`."""
    text = str(error)
    if isinstance(error, ValidationError):
        faults = error.errors(include_url=False)[:_MAX_FAULTS]
        text = "; ".join(f"{'.'.join(map(str, row['loc'])) or 'content'}: {row['msg']}" for row in faults)
    return " ".join(text.split())


def write_record(file: Path, record: object) -> None:
    """Write a record as JSON. Raises RunError."""
    write_atomically(file, json.dumps(to_json(record), indent=1) + "\n")


def write_summary(folder: Path, summary: object) -> None:
    """Write `summary.json`. Raises RunError."""
    write_record(folder / "summary.json", summary)


def to_json(record: object) -> dict[str, Any]:
    """The record as JSON, with the keys of the file format."""
    return dict(_adapter(type(record)).dump_python(record, mode="json", by_alias=True))


def _adapter(kind: type[T]) -> TypeAdapter[T]:
    return _cached_adapter(kind)  # type: ignore[arg-type]  # mypy takes no type[T] for hashable


def _stable(record: RunRecord) -> RunRecord:
    """The record without the values that change between two calls for the same run."""
    service = {name: value for name, value in leaves(record.service) if name not in _COUNTERS}
    return replace(record, started="", service=service)


def leaves(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested objects and of lists of objects, by dotted name."""
    for key, value in content.items():
        listed = isinstance(value, list) and any(isinstance(item, dict) for item in value)
        if listed or (value and isinstance(value, dict)):
            yield from leaves(dict(enumerate(value)) if listed else value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
