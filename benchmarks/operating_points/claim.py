"""A file beside each run says what it is of, so that nothing is taken for what it is not."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.errors import RunError
from benchmarks.files import write_atomically


def claim(file: Path, asked: Mapping[str, Any], made: Path) -> None:
    """Before `made` is made: say in `file` what was `asked` for. Once it is there: was it the same?

    Raises RunError where it was another, where nobody knows, and what `write_atomically` raises.
    """
    wanted = json.loads(json.dumps(asked))  # as it reads once it was written
    if not made.exists():
        write_atomically(file, json.dumps(wanted, indent=1) + "\n")
        return
    try:
        said = dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"what {made.parent} was made of is not known ({error}): use another --out") from error
    differs = [
        f"{key} is {said.get(key)} there and {wanted.get(key)} now"
        for key in {**said, **wanted}
        if said.get(key) != wanted.get(key)
    ]
    if differs:
        raise RunError(f"{made.parent} is of something else: {'; '.join(differs)}; use another --out")


def model_of(said: str) -> str:
    """The fingerprint of a model folder, of each where there are several; elsewhere, what is said."""
    return ",".join(
        manifest_of(Path(one))["fingerprint"] if (Path(one) / "manifest.json").exists() else one
        for one in said.split(",")
    )


def manifest_of(folder: Path) -> dict[str, str]:
    """Its name and its fingerprint. Raises RunError."""
    try:
        said = json.loads((folder / "manifest.json").read_text())
        return {key: str(said[key]) for key in ("name", "fingerprint")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder} is not a model folder: {error}") from error
