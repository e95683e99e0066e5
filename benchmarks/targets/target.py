"""What is measured, as rows: this service, or any that takes a picture over HTTP and gives a vector.

This service searches by itself; of every other the harness takes the embeddings and searches exactly.
"""

import base64
import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.errors import TargetError

TargetKind = Literal["uie", "openai", "post"]

_OPENAI = '{"model": "{model}", "input": ["{data_uri}"], "encoding_format": "float", "modality": "image"}'


@dataclass(frozen=True, slots=True)
class Target:
    """A service, and how it is asked for an embedding."""

    kind: TargetKind
    url: str  # the base of this service; of others, of the call itself
    model: str = ""  # empty: the service's own choice
    body: str = "raw"  # raw; form:FIELD; or JSON with {base64} or {data_uri} in it, and {model}
    vector: str = "embedding"  # where it stands in the answer: data.0.embedding

    @property
    def searches(self) -> bool:
        """Whether there is an index behind it that the harness may fill and ask."""
        return self.kind == "uie"


def target_row(kind: TargetKind, url: str, model: str, body: str, vector: str) -> Target:
    """The row that the command line says. Raises TargetError."""
    if kind == "openai":
        return Target(kind, url, model, _OPENAI, "data.0.embedding")
    row = Target(kind, url.rstrip("/") if kind == "uie" else url, model, body, vector)
    if kind == "post" and body.lstrip().startswith("{"):
        # A template that is no JSON, or leaves no place for the picture, is told at once.
        if json_body(row, b"x") == json_body(row, b"y"):
            raise TargetError(
                f"body {body!r} has neither {{base64}} nor {{data_uri}}: no picture would be sent"
            )
    elif kind == "post" and body != "raw" and not body.startswith("form:"):
        raise TargetError(f"body {body!r} is neither raw, form:FIELD nor JSON")
    return row


def json_body(target: Target, picture: bytes) -> Any:
    """The JSON that carries a picture. Raises TargetError where the template is none."""
    encoded = base64.b64encode(picture).decode()
    try:
        return _filled(
            json.loads(target.body),
            {
                "{base64}": encoded,
                "{data_uri}": data_uri(picture),
                "{model}": target.model,
            },
        )
    except ValueError as error:
        raise TargetError(f"the body's template is no JSON: {error}") from error


def data_uri(picture: bytes) -> str:
    """Of the type that its first bytes say."""
    kind = "png" if picture.startswith(b"\x89PNG") else "webp" if picture[8:12] == b"WEBP" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def vector_of(target: Target, answer: Any) -> NDArray[np.float32]:
    """float32 (D,), out of an answer's JSON. Raises TargetError where there is none."""
    found = answer
    try:
        for step in target.vector.split("."):
            found = found[int(step)] if isinstance(found, list) else found[step]
        vector = np.asarray(found, dtype=np.float32)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise TargetError(f"the answer has no vector at {target.vector}: {error!r}") from error
    if vector.ndim != 1 or not len(vector) or not np.isfinite(vector).all():
        raise TargetError(f"what stands at {target.vector} is no vector of finite numbers")
    return vector


def _filled(template: Any, values: dict[str, str]) -> Any:
    if isinstance(template, dict):
        return {key: _filled(value, values) for key, value in template.items()}
    if isinstance(template, list):
        return [_filled(value, values) for value in template]
    if isinstance(template, str):
        for name, value in values.items():
            template = template.replace(name, value)
    return template
