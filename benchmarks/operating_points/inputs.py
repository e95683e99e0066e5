"""The inputs of an output, in a file beside it, so that an output of other inputs is never reused."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.errors import RunError
from benchmarks.files import write_atomically
from benchmarks.runs.records import faults_of, parse


@dataclass(frozen=True, slots=True)
class Manifest:
    """The fields of a model folder's `manifest.json` that the harness reads."""

    name: str
    fingerprint: str


def check_inputs(file: Path, inputs: Mapping[str, Any], output: Path) -> None:
    """Write `inputs` to `file` if `output` does not exist yet, otherwise compare them with its content.

    Raises RunError if they differ or the file cannot be read, and what `write_atomically` raises.
    """
    wanted = json.loads(json.dumps(inputs))  # with JSON's types, as in the file
    if not output.exists():
        write_atomically(file, json.dumps(wanted, indent=1) + "\n")
        return
    try:
        recorded = dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"the inputs of {output.parent} are unknown ({error}): use a new --out") from error
    differences = [
        f"{key} was {recorded.get(key)} and is now {wanted.get(key)}"
        for key in {**recorded, **wanted}
        if recorded.get(key) != wanted.get(key)
    ]
    if differences:
        raise RunError(f"{output.parent} has other inputs: {'; '.join(differences)}; use a new --out")


def fingerprints_of(models: str) -> str:
    """`models`, comma-separated, with the fingerprint instead of each model folder."""
    return ",".join(
        manifest_of(Path(model)).fingerprint if (Path(model) / "manifest.json").exists() else model
        for model in models.split(",")
    )


def manifest_of(folder: Path) -> Manifest:
    """The manifest of a model folder. Raises RunError."""
    try:
        return parse(Manifest, (folder / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} is not a model folder: {faults_of(error)}") from error
